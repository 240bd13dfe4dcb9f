"""Kill and stop a training run at random moments, and compare it with one left alone.

    python tools/kill_and_resume.py [--rounds=5] [--seed=0] [--config=FILE.py]

Each round kills the run with SIGKILL a few steps after it began, starts it again, and
stops it with SIGTERM a few steps later. At the end the logged losses, the parameters
and the optimizer state must be those of a run that was never stopped, bit for bit.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from lmjax.run import workdir
from lmjax.run.checkpoint import Checkpoints

# Small and with dropout; a metric for each step, a checkpoint every twenty.
LEAVES = {
    "num_steps": 160,
    "model.dim": 64,
    "model.dropout": 0.1,
    "optim.warmup_steps": 10,
    "checkpoint.every_steps": 20,
    "eval.every_steps": 0,
    "eval.num_batches": 1,
    "eval.compressors": False,
    "sample.prompts": "()",
    "log.every_steps": 1,
    "log.tensorboard": False,
}


def main() -> int:
    """Return 0 if both runs ended alike, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="experiments/lm/quickstart.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as directory:
        alone, killed = Path(directory) / "alone", Path(directory) / "killed"
        train(args.config, alone).wait()
        for number in [signal.SIGKILL, signal.SIGTERM] * args.rounds:
            interrupt(args.config, killed, number, after=rng.randint(3, 12))
        train(args.config, killed).wait()
        return 0 if same(alone, killed) else 1


def train(config: str, directory: Path) -> subprocess.Popen:
    """Start the training command."""
    command = [sys.executable, "-m", "lmjax.cli", "train", f"--config={config}"]
    command += [f"--workdir={directory}"]
    command += [f"--config.{leaf}={value}" for leaf, value in LEAVES.items()]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def interrupt(config: str, directory: Path, number: int, *, after: int) -> None:
    """Send a signal once the run has logged `after` steps more than before."""
    goal = len(losses(directory)) + after
    process = train(config, directory)
    while len(losses(directory)) < goal and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    code = process.wait()
    name, step = signal.Signals(number).name, len(losses(directory))
    print(f"{name} after step {step}: exit code {code}", flush=True)


def losses(directory: Path) -> list[tuple[int, float, float]]:
    """Return what was logged of each training step."""
    path = directory / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    whole = (json.loads(line) for line in text.splitlines(True) if line.endswith("\n"))
    names = ("step", "loss", "grad_norm")
    return [tuple(line[n] for n in names) for line in whole if line["split"] == "train"]


def same(one: Path, other: Path) -> bool:
    """Compare the logs and the last checkpoints of two workdirs, and print how."""
    logs = losses(one) == losses(other)
    equal = jax.tree.leaves(jax.tree.map(np.array_equal, state(one), state(other)))
    print(f"losses of {len(losses(one))} steps the same: {logs}")
    print(f"arrays of the last checkpoint the same: {sum(equal)} of {len(equal)}")
    return logs and all(equal)


def state(directory: Path) -> dict:
    """Return all that the last checkpoint holds."""
    config = workdir.read_config(directory).checkpoint
    checkpoints = Checkpoints(directory, config, read_only=True)
    items = checkpoints.manager.restore(checkpoints.find(None))
    return {item: items[item] for item in ("params", "train")}


if __name__ == "__main__":
    sys.exit(main())
