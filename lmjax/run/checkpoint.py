"""Checkpoints, by Orbax: written in the background, visible once they are complete.

CheckpointManager writes into a temporary directory and renames it to its step: a
checkpoint is there if, and only if, a directory of that name is. Each chunk of an array
has a checksum (`checkpoint_format`), and so has the record of each checkpoint: whoever
reads a checkpoint verifies what it reads.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from lmjax.config.experiment import CheckpointConfig, Config
from lmjax.errors import UserError
from lmjax.models import Model
from lmjax.parallel import copies, processes, sharding
from lmjax.run import checkpoint_record
from lmjax.run.checkpoint_barrier import CommitBarrier
from lmjax.run.checkpoint_format import (
    array_handler,
    atomicity,
    check_supported,
    complete_steps,
    describe_error,
    restore_item,
    save_args,
)
from lmjax.run.checkpoint_items import host_bytes, items_of, state_of
from lmjax.run.checkpoint_manager import ITEMS, open_manager
from lmjax.run.checkpoint_record import LogMark, Record, read_record, shapes_of
from lmjax.types import Params, TrainState

# Errors of storage that may be gone at the next try.
TRANSIENT = [
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "ABORTED",
    "CANCELLED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
]

_POLL_SECONDS = 0.02

Step = int | Literal["best"] | None  # names a checkpoint; None is the newest

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class UnreadableError(UserError):
    """A checkpoint that cannot be read."""


class Checkpoints:
    """The checkpoints of one workdir: the newest few, and the best by a metric.

    The parameters are an item of their own and can be read without the optimizer state.
    """

    def __init__(
        self, workdir: Path, config: CheckpointConfig, *, read_only: bool = False
    ) -> None:
        self.directory = (workdir / "checkpoints").absolute()
        check_supported(self.directory)
        self.config = config
        self._metrics: dict[int, Mapping[str, float] | None] = {}  # read so far
        self._told = False  # whether a save in the background failed and was raised
        self._barrier = CommitBarrier(ocp.multihost.get_barrier_sync_fn())
        self.manager = open_manager(
            self.directory,
            config,
            find_best=self.best_of,
            barrier=self._barrier,
            read_only=read_only,
        )

    def save(
        self,
        state: TrainState,
        *,
        metrics: Mapping[str, float] | None,
        log_mark: LogMark | None = None,
    ) -> None:
        """Start to save a state: returns once it is copied off the devices.

        Args:
          state: its step names the checkpoint; one that exists already is kept.
          metrics: of the valid split at this step, if it was evaluated.
          log_mark: how much the run has logged by now.

        Raises:
          UserError: this checkpoint, or the one before it, cannot be written.
        """
        step = int(state.step)
        if step in self.steps():
            return
        self.wait()  # one save at a time: the host holds one copy of its part
        items = items_of(state)
        self._metrics[step] = dict(metrics) if metrics else None
        record = Record(
            shapes={item: shapes_of(tree) for item, tree in items.items()},
            metrics=self._metrics[step],
            log=log_mark,
        )
        args = {item: save_args(tree) for item, tree in items.items()}
        args[checkpoint_record.ITEM] = ocp.args.JsonSave(record.to_json())
        begin = time.perf_counter()
        with processes.sync_errors():
            self._write(
                lambda: self.manager.save(step, args=ocp.args.Composite(**args))
            )
        log.debug(
            "checkpoint %d: training waited %.2f s; %.1f MB of host memory are in use "
            "until it is written",
            *(step, time.perf_counter() - begin, host_bytes(items) / 1e6),
        )

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, oldest first."""
        return sorted(self.manager.all_steps())

    def restore(self, like: TrainState) -> TrainState | None:
        """Return the newest state that can be read, or None if there is no checkpoint.

        Checkpoints that are damaged are passed over and moved to
        `checkpoints.unreadable`.

        Args:
          like: shapes and shardings (`jax.ShapeDtypeStruct`). The mesh may be another
            than the one that the checkpoint was written on.

        Raises:
          UserError: no checkpoint can be read; or the newest holds another state, or
            cannot be read for a reason that may pass.
        """
        like_items = items_of(like)
        for step in reversed(self.steps()):
            items, error = self._try_restore(step, like_items)
            if items is not None:
                self._move_aside_after(step)
                return state_of(items)
            log.warning(
                "checkpoint %d cannot be read, trying the one before: %s", step, error
            )
        if self.steps():
            raise UserError(f"{self.directory}: no checkpoint here can be read")
        return None

    def best(self) -> int | None:
        """Return the step that is best by `best_metric`, or None if none has it."""
        return self.best_of(self.steps())

    def best_of(self, steps: Sequence[int]) -> int | None:
        """Return which of some steps is best by `best_metric`, or None."""
        scores = {
            step: self._score(values)
            for step in steps
            if (values := self._read_metrics(step))
            and self.config.best_metric in values
        }
        return max(scores, key=lambda step: (scores[step], step), default=None)

    def log_mark(self, step: int) -> LogMark | None:
        """Return how much was logged up to a step, if its checkpoint knows it."""
        record = self._read_record(step)
        return record.log if record else None

    def find(self, step: Step) -> int:
        """Return the step that is named, the best, or the newest.

        Raises:
          UserError: there is no such checkpoint.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.directory.parent}: holds no checkpoint")
        if step == "best":
            step = self.best()
            if step is None:
                metric = self.config.best_metric
                raise UserError(
                    f"--step=best: no checkpoint in {self.directory} has a value of "
                    f"config.checkpoint.best_metric = {metric!r}"
                )
        if step not in (None, *steps):
            raise UserError(
                f"--step={step}: not in {self.directory}; there are: "
                f"{self._list_steps()}"
            )
        return steps[-1] if step is None else step

    def _find_again(self, step: Step) -> int | None:
        try:
            return self.find(step)
        except UserError:
            return None

    def _list_steps(self) -> str:
        return ", ".join(map(str, self.steps())) or "none"

    def saved_at(self, step: int) -> str:
        """Return the time at which a step was saved, UTC to the nanosecond.

        No two checkpoints have the same: it identifies one.
        """
        record = self._read_record(step)
        nanoseconds = (
            record.saved_nanoseconds
            if record
            else self.manager.metadata(step).init_timestamp_nsecs or 0
        )
        seconds, rest = divmod(nanoseconds, 10**9)
        return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(seconds))}.{rest:09}"

    def read(self, step: Step, read: Callable[[int], Result]) -> Result:
        """Read the checkpoint that is named, while a run may be removing it.

        Args:
          step: names the checkpoint.
          read: called with its step; once more with that of another checkpoint, if
            `step` names that one by now.

        Raises:
          UserError: there is no such checkpoint, or it cannot be read.
        """
        while True:
            found = self.find(step)
            try:
                return read(found)
            except UnreadableError as error:
                self.manager.reload()
                if (named := self._find_again(step)) not in (None, found):
                    continue
                if named is None:
                    where = self.directory / str(found)
                    raise UserError(
                        f"{where}: a run removed it while it was read; there are: "
                        f"{self._list_steps()}"
                    ) from error
                others = [other for other in self.steps() if other != found]
                if others:
                    hint = f"--step={others[-1]} is there"
                    raise UnreadableError(f"{error} ({hint})") from error
                raise

    def restore_params(self, model: Model, mesh: Mesh, *, step: int) -> Params:
        """Return the parameters of a step, or their moving average if the run kept one.

        Args:
          model: theirs; its axes say how they are split.
          mesh: the devices to put them on.
          step: of a checkpoint that exists.

        Raises:
          UnreadableError: they cannot be read.
        """
        directory = self.directory / str(step)
        record = self._read_record(step)
        items = record.shapes if record else [path.name for path in _listed(directory)]
        item = "ema_params" if "ema_params" in items else "params"
        shardings = sharding.param_shardings(model.axes, model.shapes, mesh)
        like = {item: sharding.with_shardings(model.shapes, shardings)}
        try:
            with processes.sync_errors():
                parts = self._read_parts(step, like)
        except Exception as error:
            raise UnreadableError(
                f"{directory}: cannot be read: {describe_error(error)}"
            ) from error
        return copies.gather_copies(parts, like)[item]

    def _read_parts(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """Return items as this process reads them; no process waits for another.

        Several processes read no part twice: each reads, and verifies, parts of its
        own, for `copies.gather_copies` to exchange.
        """
        if processes.several_processes():
            like = copies.split_copies(like)
        directory = self.manager.directory / str(step)
        return {
            item: restore_item(directory / item, tree) for item, tree in like.items()
        }

    def wait(self) -> None:
        """Wait until all that was saved is on disk.

        Raises:
          UserError: it cannot be written.
        """
        while processes.any_process(
            self.manager.is_writing and not self.has_failed
        ) and not processes.any_process(self.has_failed):
            time.sleep(_POLL_SECONDS)
        self.check_for_errors()
        self._write(self.manager.wait_until_finished)

    def close(self) -> None:
        """Finish writing and release the directory."""
        if self._told:  # what failed was raised before
            self._barrier.give_up()
        try:
            self._write(self.manager.close)
        except UserError:
            if not self._told:
                raise

    @property
    def has_failed(self) -> bool:
        """Whether a checkpoint could not be written in the background."""
        return self.manager.failure is not None

    def check_for_errors(self) -> None:
        """Raise what went wrong in the background; all processes must call it together.

        Raises:
          UserError: the last checkpoint could not be written.
        """
        try:
            with processes.sync_errors():
                if self.manager.failure is not None:
                    raise self._describe_failure(self.manager.failure)
        except UserError:
            self._told = True
            raise

    def _read_record(self, step: int) -> Record | None:
        """Return the record of a checkpoint; None if it has none, or a damaged one."""
        try:
            return read_record(self.directory / str(step))
        except UserError as error:
            log.warning("%s", error)
            return None

    def _read_metrics(self, step: int) -> Mapping[str, float] | None:
        """Return the metrics of a checkpoint, None if they are damaged; read once."""
        if step not in self._metrics:
            try:
                found = checkpoint_record.read_metrics(self.directory / str(step))
            except UserError as error:
                log.warning("%s; its metrics count no more", error)
                found = None
            self._metrics[step] = found
        return self._metrics[step]

    def _score(self, metrics: Mapping[str, float]) -> float:
        """Return a number that is higher for better metrics."""
        value = metrics.get(self.config.best_metric, math.nan)
        return -as_loss(value, mode=self.config.best_mode)

    def _try_restore(
        self, step: int, like: dict[str, Any]
    ) -> tuple[dict[str, Any] | None, str]:
        """Return the items of a checkpoint, or None and the error of damaged files.

        Raises:
          UserError: the files are intact but belong to another run, or the error may
            pass.
        """
        parts, text = None, ""
        with processes.sync_errors():
            try:
                if not self._check_same_shapes(step, like):
                    log.info("checkpoint %d: has no checksums to verify", step)
                parts = self._read_parts(step, like)
            except UserError:
                raise
            except Exception as error:  # a damaged file may raise anything
                text = describe_error(error)
                if _is_transient(error):
                    raise UserError(
                        f"{self.directory / str(step)}: cannot be read now: {text} "
                        "(nothing was changed; run the same command again)"
                    ) from error
        if processes.any_process(parts is None):
            return None, text or "another process cannot read it"
        assert parts is not None
        return copies.gather_copies(parts, like), ""

    def _check_same_shapes(self, step: int, like: dict[str, Any]) -> bool:
        """Check that a checkpoint has the arrays, and their shapes, of this run.

        Returns:
          Whether it has a record; one of an earlier version has not.

        Raises:
          UserError: it has others; the first is named.
        """
        record = self._read_record(step)
        saved = record.shapes if record else self._shapes_in_metadata(step)
        where = f"{self.directory / str(step)}: not a checkpoint of this run"
        for item, tree in like.items():
            if item not in saved:
                raise UserError(f"{where}: it has no {item}")
            if saved[item] is None:  # damaged: found when it is restored
                continue
            expected, found = shapes_of(tree), saved[item] or {}
            for name in sorted(expected.keys() | found.keys()):
                a, b = found.get(name, "absent"), expected.get(name, "absent")
                if a != b:
                    raise UserError(f"{where}: {item}.{name} is {a} there, not {b}")
        return record is not None

    def _shapes_in_metadata(self, step: int) -> dict[str, Any]:
        """Return the shapes of each item by Orbax; None of one that is damaged."""
        metadata = self.manager.metadata(step)
        saved = metadata.item_metadata or {}
        trees = {item: saved.get(item) for item in metadata.item_handlers or ITEMS}
        return {
            item: None if tree is None else shapes_of(tree)
            for item, tree in trees.items()
        }

    def _move_aside_after(self, step: int) -> None:
        """Move the checkpoints after `step`, which could not be read, out of the way.

        They are not deleted: parts of them may still be recovered.
        """
        later = [other for other in self.steps() if other > step]
        aside = self.directory.with_name("checkpoints.unreadable")
        if later and processes.is_first():
            aside.mkdir(exist_ok=True)
            for other in later:
                taken = len(list(aside.glob(f"{other}*")))
                name = f"{other}.{taken}" if taken else str(other)
                (self.directory / str(other)).rename(aside / name)
                log.warning("checkpoint %d: moved to %s", other, aside / name)
        if processes.any_process(bool(later)):
            self.manager.reload()

    def _write(self, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as error:
            raise self._describe_failure(error) from error

    def _describe_failure(self, error: Exception) -> UserError:
        complete = complete_steps(self.directory)
        return UserError(
            f"{self.directory}: a checkpoint could not be written: "
            f"{describe_error(error)} (complete ones: {sorted(complete)})"
        )


def restore_params(
    workdir: Path, config: Config, model: Model, mesh: Mesh, *, step: Step = None
) -> Params:
    """Return the parameters of a workdir's checkpoint.

    Args:
      workdir: of a run.
      config: of that run.
      model: built from it.
      mesh: the devices to put the parameters on.
      step: names the checkpoint.

    Raises:
      UserError: there is no such checkpoint, or it cannot be read.
    """
    with open_checkpoints(workdir, config) as checkpoints:
        return checkpoints.read(
            step, lambda found: checkpoints.restore_params(model, mesh, step=found)
        )


@contextlib.contextmanager
def open_checkpoints(workdir: Path, config: Config) -> Iterator[Checkpoints]:
    """Open the checkpoints of a workdir for reading."""
    checkpoints = Checkpoints(workdir, config.checkpoint, read_only=True)
    with contextlib.closing(checkpoints):
        yield checkpoints


def save_params(workdir: Path, params: Params) -> None:
    """Save parameters that come from elsewhere, without a run, as step 0.

    They are written one after another: the host holds few of them at a time.

    Raises:
      UserError: they cannot be written.
    """
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    limit = 1 + math.ceil(largest / 1e9)  # orbax refuses an array as large as that
    directory = (workdir / "checkpoints").absolute()
    check_supported(directory)
    handlers = {
        "params": array_handler(
            save_concurrent_gb=limit, save_device_host_concurrent_gb=limit
        ),
        checkpoint_record.ITEM: ocp.JsonCheckpointHandler(checkpoint_record.FILE),
    }
    record = Record(shapes={"params": shapes_of(params)})
    args = ocp.args.Composite(
        params=save_args(params), record=ocp.args.JsonSave(record.to_json())
    )
    options = ocp.CheckpointManagerOptions(
        enable_async_checkpointing=False, atomicity_options=atomicity(directory)
    )
    try:
        with ocp.CheckpointManager(
            directory, options=options, item_handlers=handlers
        ) as manager:
            manager.save(0, args=args)
    except Exception as error:
        raise UserError(
            f"{directory}: cannot be written: {describe_error(error)}"
        ) from error


def as_loss(value: float, *, mode: str) -> float:
    """Return a metric as a number to minimize; NaN is worse than any number."""
    loss = value if mode == "min" else -value
    return math.inf if math.isnan(loss) else loss


def _is_transient(error: Exception) -> bool:
    """Return whether reading failed for a reason other than the checkpoint's files."""
    if isinstance(error, OSError):
        missing = FileNotFoundError | NotADirectoryError | IsADirectoryError
        return not isinstance(error, missing)
    return isinstance(error, MemoryError) or any(
        word in str(error) for word in TRANSIENT
    )


def _listed(directory: Path) -> list[Path]:
    return [*directory.iterdir()] if directory.is_dir() else []
