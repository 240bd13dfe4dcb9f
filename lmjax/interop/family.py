"""What lmjax knows of one family of models of Hugging Face's transformers."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from lmjax.config import ModelConfig
from lmjax.interop.layout import Table
from lmjax.interop.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How to read and write the models of one `model_type`."""

    model_type: str
    architectures: tuple[str, ...]  # that are read
    defaults: Mapping[str, Any]  # of transformers' config class
    # Fields of our model config, from the settings and the tensors' names.
    config_from_hf: Callable[[Settings, Collection[str]], dict[str, Any]]
    # Settings, `architectures` included. What they cannot say is lost: the caller
    # reads them back and compares.
    config_to_hf: Callable[[Any], dict[str, Any]]
    table: Callable[[ModelConfig], Table]
    kind: str = "decoder"
    # Fields of our task config, where the files hold a head for one.
    task_from_hf: Callable[[Settings, Collection[str]], dict[str, Any]] = (
        lambda settings, names: {}
    )

    def settings(self, values: Mapping[str, Any], *, where: str) -> Settings:
        """Return the settings of a config.json of this family."""
        return Settings(values, self.defaults, where=where)


def has(names: Collection[str], ending: str) -> bool:
    """Return whether one of the tensors is called so, prefixes aside."""
    return any(name == ending or name.endswith("." + ending) for name in names)
