"""Checkpoints, by Orbax: written in the background, whole or not at all."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from lmjax.config import CheckpointConfig, ConfigError
from lmjax.types import Params, TrainState

ITEMS = ("params", "ema_params", "train")

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
        policies: list[Any] = [preserve.LatestN(config.keep)]
        if config.best_metric:
            policies.append(
                preserve.BestN(
                    get_metric_fn=lambda metrics: metrics[config.best_metric],
                    reverse=config.best_mode == "min",
                    n=1,
                )
            )
        self.manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preserve.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                save_interval_steps=0 if read_only else 1,
                create=not read_only,
            ),
            item_handlers={item: ocp.StandardCheckpointHandler() for item in ITEMS},
        )

    def save(self, state: TrainState, *, metrics: Mapping[str, float] | None) -> None:
        """Copy the state off the devices, and go on while it is being written."""
        step = int(state.step)
        if step in self.steps():
            return
        items = _items(state)
        args = {item: ocp.args.StandardSave(tree) for item, tree in items.items()}
        self._guard(
            lambda: self.manager.save(
                step,
                args=ocp.args.Composite(**args),
                metrics=dict(metrics) if metrics else None,
            )
        )

    def save_params(self, params: Params, *, step: int) -> None:
        """Save parameters that come from elsewhere, with no run behind them."""
        args = ocp.args.Composite(params=ocp.args.StandardSave(params))
        self._guard(lambda: self.manager.save(step, args=args))

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, oldest first."""
        return sorted(self.manager.all_steps())

    def restore(self, like: TrainState) -> TrainState | None:
        """Return the newest state that can be read, or None if there are none at all.

        Args:
          like: shapes and shardings (`jax.ShapeDtypeStruct`); they may be those of
            another mesh than the one the checkpoint was written on.

        Raises:
          ConfigError: there are checkpoints, but none can be read.
        """
        items = _items(like)
        args = {item: ocp.args.StandardRestore(tree) for item, tree in items.items()}
        for step in reversed(self.steps()):
            try:
                items = self.manager.restore(step, args=ocp.args.Composite(**args))
            except Exception as error:  # whatever a damaged file makes of itself
                log.warning(
                    "checkpoint %d cannot be read, trying the one before: %s",
                    step,
                    _first_line(error),
                )
                continue
            return _state({item: items[item] for item in args})
        if self.steps():
            raise ConfigError(f"{self.directory}: no checkpoint here can be read")
        return None

    def find(self, step: int | None) -> int:
        """Return the step asked for, or the newest.

        Raises:
          ConfigError: there is none.
        """
        steps = self.steps()
        if not steps or step not in (None, *steps):
            have = ", ".join(map(str, steps)) or "none"
            raise ConfigError(
                f"--step={step}: not in {self.directory}; there are: {have}"
            )
        return steps[-1] if step is None else step

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
        self._guard(self.manager.wait_until_finished)

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints after `step`, which could not be read."""
        for later in self.steps():
            if later > step:
                self.manager.delete(later)

    def close(self) -> None:
        """Finish writing and let go of the directory."""
        self._guard(self.manager.close)

    def _guard(self, write: Any) -> None:
        try:
            write()
        except Exception as error:
            raise ConfigError(
                f"{self.directory}: a checkpoint could not be written: "
                f"{_first_line(error)} (complete ones: {self.steps()})"
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
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
