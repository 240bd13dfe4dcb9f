"""A step of compression: from a language model to a smaller one."""

import dataclasses
from collections.abc import Callable
from typing import Any

from lmjax import models
from lmjax.config.model import ModelConfig
from lmjax.inference.language_model import LanguageModel
from lmjax.nn import lora
from lmjax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One way to make a model smaller.

    Attributes:
      record: what `compress.json` of the new workdir says of it.
      apply: from a model to the smaller one; it raises `UserError` if it cannot.
      reads_text: whether it reads the text of --calibrate.
    """

    record: dict[str, Any]
    apply: Callable[[LanguageModel], LanguageModel]
    reads_text: bool = False


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


def merge_adapters(lm: LanguageModel) -> LanguageModel:
    """Return the same language model with its adapters merged into the weights."""
    if not lm.config.model.adapter_rank:
        return lm
    params, config = lora.merge_adapters(lm.params, lm.config.model)
    return change_model(lm, params, config)
