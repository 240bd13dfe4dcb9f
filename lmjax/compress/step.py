"""A step of compression: from a language model to a smaller one."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmjax import models
from lmjax.config.model import ModelConfig
from lmjax.errors import UserError
from lmjax.inference.language_model import LanguageModel
from lmjax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One way to make a model smaller.

    Attributes:
      record: what `compress.json` of the new workdir says of it.
      apply: from a model to the smaller one; it raises `UserError` if it cannot.
    """

    record: dict[str, Any]
    apply: Callable[[LanguageModel], LanguageModel]


def choose_steps(
    *, calibrate: Path | None = None, num_windows: int | None = None
) -> list[Step]:
    """Return the steps that flags of `lmjax compress` ask for, in their order.

    Args:
      calibrate: the text of steps that read one.
      num_windows: of it; by default 64.

    Raises:
      UserError: a flag is wrong, or none asks for a step.
    """
    if num_windows and calibrate is None:
        raise UserError(f"--windows={num_windows}: needs --calibrate=FILE")
    steps: list[Step] = []
    if not steps:
        raise UserError("--quantize: must be given")
    return steps


def change_model(
    lm: LanguageModel, params: Params, config: ModelConfig
) -> LanguageModel:
    """Return the same language model with other parameters, of another config."""
    platform = lm.mesh.devices.flat[0].platform
    return dataclasses.replace(
        lm,
        config=dataclasses.replace(lm.config, model=config),
        model=models.build(config.for_inference(), platform=platform),
        params=params,
    )
