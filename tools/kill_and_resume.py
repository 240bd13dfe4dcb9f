"""Interrupt a training run at random steps, and compare it with an uninterrupted run.

    python tools/kill_and_resume.py [--rounds=5] [--seed=0] [--config=FILE.py]

Each round kills the run with SIGKILL a few steps after it has started, starts it again,
and stops it with SIGTERM a few steps later. At the end the logged losses, the
parameters and the optimizer state must be those of the uninterrupted run, bit for bit.
The exit code is 0 if they are, and 1 if not.
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

# A small model with dropout; metrics at each step, a checkpoint every 20 steps.
OVERRIDES = {
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
    """Train with and without interruptions; return 0 if the results are equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="experiments/lm/quickstart.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as directory:
        reference, killed = Path(directory) / "reference", Path(directory) / "killed"
        train(args.config, reference).wait()
        for signal_number in [signal.SIGKILL, signal.SIGTERM] * args.rounds:
            interrupt(args.config, killed, signal_number, after=rng.randint(3, 12))
        train(args.config, killed).wait()
        return 0 if compare(reference, killed) else 1


def train(config: str, directory: Path) -> subprocess.Popen:
    """Start `lmjax train` in a new process."""
    command = [sys.executable, "-m", "lmjax.cli", "train", f"--config={config}"]
    command += [f"--workdir={directory}"]
    command += [f"--config.{leaf}={value}" for leaf, value in OVERRIDES.items()]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def interrupt(config: str, directory: Path, signal_number: int, *, after: int) -> None:
    """Train, and send a signal once `after` more steps are in the log."""
    goal = len(read_losses(directory)) + after
    process = train(config, directory)
    while len(read_losses(directory)) < goal and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal_number)
    code = process.wait()
    name, step = signal.Signals(signal_number).name, len(read_losses(directory))
    print(f"{name} after step {step}: exit code {code}", flush=True)


def read_losses(directory: Path) -> list[tuple[int, float, float]]:
    """Return the step, the loss and the gradient norm of each logged step."""
    path = directory / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = (json.loads(line) for line in text.splitlines(True) if line.endswith("\n"))
    names = ("step", "loss", "grad_norm")
    return [tuple(line[n] for n in names) for line in lines if line["split"] == "train"]


def compare(one: Path, other: Path) -> bool:
    """Return whether the logs and the last checkpoints of two workdirs are equal."""
    same_logs = read_losses(one) == read_losses(other)
    equal = jax.tree.leaves(
        jax.tree.map(np.array_equal, read_state(one), read_state(other))
    )
    print(f"losses of {len(read_losses(one))} steps equal: {same_logs}")
    print(f"arrays of the last checkpoint equal: {sum(equal)} of {len(equal)}")
    return same_logs and all(equal)


def read_state(directory: Path) -> dict:
    """Return the parameters and the training state of the last checkpoint."""
    config = workdir.read_config(directory).checkpoint
    checkpoints = Checkpoints(directory, config, read_only=True)
    items = checkpoints.manager.restore(checkpoints.find(None))
    return {item: items[item] for item in ("params", "train")}


if __name__ == "__main__":
    sys.exit(main())
