"""Orbax's checkpoint manager, set up as runs need it."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from lmjax.config.experiment import CheckpointConfig
from lmjax.parallel import processes
from lmjax.run import checkpoint_record
from lmjax.run.checkpoint_barrier import CommitBarrier
from lmjax.run.checkpoint_format import array_handler, atomicity

ITEMS = ("params", "ema_params", "train")
SAVE_SECONDS = 1200  # to write a checkpoint: then it has failed

FindBest = Callable[[Sequence[int]], int | None]  # among steps


class Manager(ocp.CheckpointManager):
    """Tells at once when writing fails in the background, and when it is over.

    Orbax tells it at the next save, after a barrier for which a process that failed
    waits in vain. It also leaves the metrics to the record: one damaged file of Orbax's
    ends any run.
    """

    failure: Exception | None = None
    is_writing = False

    def metrics(self, step: int) -> None:
        """Return None for what lies in the files of earlier versions."""

    def _wait_for_checkpointers(self) -> None:
        try:
            super()._wait_for_checkpointers()
        except Exception as error:
            self.failure = error
            raise

    def _finalize(self, step: int, steps_to_remove: list[int]) -> None:
        try:
            super()._finalize(step, steps_to_remove)
        except Exception as error:
            self.failure = self.failure or error
            raise
        finally:
            self.is_writing = False

    def save(self, step: int, *args: Any, **kwargs: Any) -> bool:
        """Save in the background."""
        self.is_writing = True
        try:
            return bool(super().save(step, *args, **kwargs))
        except BaseException:
            self.is_writing = False
            raise


class _KeepBest:
    """Preserves the checkpoint that is best by `best_metric`."""

    def __init__(self, config: CheckpointConfig, find_best: FindBest) -> None:
        self.config = config
        self.find_best = find_best

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> Sequence[bool]:
        if not self.config.best_metric:
            return [False] * len(checkpoints)
        best = self.find_best([info.step for info in checkpoints])
        return [info.step == best for info in checkpoints]


def open_manager(
    directory: Path,
    config: CheckpointConfig,
    *,
    find_best: FindBest,
    barrier: CommitBarrier,
    read_only: bool,
) -> Manager:
    """Open the manager of a directory of checkpoints.

    Args:
      directory: is made if it is written to.
      config: says how many are kept.
      find_best: the best of some steps is kept, too.
      barrier: which all processes pass before a checkpoint is complete.
      read_only: nothing is written or removed.

    Raises:
      UserError: the directory cannot be made by the first process.
    """
    policies: list[Any] = [preserve.LatestN(config.keep), _KeepBest(config, find_best)]
    several = processes.several_processes()
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preserve.AnyPreservationPolicy(policies),
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        save_interval_steps=0 if read_only else 1,
        create=not read_only and not several,
        async_options=ocp.AsyncOptions(
            timeout_secs=SAVE_SECONDS, barrier_sync_fn=barrier
        ),
        multiprocessing_options=_multiprocessing_options(),
        atomicity_options=atomicity(directory),
    )
    if not read_only and several:
        with processes.sync_errors():
            if processes.is_first():
                directory.mkdir(parents=True, exist_ok=True)
    handlers: dict[str, Any] = {item: array_handler() for item in ITEMS}
    handlers[checkpoint_record.ITEM] = ocp.JsonCheckpointHandler(checkpoint_record.FILE)
    make = lambda: Manager(directory, options=options, item_handlers=handlers)
    with _quiet_orbax():  # it warns that it was asked to only read
        try:
            return make()
        except FileNotFoundError:  # a run has just removed a checkpoint
            return make()


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Silence what orbax logs below an error."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _multiprocessing_options() -> Any:
    """Let Orbax's barriers have a timeout: those of all devices have none."""
    if not processes.several_processes():
        return ocp.options.MultiprocessingOptions()
    everyone = {*range(jax.process_count())}
    return ocp.options.MultiprocessingOptions(active_processes=everyone)
