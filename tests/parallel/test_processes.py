"""Two processes in one workdir: they train what one does, and end together."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lmjax.cli.main import main
from lmjax.config import experiment
from lmjax.parallel.hub import EXIT_LOST
from lmjax.parallel.join import LAUNCHER
from lmjax.run import workdir
from lmjax.training import loop
from tools.launch.command import main as launch

# A schedule that does not ask how long the run will be: it is cut short.
CONFIG = {
    "num_steps": 100_000,
    "batch_size": 4,
    "model": {"dim": 16, "num_layers": 1, "num_heads": 4, "vocab_size": 260},
    "tokenizer": {"kind": "bytes"},
    "data": {
        "source": "text",
        "document": "line",
        "length": 32,
        "num_store_workers": 1,
    },
    "optim": {"learning_rate": 1e-4, "schedule": "constant"},
    "checkpoint": {"every_steps": 2, "best_metric": "loss"},
    "eval": {"num_batches": 2, "every_steps": 0, "patience": 9},
    "sample": {"prompts": ("ab", "c", "de", "f"), "max_tokens": 3},
    "log": {"every_steps": 1},
}


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    directory = tmp_path_factory.mktemp("processes")
    text = directory / "text.txt"
    text.write_text("".join(f"line number {i} of the text\n" for i in range(300)))
    config = {**CONFIG, "data": {**CONFIG["data"], "path": str(text)}}
    path = directory / "x.py"
    path.write_text(f"def get_config():\n    return {config!r}\n")
    return path


@contextlib.contextmanager
def started(script, directory, *overrides):
    """Start two processes of two devices each; kill what is left of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "lmjax.cli", "train", f"--config={script}"]
    command += [f"--workdir={directory}", *(f"--config.{o}" for o in overrides)]
    two = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    flags = {"XLA_FLAGS": two}
    processes = []
    for index in ("0", "1"):
        launcher = dict(zip(LAUNCHER, (address, "2", index), strict=True))
        with (script.parent / f"{index}.log").open("w") as log:
            process = subprocess.Popen(
                command, env=os.environ | flags | launcher, stdout=log, stderr=log
            )
        processes.append(process)
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def ended(script, processes):
    """Return the exit codes, and what each process said."""
    codes = [process.wait(timeout=120) for process in processes]
    return codes, [(script.parent / f"{i}.log").read_text() for i in (0, 1)]


def losses(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return {(n["step"], n["split"]): n["loss"] for n in map(json.loads, lines)}


def test_two_processes_equal_one(script, tmp_path, monkeypatch, capfd):
    """Stopped by a signal to one of them, resumed on another mesh, to the end.

    They are started by hand, and again by the launcher.
    """
    directory = tmp_path / "run"
    with started(script, directory, "mesh.data=1", "mesh.fsdp=4") as processes:
        while not (directory / "checkpoints" / "2").exists():
            assert [process.poll() for process in processes] == [None, None]
            time.sleep(0.02)
        processes[1].send_signal(signal.SIGTERM)
        codes, said = ended(script, processes)
        assert codes == [75, 75], said
    stopped = max(int(path.name) for path in (directory / "checkpoints").iterdir())
    assert max(losses(directory)) == (stopped, "train")
    rest = ("mesh.data=1", "mesh.tensor=4", f"num_steps={stopped + 2}")
    argv = ["--processes=2", "--devices_per_process=2", f"--config={script}"]
    argv += [f"--workdir={directory}", *(f"--config.{override}" for override in rest)]
    with monkeypatch.context() as proxy:
        proxy.setenv("http_proxy", "http://127.0.0.1:9")  # not for one another
        assert launch(["local", *argv]) == 0
    said = capfd.readouterr().err
    assert f"[0] training from step {stopped} to {stopped + 2}\n" in said
    assert "[1] training" not in said
    assert (directory / "samples" / f"{stopped + 2}.txt").exists()
    assert len(list((directory / "tensorboard").iterdir())) == 2  # one for each start

    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    alone = tmp_path / "alone"
    assert loop.train(experiment.load(str(script), [rest[2]]), alone)
    assert losses(directory).keys() == losses(alone).keys()
    np.testing.assert_allclose(
        [*losses(directory).values()], [*losses(alone).values()], rtol=1e-6
    )


@pytest.mark.slow
def test_an_error_in_one_process_ends_both(script, tmp_path):
    """Only the first process looks at what the workdir's text was."""
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    workdir.write_config(tmp_path, experiment.load(str(script)))
    (tmp_path / "data.json").write_text('{"config.data": "other"}')
    with started(script, tmp_path) as processes:
        codes, said = ended(script, processes)
    assert codes == [2, 2]
    for text in said:
        assert "config.data" in text and "is not what this run was trained on" in text
        assert "Traceback" not in text


@pytest.mark.slow
def test_a_process_that_is_killed_is_named_by_the_other(script, tmp_path):
    with started(script, tmp_path, "log.every_steps=1000") as processes:
        while not list((tmp_path / "checkpoints").glob("[1-9]*")):
            assert [process.poll() for process in processes] == [None, None]
            time.sleep(0.02)
        begin = time.monotonic()
        processes[1].kill()
        codes, said = ended(script, processes)
    assert codes == [EXIT_LOST, -signal.SIGKILL]
    assert time.monotonic() - begin < 20  # the runtime notices it after 12
    assert said[0].count(f"error: process 1 ({socket.gethostname()}, pid ") == 1
    assert "last seen: " in said[0] and "Traceback" not in said[0]
    places = [json.loads((tmp_path / "hosts" / f"{i}.json").read_text()) for i in "01"]
    assert [place["process"] for place in places] == [0, 1]


ANSWERING = {
    "span_qa": {
        "model": {"kind": "encoder"},
        "data": {"length": 48},
        "task": {
            "kind": "span_qa",
            "max_question_tokens": 8,
            "stride": 16,
            "max_answer_tokens": 4,
        },
    },
    "seq2seq": {
        "model": {"kind": "encoder_decoder"},
        "data": {"fields": {"source": "question", "target": "answer"}},
        "task": {"kind": "seq2seq", "metrics": ("chrf",), "write": {"num_beams": 2}},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ANSWERING)
def test_prediction_metrics_of_two_processes_equal_those_of_one(
    kind, tmp_path, monkeypatch
):
    if kind == "seq2seq":
        pytest.importorskip("sacrebleu")
    words = ["red", "blue", "green", "grey"]
    examples = [
        {
            "context": f"one is {a}, the other {b}",
            "question": "one?" if i % 2 else "other?",
            "answer": (answer := a if i % 2 else b),
            "answers": [{"text": answer, "answer_start": 7 if i % 2 else 19 + len(a)}],
        }
        for i, (a, b) in enumerate((a, b) for a in words for b in words if a != b)
    ]
    text = tmp_path / "examples.jsonl"
    text.write_text("".join(json.dumps(example) + "\n" for example in examples))
    own = ANSWERING[kind]
    sections = {
        "num_steps": 40,
        "optim": {"learning_rate": 0.01, "schedule": "constant"},
        "batch_size": 4,
        "model": {**CONFIG["model"], **own["model"]},
        "tokenizer": CONFIG["tokenizer"],
        "data": {
            "source": "jsonl",
            "path": str(text),
            "valid_path": str(text),
            "test_path": str(text),
            "length": 32,
            **own["data"],
        },
        "task": own["task"],
    }
    script = tmp_path / "x.py"
    script.write_text(f"def get_config():\n    return {sections!r}\n")
    with monkeypatch.context() as alone:
        alone.setattr(jax, "devices", lambda: jax.local_devices()[:1])
        assert loop.train(experiment.load(str(script)), tmp_path / "one")
    log = tmp_path / "one" / "metrics.jsonl"
    *before, last = log.read_text().splitlines(keepends=True)
    one = json.loads(last)
    assert one["split"] == "test"
    # What has not been measured yet is, of the same parameters, by both.
    log.write_text("".join(before))
    axes = ("mesh.data=2", "mesh.fsdp=2")
    with started(script, tmp_path / "one", *axes) as processes:
        codes, said = ended(script, processes)
        assert codes == [0, 0], said
    both = json.loads(log.read_text().splitlines()[-1])
    names = {"span_qa": ("f1", "exact_match"), "seq2seq": ("chrf",)}[kind]
    assert one[names[0]] > 0, "something must have been learnt"
    for name in ("loss", *names):
        assert both[name] == pytest.approx(one[name], rel=1e-5), name


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (("127.0.0.1:1",), "JAX_NUM_PROCESSES and JAX_PROCESS_ID: not set"),
        (("127.0.0.1:1", "2", "two"), "JAX_PROCESS_ID=two"),
    ],
)
def test_a_launcher_set_in_part_is_one_line(
    script, tmp_path, monkeypatch, capsys, values, part
):
    for name, value in zip(LAUNCHER, values, strict=False):
        monkeypatch.setenv(name, value)
    assert main(["train", f"--config={script}", f"--workdir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and part in said
