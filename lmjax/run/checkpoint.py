"""Checkpoints, by Orbax: written in the background, whole or not at all."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from lmjax.config.experiment import CheckpointConfig
from lmjax.errors import ConfigError, UserError
from lmjax.parallel import processes
from lmjax.types import Params, TrainState

ITEMS = ("params", "ema_params", "train")
# What storage says when it may well answer another time.
TRANSIENT = [
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "ABORTED",
    "CANCELLED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
]

Step = int | Literal["best"] | None  # of a checkpoint; None: the newest

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one workdir: the newest few, and the best by a metric.

    The parameters are an item of their own, so that they can be read without the
    optimizer's state.
    """

    def __init__(
        self, workdir: Path, config: CheckpointConfig, *, read_only: bool = False
    ) -> None:
        self.directory = (workdir / "checkpoints").absolute()
        self.config = config
        policies: list[Any] = [preserve.LatestN(config.keep)]
        if config.best_metric:
            policies.append(
                preserve.BestN(
                    get_metric_fn=self._goodness,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preserve.AnyPreservationPolicy(policies),
            best_fn=self._goodness,  # without it orbax forgets metrics on resuming
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,
            create=not read_only,
        )
        handlers = {item: ocp.StandardCheckpointHandler() for item in ITEMS}
        with _errors_alone():  # it warns of what it was asked for: to read only
            self.manager = ocp.CheckpointManager(
                self.directory, options=options, item_handlers=handlers
            )

    def save(self, state: TrainState, *, metrics: Mapping[str, float] | None) -> None:
        """Copy the state off the devices, and go on while it is being written."""
        step = int(state.step)
        if step in self.steps():
            return
        items = _items(state)
        args = {item: ocp.args.StandardSave(tree) for item, tree in items.items()}
        with processes.sync_errors():
            self._guard(
                lambda: self.manager.save(
                    step,
                    args=ocp.args.Composite(**args),
                    metrics=dict(metrics) if metrics else None,
                )
            )

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, oldest first."""
        return sorted(self.manager.all_steps())

    def restore(self, like: TrainState) -> TrainState | None:
        """Return the newest state that can be read, or None if there are none at all.

        Args:
          like: shapes and shardings (`jax.ShapeDtypeStruct`); they may be those of
            another mesh than the one the checkpoint was written on.

        Raises:
          ConfigError: there are checkpoints, but none can be read; or the newest holds
            another state than this, or cannot be read just now.
        """
        like_items = _items(like)
        for step in reversed(self.steps()):
            items, error = self._try(step, like_items)
            if items is not None:
                self._set_aside_after(step)
                return _state(items)
            log.warning(
                "checkpoint %d cannot be read, trying the one before: %s", step, error
            )
        if self.steps():
            raise ConfigError(f"{self.directory}: no checkpoint here can be read")
        return None

    def best(self) -> int | None:
        """Return the step that is best by `best_metric`, or None if none is known."""
        known = {step: self.manager.metrics(step) for step in self.steps()}
        of = {s: m for s, m in known.items() if m and self.config.best_metric in m}
        return max(of, key=lambda step: (self._goodness(of[step]), step), default=None)

    def find(self, step: Step) -> int:
        """Return the step asked for, the best, or the newest.

        Raises:
          ConfigError: there is none.
        """
        steps = self.steps()
        if not steps:
            raise ConfigError(f"{self.directory.parent}: holds no checkpoint")
        if step == "best":
            step = self.best()
            if step is None:
                metric = self.config.best_metric
                raise ConfigError(
                    f"--step=best: no checkpoint in {self.directory} tells its "
                    f"config.checkpoint.best_metric = {metric!r}"
                )
        if step not in (None, *steps):
            have = ", ".join(map(str, steps))
            raise ConfigError(
                f"--step={step}: not in {self.directory}; there are: {have}"
            )
        return steps[-1] if step is None else step

    def saved_at(self, step: int) -> str:
        """Return when a step was saved: no two checkpoints are of the same moment."""
        moment = self.manager.metadata(step).init_timestamp_nsecs or 0
        seconds, rest = divmod(moment, 10**9)
        return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(seconds))}.{rest:09}"

    def restore_params(self, like: Params, *, step: int, ema: bool) -> Params:
        """Return the parameters of a step, or their average if the run kept one.

        Raises:
          ConfigError: they cannot be read.
        """
        item = "ema_params" if ema else "params"
        try:
            args = ocp.args.Composite(**{item: ocp.args.StandardRestore(like)})
            return self.manager.restore(step, args=args)[item]
        except Exception as error:
            raise ConfigError(
                f"{self.directory / str(step)}: cannot be read: {_first_line(error)}"
            ) from error

    def wait(self) -> None:
        """Return when everything saved is on disk."""
        with processes.sync_errors():
            self._guard(self.manager.wait_until_finished)

    def close(self) -> None:
        """Finish writing and let go of the directory."""
        self._guard(self.manager.close)

    def _goodness(self, metrics: Mapping[str, float]) -> float:
        value = metrics.get(self.config.best_metric, math.nan)
        return -as_loss(value, mode=self.config.best_mode)

    def _try(
        self, step: int, like: dict[str, Any]
    ) -> tuple[dict[str, Any] | None, str]:
        """Return a checkpoint's items, or None and what is wrong with its files.

        Raises:
          ConfigError: nothing is wrong with them, but they are not of this run; or
            what is wrong may pass.
        """
        args = {item: ocp.args.StandardRestore(tree) for item, tree in like.items()}
        items, text = None, ""
        with processes.sync_errors():
            try:
                self._refuse_other_state(step, like)
                items = self.manager.restore(step, args=ocp.args.Composite(**args))
            except UserError:
                raise
            except Exception as error:  # whatever a damaged file makes of itself
                text = _first_line(error)
                if _may_pass(error):
                    raise ConfigError(
                        f"{self.directory / str(step)}: cannot be read now: {text} "
                        "(nothing was changed; run the same command again)"
                    ) from error
        if processes.any_process(items is None):
            return None, text or "another process cannot read it"
        assert items is not None
        return {item: items[item] for item in like}, ""

    def _refuse_other_state(self, step: int, like: dict[str, Any]) -> None:
        """Raise if a checkpoint can be read, but holds other arrays than these.

        Raises:
          ConfigError: naming one of them.
        """
        metadata = self.manager.metadata(step)
        saved = metadata.item_metadata or {}
        where = f"{self.directory / str(step)}: not a checkpoint of this run"
        for item, tree in like.items():
            if metadata.item_handlers and item not in metadata.item_handlers:
                raise ConfigError(f"{where}: it has no {item}")
            if saved.get(item) is None:  # its files do not tell: they are damaged
                continue
            ours, theirs = _shapes(tree), _shapes(saved[item])
            for name in sorted(ours.keys() | theirs.keys()):
                a, b = theirs.get(name, "absent"), ours.get(name, "absent")
                if a != b:
                    raise ConfigError(f"{where}: {item}.{name} is {a} there, not {b}")

    def _set_aside_after(self, step: int) -> None:
        """Move the checkpoints after `step`, which could not be read, out of the way.

        They are renamed, not deleted: someone may yet make something of them.
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

    def _guard(self, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as error:
            raise ConfigError(
                f"{self.directory}: a checkpoint could not be written: "
                f"{_first_line(error)} (complete ones: {self.steps()})"
            ) from error


@contextlib.contextmanager
def _errors_alone() -> Iterator[None]:
    """Keep what orbax says below an error to itself."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def save_params(workdir: Path, params: Params) -> None:
    """Save parameters that come from elsewhere, with no run behind them, as step 0.

    They go to disk one after another: the host never holds many beside the devices.

    Raises:
      ConfigError: they cannot be written.
    """
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    limit = 1 + math.ceil(largest / 1e9)  # orbax refuses an array as large as that
    directory = (workdir / "checkpoints").absolute()
    handler = ocp.PyTreeCheckpointHandler(
        save_concurrent_gb=limit, save_device_host_concurrent_gb=limit
    )
    args = ocp.args.Composite(params=ocp.args.PyTreeSave(params))
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    try:
        with ocp.CheckpointManager(
            directory, options=options, item_handlers={"params": handler}
        ) as manager:
            manager.save(0, args=args)
    except Exception as error:
        raise ConfigError(
            f"{directory}: cannot be written: {_first_line(error)}"
        ) from error


def _items(state: TrainState) -> dict[str, Any]:
    """Return the state in parts that can be read alone, its key as plain numbers."""
    key: Any = state.key
    if isinstance(key, jax.ShapeDtypeStruct):
        data = jax.eval_shape(jax.random.key_data, key)
        key = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=key.sharding)
    else:
        key = jax.random.key_data(key)
    train = {
        "step": state.step,
        "opt_state": state.opt_state,
        "key": key,
        "num_skipped": state.num_skipped,
    }
    if state.carry is not None:
        train["carry"] = state.carry
    items = {"params": state.params, "ema_params": state.ema_params, "train": train}
    return {item: tree for item, tree in items.items() if tree is not None}


def _state(items: dict[str, Any]) -> TrainState:
    train = items["train"]
    return TrainState(
        step=train["step"],
        params=items["params"],
        opt_state=train["opt_state"],
        key=jax.random.wrap_key_data(train["key"]),
        num_skipped=train["num_skipped"],
        ema_params=items.get("ema_params"),
        carry=train.get("carry"),
    )


def as_loss(value: float, *, mode: str) -> float:
    """Return a number that is the less the better; infinity for what is no number."""
    loss = value if mode == "min" else -value
    return math.inf if math.isnan(loss) else loss


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array by its name."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _may_pass(error: Exception) -> bool:
    """Return whether reading failed for a reason that is not in the checkpoint."""
    if isinstance(error, OSError):
        missing = FileNotFoundError | NotADirectoryError | IsADirectoryError
        return not isinstance(error, missing)
    return isinstance(error, MemoryError) or any(
        word in str(error) for word in TRANSIENT
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
