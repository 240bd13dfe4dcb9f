"""Plan the training of a config on a machine."""

from collections.abc import Mapping
from typing import Any

from lmjax.config.experiment import Config
from lmjax.data import pipeline
from lmjax.plan.compile import compile_step
from lmjax.plan.estimate import judge
from lmjax.plan.target import Target


def plan(
    config: Config,
    target: Target,
    *,
    tokens: float | None = None,
    price: float | None = None,
) -> dict[str, Any]:
    """Compile the training step of a config for a machine, and say what it needs.

    Args:
      config: the experiment.
      target: the machine.
      tokens: to train on; by default those of the config's steps.
      price: dollars for an hour of one chip.

    Returns:
      A dict of JSON values: `fits`, `memory` by group in bytes, `collectives`, `flops`,
      `roofline`, `training`.

    Raises:
      UserError: the machine, the mesh or a kernel do not go together.
    """
    measured = compile_step(pipeline.resolve_vocabulary(config), target)
    return judge(
        measured, target, tokens=count_tokens(config, measured, tokens), price=price
    )


def count_tokens(
    config: Config, measured: Mapping[str, Any], tokens: float | None
) -> float:
    """Return the tokens to train on: the given ones, or those of all steps."""
    return config.num_steps * measured["tokens"] if tokens is None else tokens
