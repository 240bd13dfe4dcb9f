"""A real Slurm runs, preempts, requeues and finishes a job of two nodes."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tools.launch import slurm_cluster
from tools.launch import slurm
from tools.launch.job import Job
from tools.launch.slurm import job_state

ROOT = Path(__file__).parents[3]
NUM_STEPS = 200
CONFIG = {
    "num_steps": NUM_STEPS,
    "batch_size": 8,
    "model": {"dim": 16, "num_layers": 1, "num_heads": 2, "max_length": 32},
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "text", "document": "line", "length": 32},
    "eval": {"every_steps": 0},
    "checkpoint": {"every_steps": 100},
    "log": {"tensorboard": False, "every_steps": 20},
}

pytestmark = pytest.mark.skipif(
    bool(slurm_cluster.why_not()), reason=slurm_cluster.why_not()
)


@pytest.fixture(scope="module")
def cluster():
    with slurm_cluster.start() as environ, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", environ["SLURM_CONF"])
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


@pytest.fixture
def argv(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line number {i} of the text\n" for i in range(200)))
    config = {**CONFIG, "data": {**CONFIG["data"], "path": str(text)}}
    (tmp_path / "x.py").write_text(f"def get_config():\n    return {config!r}\n")
    workdir = tmp_path / 'a run\'s "workdir" 100%'
    return [f"--config={tmp_path / 'x.py'}", f"--workdir={workdir}"], workdir


def test_a_preempted_job_of_two_nodes_finishes(cluster, argv):
    flags, workdir = argv
    command = [sys.executable, str(ROOT / "tools/launch.py"), "slurm", *flags]
    more = ["--nodes=2", "--time=10", "--requeue"]
    submitted = subprocess.run(
        [*command, *more],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )
    number = re.search(r"submitted job (\d+)", submitted.stdout)[1]
    wait_for(lambda: last_step(workdir) >= 20, number, workdir)
    subprocess.run(["scancel", "--signal=TERM", number], check=True)
    start = time.monotonic()
    wait_for(lambda: "requeue 1 of 20" in log(workdir, number), number, workdir)
    stopped, saved = time.monotonic() - start, last_checkpoint(workdir)
    wait_for(lambda: last_step(workdir) > saved, number, workdir)
    again = time.monotonic() - start
    assert wait_for(lambda: job_state(number)[1] is not None, number, workdir) == 0
    text = log(workdir, number)
    assert text.count("Exited with exit code 75") == 2
    assert "requeued 1 times" in text
    assert 0 < saved < NUM_STEPS and last_checkpoint(workdir) == NUM_STEPS
    steps = [line["step"] for line in metrics(workdir) if line["split"] == "train"]
    assert steps == list(range(20, NUM_STEPS + 1, 20))
    print(f"stopped {stopped:.1f} s and training {again:.1f} s after SIGTERM; 0 steps")


STOPS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("began as", os.environ.get("SLURM_ARRAY_TASK_ID"), flush=True)
time.sleep(0 if "SLURM_RESTART_COUNT" in os.environ else 60)
"""


class Stops(Job):
    """A training that goes on until it is stopped for the first time."""

    def train_command(self, program=(), *, distributed=False):
        return [sys.executable, "-c", STOPS]


class StopsAlone(Stops):
    alone = True


def submit(kind, workdir):
    """Submit a job for two nodes; return its number and a function that reads logs."""
    parser = argparse.ArgumentParser()
    for flag in slurm.FLAGS:
        parser.add_argument(flag.name, **flag.options)
    flags = parser.parse_args(["--time=10", "--nodes=2", "--requeue"])
    job = kind(config="x.py", workdir=str(workdir))
    assert slurm.launch(job, flags, dry_run=False) == 0
    logs = lambda: "".join(path.read_text() for path in workdir.glob("logs/*.log"))
    return submitted_number(), logs


@pytest.mark.parametrize("fault", ["another job", "a node"])
def test_slurm_preempts_a_job_or_loses_its_node(fault, cluster, tmp_path):
    number, logs = submit(Stops, tmp_path)
    wait_until(lambda: logs().count("began as") == 2)
    start = time.monotonic()
    if fault == "a node":  # which its daemon, that still runs, brings back
        down = ["scontrol", "update", "NodeName=z-second", "State=DOWN", "Reason=test"]
        subprocess.run(down, check=True)
    else:
        other = ["sbatch", "--partition=high", "--output=/dev/null", "--wrap=sleep 1"]
        subprocess.run(other, check=True)
    wait_until(lambda: job_state(number)[0] == "PENDING")
    wait_until(lambda: logs().count("began as") == 4)
    print(f"{fault}: began again {time.monotonic() - start:.1f} s later")
    wait_until(lambda: job_state(number)[1] == 0)
    assert "requeued 1 times" in logs()


def test_one_worker_of_several_is_requeued_alone(cluster, tmp_path):
    number, logs = submit(StopsAlone, tmp_path)
    for index, begun in ((1, 2), (2, 3)):  # the last has the number of the array
        wait_until(lambda: logs().count("began as") == begun)  # noqa: B023
        task = f"{number}_{index}"
        subprocess.run(["scancel", "--signal=TERM", task], check=True)
        wait_until(lambda: logs().count("began as") == begun + 1)  # noqa: B023
    assert sorted(re.findall("began as (.)", logs())) == ["1", "1", "2", "2"]
    assert logs().count("requeue 1 of 20") == 2
    wait_until(lambda: not submitted_number())


def submitted_number():
    """Return the number of the newest job, or nothing if there is none."""
    command = ["squeue", "--noheader", "--format=%F"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return max(done.stdout.split(), key=int, default="")


def wait_until(is_true, *, seconds=60):
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def wait_for(is_true, number, workdir, *, seconds=240):
    """Wait until a condition holds, and return the job's exit code if it has ended."""
    deadline = time.monotonic() + seconds
    while True:
        _, code = job_state(number)
        if is_true():
            return code
        assert not code and time.monotonic() < deadline, log(workdir, number)
        time.sleep(0.3)


def log(workdir, number):
    path = workdir / "logs" / f"slurm-{number}.log"
    return path.read_text() if path.exists() else ""


def metrics(workdir):
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def last_step(workdir):
    return max((line["step"] for line in metrics(workdir)), default=0)


def last_checkpoint(workdir):
    steps = (p.name for p in (workdir / "checkpoints").iterdir())
    return max(int(name) for name in steps if name.isdigit())
