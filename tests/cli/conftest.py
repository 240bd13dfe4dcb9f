"""A small experiment, and a run of it by the command line."""

import pytest

from lmjax.cli.main import main

CONFIG = {
    "num_steps": 4,
    "batch_size": 8,
    "model": {"dim": 16, "num_layers": 2, "num_heads": 2, "max_length": 32},
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "text", "document": "line", "length": 32},
    "checkpoint": {"every_steps": 2},
    "log": {"tensorboard": False},
}


@pytest.fixture(scope="session")
def small():
    """Return the sections of a small experiment."""
    return CONFIG


@pytest.fixture(scope="session")
def script(tmp_path_factory):
    """Return an experiment file, on a text of 300 lines."""
    directory = tmp_path_factory.mktemp("cli")
    text = directory / "text.txt"
    text.write_text("".join(f"line number {i} of the text\n" for i in range(300)))
    path = directory / "x.py"
    config = {**CONFIG, "data": {**CONFIG["data"], "path": str(text)}}
    path.write_text(f"def get_config():\n    return {config!r}\n")
    return path


@pytest.fixture(scope="session")
def run(script):
    """Return the workdir of a finished run of the experiment."""
    directory = script.parent / "run"
    assert main(["train", f"--config={script}", f"--workdir={directory}"]) == 0
    return directory
