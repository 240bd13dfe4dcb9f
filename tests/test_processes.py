"""Several processes in one workdir: they train what one does, and end together."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from lmjax.device import LAUNCHER

CONFIG = {
    "num_steps": 6,
    "batch_size": 4,
    "model": {"dim": 16, "num_layers": 1, "num_heads": 2, "max_length": 32},
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "text", "document": "line", "length": 32},
    "checkpoint": {"every_steps": 3, "best_metric": "loss"},
    "eval": {"every_steps": 3, "num_batches": 2, "patience": 9},
    "sample": {"prompts": ("ab",), "max_tokens": 3},
    "log": {"every_steps": 1},
}
NUM_STEPS = 5000


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
def started(script, workdir, *overrides, num=2, devices=2):
    """Start `num` processes of `devices` each; kill what is left of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "lmjax.cli", "train", f"--config={script}"]
    command += [f"--workdir={workdir}", *(f"--config.{o}" for o in overrides)]
    environment = dict(os.environ)
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    processes = []
    for index in range(num):
        values = (address, str(num), str(index))
        launcher = dict(zip(LAUNCHER, values, strict=True)) if num > 1 else {}
        with (script.parent / f"{index}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    command, env=environment | launcher, stdout=log, stderr=log
                )
            )
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(script, workdir, *overrides, **options):
    """Return the exit codes, and what each process said."""
    with started(script, workdir, *overrides, **options) as processes:
        codes = [process.wait(timeout=120) for process in processes]
    names = [f"{index}.log" for index in range(len(codes))]
    return codes, [(script.parent / name).read_text() for name in names]


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {(n["step"], n["split"]): n["loss"] for n in map(json.loads, lines)}


@pytest.fixture(scope="module")
def alone(script, tmp_path_factory):
    """Return the losses of one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    codes, said = run(script, workdir, num=1, devices=1)
    assert codes == [0], said
    return losses(workdir)


@pytest.mark.parametrize("mesh", [{"fsdp": 4}, {"tensor": 2, "fsdp": 2}])
def test_two_processes_train_what_one_does(script, alone, tmp_path, mesh):
    overrides = [f"mesh.{axis}={size}" for axis, size in ({"data": 1} | mesh).items()]
    codes, said = run(script, tmp_path / "run", *overrides)
    assert codes == [0, 0], said
    found = losses(tmp_path / "run")
    assert found.keys() == alone.keys()
    np.testing.assert_allclose([*found.values()], [*alone.values()], rtol=1e-6)
    assert "step 6" in said[0] and "step 6" not in said[1]
    assert (tmp_path / "run" / "samples" / "6.txt").exists()
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_a_signal_to_one_stops_both_and_they_resume(script, tmp_path):
    workdir, steps = tmp_path / "run", f"num_steps={NUM_STEPS}"
    # Sharded over devices of both: neither can save alone.
    mesh = ("mesh.data=1", "mesh.fsdp=4", "eval.every_steps=0")
    with started(script, workdir, steps, *mesh) as processes:
        while not (workdir / "checkpoints" / "3").exists():
            assert [process.poll() for process in processes] == [None, None]
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        assert [process.wait(timeout=60) for process in processes] == [75, 75]
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert max(step for step, _ in losses(workdir)) == saved
    codes, said = run(script, workdir, f"num_steps={saved + 2}", *mesh)
    assert codes == [0, 0], said
    assert f"training from step {saved} to" in said[0]
    assert (saved + 2, "train") in losses(workdir)


def test_a_mistake_that_one_finds_ends_both(script, tmp_path):
    """Only the first process looks at what the workdir's text was."""
    workdir = tmp_path / "run"
    (workdir / "checkpoints" / "3").mkdir(parents=True)
    config = "from lmjax import workdir, config; import pathlib, sys;"
    config += (
        "workdir.write_config(pathlib.Path(sys.argv[2]), config.load(sys.argv[1]))"
    )
    command = [sys.executable, "-c", config, str(script), str(workdir)]
    subprocess.run(command, check=True)
    (workdir / "data.json").write_text('{"config.data": "half')
    codes, said = run(script, workdir)
    assert codes == [2, 2]
    for text in said:
        assert "data.json:1: not JSON" in text
        assert "Traceback" not in text


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (("127.0.0.1:1",), "JAX_NUM_PROCESSES and JAX_PROCESS_ID: not set"),
        (("127.0.0.1:1", "2", "two"), "JAX_PROCESS_ID=two"),
        (("127.0.0.1:1", "2", "2"), "process_id"),
    ],
)
def test_half_a_launcher_is_one_line(script, tmp_path, values, part):
    command = [sys.executable, "-m", "lmjax.cli", "train", f"--config={script}"]
    command += [f"--workdir={tmp_path}"]
    environment = os.environ | dict(zip(LAUNCHER, values, strict=False))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and part in done.stderr
