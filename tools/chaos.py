"""Damage files, interrupt runs and fill disks, and tell what was not noticed.

    python -m tools.chaos flips   [--count=500] [--seed=0]
    python -m tools.chaos signals [--count=60] [--seed=0]
    python -m tools.chaos disks   (as root, on Linux)
    python -m tools.chaos processes [--count=50] [--seed=0]   (as root, on Linux)

flips: flips bits at random places in all files of a checkpoint and of a store. Each is
told (the run falls back, or ends in one line), or is in bytes that nothing reads; if
values change without a word, it is silent. signals: sends signals at random moments of
runs; after all of them the run must be that which was never stopped, bit for bit.
disks: trains with each folder of a workdir in turn on a disk that is full. processes:
kills, stops and starves trainings of several processes (`chaos_processes.py`). The exit
code is 0 if nothing was silent, differed, hung, or printed a traceback.
"""

import argparse
import collections
import contextlib
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from lmjax.config.experiment import CheckpointConfig
from lmjax.data.stores import verification
from lmjax.data.stores.store_manifest import is_example_store
from lmjax.data.stores.token_store import TokenStore
from lmjax.errors import UserError
from lmjax.run.checkpoint import Checkpoints
from tools.chaos_processes import disturb_processes
from tools.kill_and_resume import compare, read_losses

CONFIG = {
    "num_steps": 60,
    "batch_size": 4,
    "model": {
        "dim": 32,
        "num_layers": 2,
        "num_heads": 2,
        "max_length": 64,
        "dropout": 0.1,
    },
    "tokenizer": {"kind": "sentencepiece", "algorithm": "bpe", "vocab_size": 300},
    "data": {"source": "text", "document": "line", "length": 64},
    "optim": {"learning_rate": 1e-2, "warmup_steps": 10},
    "checkpoint": {"every_steps": 10, "best_metric": "loss"},
    "eval": {"every_steps": 20},
    "sample": {"prompts": ("the ",), "max_tokens": 8, "every_steps": 15},
    "log": {"every_steps": 1},
}
ITEMS = ("params", "train")
# What a run may print without having been disturbed begins with one of these.
EXPECTED_LINES = ("training from", "step ", "finished at", "results", "next", "stopped")


def main() -> int:
    """Run one part; return 0 if it found nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("flips", "signals", "disks", "processes"))
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        if args.part == "processes":
            return disturb_processes(root, rng, count=args.count or 50)
        config = write_experiment(root)
        begin = time.monotonic()
        printed = finish(config, root / "reference")
        seconds = time.monotonic() - begin
        if args.part == "flips":
            return flip_bits(root, rng, count=args.count or 500)
        if args.part == "signals":
            count = args.count or 60
            return send_signals(
                config, root, rng, count=count, seconds=seconds, printed=printed
            )
        return fill_disks(config, root, patience=120 + 10 * seconds)


def write_experiment(root: Path) -> Path:
    """Write a text and the config file of a tiny model of it."""
    text = "the cat sat on a mat and saw that all was well in its small house"
    words = text.split()
    lines = random.Random(0).choices(words, k=9000)
    corpus, config = root / "text.txt", root / "tiny.py"
    corpus.write_text("\n".join(" ".join(lines[i : i + 9]) for i in range(0, 9000, 9)))
    sections = {**CONFIG, "data": {**CONFIG["data"], "path": str(corpus)}}
    config.write_text(f"def get_config():\n    return {sections!r}\n")
    return config


def command(config: Path, directory: Path) -> list[str]:
    """Return the command line of a run."""
    argv = [sys.executable, "-m", "lmjax.cli", "train", f"--config={config}"]
    return [*argv, f"--workdir={directory}"]


def finish(config: Path, directory: Path) -> list[str]:
    """Train to the end, and return the lines that are printed on the way."""
    done = subprocess.run(
        command(config, directory), check=True, capture_output=True, text=True
    )
    return done.stderr.splitlines()


def flip_bits(root: Path, rng: random.Random, *, count: int) -> int:
    """Flip bits of a checkpoint and of a store, one at a time."""
    workdir = root / "reference"
    checkpoint = max((workdir / "checkpoints").iterdir(), key=lambda p: int(p.name))
    store = workdir / "store" / "train"
    assert not is_example_store(store)
    expected = read_store(store)
    step = int(checkpoint.name)
    config = CheckpointConfig(best_metric="loss")
    with contextlib.closing(Checkpoints(workdir, config)) as checkpoints:
        saved = {
            int(path.name): checkpoints.manager.restore(int(path.name))
            for path in checkpoint.parent.iterdir()
        }
        best = checkpoints.best()
    outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
    messages = Messages()
    logging.getLogger("lmjax").addHandler(messages)
    logging.getLogger("lmjax").propagate = False
    for kind, directory in (("checkpoint", checkpoint), ("store", store)):
        files = sorted(
            p for p in directory.rglob("*") if p.is_file() and p.stat().st_size
        )
        for _ in range(count // 2):
            file = rng.choice(files)
            messages.lines.clear()
            with flipped(file, rng):
                try:
                    if kind == "store":
                        same = read_store(store) == expected
                    else:
                        same = read_checkpoint(workdir, config, step, saved, best)
                except UserError as error:
                    messages.lines.append(str(error))
                    same = True
            told = bool(messages.lines)
            if not told and not same:
                print(f"SILENT: {file.relative_to(directory)}")
            elif told:
                print(f"{file.relative_to(directory)}: {messages.lines[0]}")
            outcome = "told" if told else "nothing reads it" if same else "SILENT"
            outcomes[kind, outcome] += 1
    for (kind, outcome), number in sorted(outcomes.items()):
        print(f"{kind}: {number} {outcome}")
    return int(any(outcome == "SILENT" for _, outcome in outcomes))


class Messages(logging.Handler):
    """Keeps the lines that a user would see."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def flipped(file: Path, rng: random.Random):
    """Flip one bit of a file for a while."""
    original = file.read_bytes()
    content = bytearray(original)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(original)


def read_store(directory: Path) -> tuple:
    """Return all that a store says, once it is verified."""
    try:
        store = TokenStore(directory)
        verification.verify([store])
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    tokens = store.read(0, store.num_tokens).tobytes()
    starts = store.document_starts(0, store.num_tokens).tobytes()
    return tokens, starts, store.counts, store.fingerprint


def read_checkpoint(
    workdir: Path, config: CheckpointConfig, step: int, saved: dict, best: int | None
) -> bool:
    """Return whether a checkpoint, if it can be read, is what it was."""
    with contextlib.closing(
        Checkpoints(workdir, config, read_only=True)
    ) as checkpoints:
        like = {item: jax.eval_shape(lambda x: x, saved[step][item]) for item in ITEMS}
        put = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=put), like
        )
        items, error = checkpoints._try_restore(step, like)
        if items is None:
            raise UserError(error)
        same_arrays = all(
            jax.tree.leaves(
                jax.tree.map(
                    lambda a, b: np.array_equal(a, b, equal_nan=False),
                    items,
                    {item: saved[step][item] for item in ITEMS},
                )
            )
        )
        return same_arrays and checkpoints.best() == best


def send_signals(
    config: Path,
    root: Path,
    rng: random.Random,
    *,
    count: int,
    seconds: float,
    printed: list[str],
) -> int:
    """Interrupt a run again and again, until so many signals were sent.

    A run takes `seconds` if it is not interrupted, and ends with lines of `printed`.
    """
    reference, directory = root / "reference", root / "run-0"
    faults, sent, runs = 0, 0, 0
    kinds = ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGINT SIGINT"]
    while sent < count:
        kind = rng.choice(kinds)
        code, lines = interrupt(
            command(config, directory),
            [signal.Signals[name] for name in kind.split()],
            after=rng.uniform(0.0, seconds),
            patience=120 + 10 * seconds,
        )
        sent += 1
        unexpected = [n for n in find_unexpected(lines) if n not in printed]
        traceback = any("Traceback" in line for line in lines)
        steps = len(read_losses(directory))
        print(f"{kind} at step {steps}: exit code {code}", *unexpected[:3], flush=True)
        if code is None or traceback or len(unexpected) > 1:
            faults += 1
        if code == 0:
            faults += not is_same_run(directory, reference)
            runs, directory = runs + 1, root / f"run-{runs + 1}"
    finish(config, directory)
    faults += not is_same_run(directory, reference)
    print(f"{sent} signals, {runs + 1} runs, {faults} faults")
    return int(faults > 0)


def is_same_run(directory: Path, reference: Path) -> bool:
    """Return whether two runs have the same end, log and samples."""
    samples = [
        {path.name: path.read_text() for path in (d / "samples").iterdir()}
        for d in (directory, reference)
    ]
    print(f"samples equal: {samples[0] == samples[1]}")
    return compare(directory, reference) and samples[0] == samples[1]


def interrupt(
    argv: list[str], signals: list[int], *, after: float, patience: float
) -> tuple[int | None, list[str]]:
    """Start a program, send signals; return its exit code and what it printed then.

    The code is None if it has not ended after `patience` seconds.
    """
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(argv, stderr=stderr, stdout=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        printed = os.fstat(stderr.fileno()).st_size
        for number in signals:
            process.send_signal(number)
            time.sleep(0.2 * (len(signals) > 1))
        try:
            code = process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            code = None
            process.kill()
        stderr.seek(printed)
        return code, stderr.read().decode(errors="replace").splitlines()


def find_unexpected(lines: list[str]) -> list[str]:
    """Return the lines that an undisturbed run does not print."""
    return [n for n in lines if n.strip() and not n.startswith(EXPECTED_LINES)]


def fill_disks(config: Path, root: Path, *, patience: float) -> int:
    """Train with each folder of a workdir on a full disk; none may hang."""
    faults = 0
    folders = ("checkpoints", "tensorboard", "samples", "store", "tokenizer", "")
    for folder in folders:
        workdir = root / f"full-{folder or 'workdir'}"
        mounted = workdir / folder
        mounted.mkdir(parents=True)
        small = folder in ("samples", "tokenizer")  # so that little fills them
        size = ["-o", f"size={4 if small else 24}k"]
        subprocess.run(["mount", "-t", "tmpfs", *size, "tmpfs", mounted], check=True)
        try:
            done = subprocess.run(
                command(config, workdir),
                capture_output=True,
                text=True,
                timeout=patience,
            )
            code, lines = done.returncode, done.stderr.splitlines()
        except subprocess.TimeoutExpired:
            code, lines = None, []
        finally:
            subprocess.run(["umount", "-l", mounted], check=True)
        unexpected = find_unexpected(lines)
        traceback = any("Traceback" in line for line in lines)
        print(f"{folder or 'workdir'} full: exit code {code}", *unexpected, sep="\n  ")
        faults += code not in (0, 2) or traceback
        shutil.rmtree(workdir, ignore_errors=True)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
