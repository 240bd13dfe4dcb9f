"""Batches made ahead of time by grain, in a thread or in worker processes."""

import atexit
import logging
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmjax.config.data import DataConfig
from lmjax.errors import UserError

if TYPE_CHECKING:
    from lmjax.types import HostBatch

_CHECK_SECONDS = 5.0  # between two looks at the worker processes
_PATIENCE_SECONDS = 60.0  # without a batch, before that is told
_WORKER_NAME = "grain-process-prefetch"
_WORKER_DIED = "terminated unexpectedly"  # in grain's error

_log = logging.getLogger(__name__)


def prefetch(source: Any, config: DataConfig) -> Generator["HostBatch", None, None]:
    """Yield the batches of a random-access source in order, made ahead of time.

    They are made in a thread, or in `config.num_workers` processes, to which the
    source is pickled. Closing the generator stops them, and so does the end of the
    program. Processes that are killed or stopped are started again: batches depend on
    their number alone.

    Args:
      source: has `__len__` and `__getitem__`, which returns a batch.
      config: the numbers of processes and of batches made ahead.

    Raises:
      UserError: the processes are killed again and again.
    """
    batches = _make_batches(source, config)
    _close_at_exit(batches)
    return batches


def _make_batches(
    source: Any, config: DataConfig
) -> Generator["HostBatch", None, None]:
    done, died_at = 0, -1
    with _Watch() as watch:
        while True:
            batches = _start(source, config, first=done)
            try:
                while True:
                    with watch:
                        batch = next(batches)
                    # Grain keeps it in memory shared with its workers.
                    yield {name: np.array(value) for name, value in batch.items()}
                    done += 1
            except StopIteration:
                return
            except RuntimeError as error:
                if _WORKER_DIED not in str(error):
                    raise
                if died_at == done:
                    raise UserError(
                        "a process that loads data was killed, again before it had "
                        "made a batch, probably because memory ran out; resume with a "
                        f"smaller config.data.num_workers (now {config.num_workers})"
                    ) from error
                died_at = done
                _log.warning("a process that loads data was killed: started again")
            finally:
                batches.close()


def _start(source: Any, config: DataConfig, *, first: int) -> Any:
    """Return an iterator over the batches from number `first` on."""
    import grain  # imports jax, which building stores does not need

    num_workers, ahead = config.num_workers, config.prefetch_batches
    batches = grain.MapDataset.source(source)[first:].to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
    )
    if num_workers:
        _mark_absl_flags_parsed()
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=num_workers, per_worker_buffer_size=-(-ahead // num_workers)
            ),
            worker_init_fn=_ignore_interrupts,
        )
    return iter(batches)


def _ignore_interrupts(index: int, count: int) -> None:
    """Leave SIGINT, which a terminal sends to all processes, to the one that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Watch:
    """Looks after the worker processes while a batch is waited for.

    One that was stopped is killed, for `_make_batches` to start again. Entered twice:
    around all batches, and around the wait for each.
    """

    def __init__(self) -> None:
        self.depth, self.since, self.told = 0, 0.0, False
        self.stopped: set[int] = set()  # process ids, at the last look
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Watch":
        self.depth += 1
        self.since, self.told = time.monotonic(), False
        if self.depth == 1:
            self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.depth -= 1
        if not self.depth:
            self.ended.set()

    def _watch(self) -> None:
        while not self.ended.wait(_CHECK_SECONDS):
            waited = time.monotonic() - self.since
            if self.depth < 2 or waited < _CHECK_SECONDS:
                self.stopped = set()
                continue
            self._kill_stopped()
            if waited > _PATIENCE_SECONDS and not self.told:
                self.told = True
                _log.warning("no batch of data for %d seconds; waiting", waited)

    def _kill_stopped(self) -> None:
        """Kill the workers that are stopped now and were at the last look."""
        workers = [
            child.pid
            for child in multiprocessing.active_children()
            if child.name.startswith(_WORKER_NAME) and child.pid is not None
        ]
        stopped = {pid for pid in workers if _is_stopped(pid)}
        for pid in stopped & self.stopped:
            _log.warning("process %d, which loads data, is stopped: killed", pid)
            os.kill(pid, signal.SIGKILL)
        self.stopped = stopped


def _is_stopped(pid: int) -> bool:
    """Return whether SIGSTOP has stopped a process, where the system has /proc."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        )
    except (OSError, IndexError):
        return False


def _close_at_exit(batches: Generator["HostBatch", None, None]) -> None:
    """End the worker processes before the interpreter exits, if they still run."""
    reference = weakref.ref(batches)

    def close() -> None:
        if (generator := reference()) is not None:
            generator.close()

    atexit.register(close)


def _mark_absl_flags_parsed() -> None:
    """Let grain start processes where absl's flags are not parsed, as in a notebook."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
