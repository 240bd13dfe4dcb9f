"""Disturb trainings of several processes, and compare what they come to.

    python tools/chaos.py processes [--count=50] [--seed=0]

Each fault hits a training that `tools/launch.py local` started, at a random moment; the
training is then started again, every other time with another number of processes on the
same number of devices. Prints a line for each fault, and in the end a table: the fault,
how often, seconds from it to the end of the job, seconds from the restart until it
trains again, and steps that had to be done again. A fault counts as survived if the job
ended within its bound and said why, nothing that was complete was lost, and the
parameters of the finished run are those of one that was not disturbed.
"""

import collections
import contextlib
import dataclasses
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax.config.experiment import CheckpointConfig
from lmjax.run.checkpoint import Checkpoints
from lmjax.run.checkpoint_format import restore_item
from tools.kill_and_resume import read_losses

NUM_STEPS, SAVED_EVERY, NUM_DEVICES = 240, 20, 4
CONFIG = {
    "num_steps": NUM_STEPS,
    "batch_size": 8,
    "model": {"dim": 32, "num_layers": 1, "num_heads": 2, "dropout": 0.1},
    "tokenizer": {"kind": "bytes"},
    "data": {
        "source": "text",
        "document": "line",
        "length": 32,
        "num_store_workers": 1,
    },
    "optim": {"learning_rate": 1e-3, "schedule": "constant"},
    "checkpoint": {"every_steps": SAVED_EVERY},
    "eval": {"every_steps": 0, "num_batches": 1},
    "log": {"every_steps": 1, "tensorboard": False},
}
DISK_MEGABYTES = 96
RELATIVE = 1e-6  # how far parameters of other numbers of processes may be
GIVE_UP_SECONDS = 240.0
_STARTED = re.compile(r"training from step (\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """What is done to a job, within what time it must end, and what it must say."""

    act: Callable[["Campaign", "Job"], None]
    seconds: float
    says: str  # a pattern
    damages: bool = False  # the newest checkpoint, so that one older is resumed from
    after: bool = False  # done once the job was killed, before it is started again


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one fault."""

    name: str
    seconds_to_end: float
    seconds_to_train: float
    steps_lost: int
    problems: tuple[str, ...]


class Job:
    """A training of several processes, and what it prints."""

    def __init__(self, config: Path, workdir: Path, *, processes: int) -> None:
        self.workdir, self.processes = workdir, processes
        command = [sys.executable, "tools/launch.py", "local", f"--config={config}"]
        command += [f"--workdir={workdir}", f"--processes={processes}"]
        command += [f"--devices_per_process={NUM_DEVICES // processes}"]
        self.start = time.monotonic()
        self.lines: list[str] = []
        self.resumed_at: int | None = None
        self.seconds_to_train = float("nan")
        self.popen = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=Path(__file__).parents[1],
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append(line.rstrip())
            if self.resumed_at is None and (found := _STARTED.search(line)):
                self.resumed_at = int(found[1])
                self.seconds_to_train = time.monotonic() - self.start

    def wait_until_training(self) -> bool:
        """Wait until it trains; return whether it does."""
        while self.resumed_at is None and self.popen.poll() is None:
            if time.monotonic() - self.start > GIVE_UP_SECONDS:
                return False
            time.sleep(0.02)
        self.reader.join(timeout=0.2 * (self.popen.poll() is not None))
        return self.resumed_at is not None

    def wait_for_end(self) -> float:
        """Return the seconds until it ended; infinite if it never did."""
        begin = time.monotonic()
        try:
            self.popen.wait(timeout=GIVE_UP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return float("inf")
        self.reader.join(timeout=5.0)
        return time.monotonic() - begin

    def ranks(self) -> dict[int, int]:
        """Return the process ids of its processes, by rank."""
        found = {}
        for pid in _descendants(self.popen.pid):
            with contextlib.suppress(OSError):
                text = (
                    Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
                )
                values = dict(
                    line.split("=", 1) for line in text.split("\0") if "=" in line
                )
                if "JAX_PROCESS_ID" in values:
                    found.setdefault(int(values["JAX_PROCESS_ID"]), pid)
        return found

    def kill(self) -> None:
        """Kill all of its processes, the launcher first."""
        pids = [self.popen.pid, *_descendants(self.popen.pid)]
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.popen.wait()


def _descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    found = []
    for task in Path("/proc").glob(f"{pid}/task/*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def _signal_one(number: int) -> Callable[["Campaign", Job], None]:
    def act(campaign: "Campaign", job: Job) -> None:
        ranks = job.ranks()
        rank = campaign.rng.choice(sorted(ranks))
        campaign.detail = f"rank {rank}"
        os.kill(ranks[rank], number)

    return act


def _kill_all(campaign: "Campaign", job: Job) -> None:
    for pid in job.ranks().values():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _tell_launcher(campaign: "Campaign", job: Job) -> None:
    job.popen.send_signal(signal.SIGTERM)


def _fill_disk(campaign: "Campaign", job: Job) -> None:
    with contextlib.suppress(OSError), campaign.ballast.open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
            file.flush()


def _damage(how: str) -> Callable[["Campaign", Job], None]:
    """Return a function that damages a file of the newest checkpoint.

    Files of each kind take their turns.
    """

    def act(campaign: "Campaign", job: Job) -> None:
        newest = job.workdir / "checkpoints" / str(max(complete_steps(job.workdir)))
        kinds: dict[str, list[Path]] = {}
        for file in sorted(p for p in newest.rglob("*") if p.is_file()):
            if file.stat().st_size:
                kind = "data" if file.parent.name == "d" else file.name
                kinds.setdefault(
                    f"{file.relative_to(newest).parts[0]}/{kind}", []
                ).append(file)
        names = sorted(kinds)
        name = names[campaign.num_damaged % len(names)]
        campaign.num_damaged += 1
        campaign.detail = name
        file = campaign.rng.choice(kinds[name])
        content = bytearray(file.read_bytes())
        if how == "truncate":
            del content[campaign.rng.randrange(len(content)) :]
        else:
            content[campaign.rng.randrange(len(content))] ^= (
                1 << campaign.rng.randrange(8)
            )
        file.write_bytes(content)

    return act


def _lose_store(campaign: "Campaign", job: Job) -> None:
    shutil.rmtree(job.workdir / "store")


_KILLED = r"SIGKILL|killed|is gone|lost|died|silent"
FAULTS = {
    "kill -9 one": Fault(act=_signal_one(signal.SIGKILL), seconds=15, says=_KILLED),
    "kill -9 all": Fault(act=_kill_all, seconds=15, says=_KILLED),
    "SIGTERM to one": Fault(
        act=_signal_one(signal.SIGTERM), seconds=30, says="saved|resume|stopped"
    ),
    "SIGTERM to all": Fault(act=_tell_launcher, seconds=30, says="SIGTERM"),
    "SIGSTOP one": Fault(
        act=_signal_one(signal.SIGSTOP), seconds=60, says="process|silent|hang"
    ),
    "full disk": Fault(act=_fill_disk, seconds=60, says="No space left"),
    "truncated file": Fault(
        act=_damage("truncate"), seconds=15, says=_KILLED, damages=True, after=True
    ),
    "flipped bit": Fault(
        act=_damage("flip"), seconds=15, says=_KILLED, damages=True, after=True
    ),
    "lost store": Fault(act=_lose_store, seconds=15, says=_KILLED, after=True),
}


def complete_steps(workdir: Path) -> list[int]:
    """Return the steps of the checkpoints that are complete."""
    names = (path.name for path in (workdir / "checkpoints").glob("*"))
    return sorted(int(name) for name in names if name.isdigit())


class Campaign:
    """Trainings that are disturbed, one fault after another.

    Args:
      config: the experiment.
      root: where the workdirs are; its disk can be filled.
      rng: decides what happens when.
    """

    def __init__(self, config: Path, root: Path, rng: random.Random) -> None:
        self.config, self.root, self.rng = config, root, rng
        self.ballast = root / "ballast"
        self.outcomes: list[Outcome] = []
        self.detail, self.num_damaged = "", 0
        self.runs = itertools.count()
        self.num_different = 0

    def begin(self) -> float:
        """Train without a fault; return how long it trained."""
        job = Job(self.config, self.root / "reference", processes=2)
        assert job.wait_until_training(), "\n".join(job.lines)
        seconds = job.wait_for_end()
        assert job.popen.returncode == 0, "\n".join(job.lines)
        print(f"undisturbed: {seconds:.1f} s for {NUM_STEPS} steps", flush=True)
        return seconds

    def run(self, count: int, *, seconds: float) -> None:
        """Do so many faults; `seconds` is how long a run trains without."""
        names = [*itertools.islice(itertools.cycle(FAULTS), count)]
        self.rng.shuffle(names)
        workdir, processes = self._next_run()
        job = Job(self.config, workdir, processes=processes)
        for name in names:
            self.detail = ""
            if not job.wait_until_training():
                workdir, job = self._finish_run(job)
                if not job.wait_until_training():
                    raise RuntimeError("\n".join(job.lines))
            job, workdir = self._disturb(job, workdir, name, seconds=seconds)
        job.wait_for_end()
        while job.popen.returncode:  # stopped by the last fault
            job = Job(self.config, workdir, processes=2)
            job.wait_for_end()
        self._compare(workdir)

    def _next_run(self) -> tuple[Path, int]:
        return self.root / f"run-{next(self.runs)}", 2

    def _finish_run(self, job: Job) -> tuple[Path, Job]:
        job.wait_for_end()
        self._compare(job.workdir)
        shutil.rmtree(job.workdir)
        workdir, processes = self._next_run()
        return workdir, Job(self.config, workdir, processes=processes)

    def _disturb(
        self, job: Job, workdir: Path, name: str, *, seconds: float
    ) -> tuple[Job, Path]:
        """Let one fault happen, and start the job again."""
        fault = FAULTS[name]
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.popen.wait(timeout=self.rng.uniform(0.0, 0.6 * seconds))
        while fault.damages and len(complete_steps(workdir)) < 2 and self._runs(job):
            time.sleep(0.02)
        if not self._runs(job):  # it was quicker: the next run is disturbed
            workdir, job = self._finish_run(job)
            job.wait_until_training()
            while (
                fault.damages and len(complete_steps(workdir)) < 2 and self._runs(job)
            ):
                time.sleep(0.02)
        (_kill_all if fault.after else fault.act)(self, job)
        to_end = job.wait_for_end()
        if fault.after:
            fault.act(self, job)
        self.ballast.unlink(missing_ok=True)
        done = max((line[0] for line in read_losses(workdir)), default=0)
        complete = complete_steps(workdir)
        processes = self.rng.choice([1, 4, 2, 2])
        again = Job(self.config, workdir, processes=processes)
        trains = again.wait_until_training()
        problems = [*self._judge(fault, job, to_end)]
        if not trains and again.wait_for_end() and again.popen.returncode:
            problems.append(f"does not start again: {again.lines[-1:]}")
        at = done if again.resumed_at is None else again.resumed_at
        expected = [0, *complete][-2 if fault.damages else -1]
        if at < expected:
            problems.append(f"resumed at {at}, though {expected} was complete")
        outcome = Outcome(
            name=name,
            seconds_to_end=to_end,
            seconds_to_train=again.seconds_to_train,
            steps_lost=done - at,
            problems=tuple(problems),
        )
        self.outcomes.append(outcome)
        print(
            f"{name} {self.detail} at step {done} of {job.processes} processes: code "
            f"{job.popen.returncode} after {to_end:.1f} s; {processes} processes train "
            f"again after {again.seconds_to_train:.1f} s, {done - at} steps lost"
            f"{''.join(f'; PROBLEM: {p}' for p in problems)}",
            flush=True,
        )
        print(f"    {job.lines[-1] if job.lines else '(nothing said)'}", flush=True)
        return again, workdir

    def _runs(self, job: Job) -> bool:
        return job.popen.poll() is None

    def _judge(self, fault: Fault, job: Job, seconds: float) -> Iterator[str]:
        """Yield what was wrong with how a job ended."""
        said = "\n".join(job.lines[-40:])
        if seconds > fault.seconds:
            yield f"ended after {seconds:.0f} s, not {fault.seconds:.0f}"
        if not re.search(fault.says, said):
            yield f"did not say why ({fault.says})"
        if "Traceback" in said:
            yield "printed a traceback"

    def _compare(self, workdir: Path) -> None:
        """Compare the end of a run with that of the undisturbed one."""
        if complete_steps(workdir)[-1:] != [NUM_STEPS]:
            self.num_different += 1
            print(f"{workdir.name} did not finish; PROBLEM", flush=True)
            return
        pairs = zip(
            jax.tree.leaves(read_arrays(workdir)),
            jax.tree.leaves(read_arrays(self.root / "reference")),
            strict=True,
        )
        worst = max(map(relative_difference, *zip(*pairs, strict=True)))
        steps = [line[0] for line in read_losses(workdir)]
        complete = steps == [*range(1, NUM_STEPS + 1)]
        same = worst <= RELATIVE and complete
        self.num_different += not same
        text = "bit for bit" if not worst else f"to {worst:.1e}"
        print(
            f"{workdir.name} finished: parameters equal {text}; each step logged once: "
            f"{complete}{'' if same else '; PROBLEM'}",
            flush=True,
        )

    def report(self) -> int:
        """Print the table; return 0 if there was no problem."""
        by_name = collections.defaultdict(list)
        for outcome in self.outcomes:
            by_name[outcome.name].append(outcome)
        print(f"{'fault':<16}{'times':>6}{'to the end':>12}{'training':>10}{'lost':>6}")
        for name, found in by_name.items():
            columns = (
                max(outcome.seconds_to_end for outcome in found),
                max(outcome.seconds_to_train for outcome in found),
                max(outcome.steps_lost for outcome in found),
            )
            print(
                f"{name:<16}{len(found):>6}{columns[0]:>11.1f}s{columns[1]:>9.1f}s"
                f"{columns[2]:>6}"
            )
        problems = sum(bool(outcome.problems) for outcome in self.outcomes)
        print(
            f"{len(self.outcomes)} faults (seconds and steps are the largest), "
            f"{problems} with problems, {self.num_different} runs that differ"
        )
        return int(bool(problems or self.num_different))


def read_arrays(workdir: Path) -> dict[str, Any]:
    """Return the newest parameters and training state, whatever devices wrote them."""
    config = CheckpointConfig()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def leaf(array: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=here)

    with contextlib.closing(Checkpoints(workdir, config, read_only=True)) as opened:
        step = opened.find(None)
        trees = opened.manager.metadata(step).item_metadata
        like = {
            item: jax.tree.map(leaf, trees[item].tree) for item in ("params", "train")
        }
        return {
            item: restore_item(opened.manager.directory / str(step) / item, tree)
            for item, tree in like.items()
        }


def relative_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference, relative to the largest element."""
    one, other = np.asarray(one), np.asarray(other)
    if np.array_equal(one, other):
        return 0.0
    scale = np.abs(other).max() or 1.0
    return float(np.abs(one.astype(float) - other).max() / scale)


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """Mount a disk of its own at a directory, which can be filled."""
    size = ["-o", f"size={DISK_MEGABYTES}m"]
    subprocess.run(["mount", "-t", "tmpfs", *size, "tmpfs", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def disturb_processes(root: Path, rng: random.Random, *, count: int) -> int:
    """Run a campaign below `root`; return 0 if nothing went wrong."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(root / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    text, config = root / "text.txt", root / "tiny.py"
    words = random.Random(0).choices(["to", "be", "or", "not", "that", "is"], k=9000)
    text.write_text("\n".join(" ".join(words[i : i + 9]) for i in range(0, 9000, 9)))
    sections = {**CONFIG, "data": {**CONFIG["data"], "path": str(text)}}
    config.write_text(f"def get_config():\n    return {sections!r}\n")
    disk = root / "disk"
    disk.mkdir()
    with small_disk(disk):
        campaign = Campaign(config, disk, rng)
        try:
            campaign.run(count, seconds=campaign.begin())
        finally:
            code = campaign.report()
    return code
