"""The description of a family: all Hugging Face models of one `model_type`."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from lmjax.interop.hf_config import HFConfig
from lmjax.interop.table import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How the models of one `model_type` are read and written.

    Attributes:
      model_type: as config.json has it.
      architectures: the classes of transformers that can be read.
      defaults: of the keys of config.json, as in transformers' config class.
      config_from_hf: returns fields of the model config, given the config.json and the
        names of the tensors, which show the heads that the files hold.
      config_to_hf: returns the config.json of a model config. Fields that the family
        cannot express may be lost: `registry.choose_family` reads it and compares.
      table: returns the table of a model config.
      kind: of the model config.
      unused_fields: returns the fields of a model config that change nothing in a model
        of this family.
      base_architecture: the class without a head, whose tensors lack the prefix of the
        table. "": none is exported.
      has_tagger: whether a decoder has a class that labels tokens.
    """

    model_type: str
    architectures: tuple[str, ...]
    defaults: Mapping[str, Any]
    config_from_hf: Callable[[HFConfig, Collection[str]], dict[str, Any]]
    config_to_hf: Callable[[Any], dict[str, Any]]
    table: Callable[[Any], Table]
    kind: Literal["decoder", "encoder", "encoder_decoder"] = "decoder"
    unused_fields: Callable[[Any], tuple[str, ...]] = lambda config: ()
    base_architecture: str = ""
    has_tagger: bool = True

    @property
    def label_architectures(self) -> tuple[str, ...]:
        """The classes of a decoder that predict the label of a text, and of tokens."""
        if self.kind != "decoder" or not self.base_architecture:
            return ()
        prefix = self.base_architecture.removesuffix("Model")
        kinds = ("Sequence", "Token") if self.has_tagger else ("Sequence",)
        return tuple(f"{prefix}For{kind}Classification" for kind in kinds)

    def prefix_to_drop(self, architecture: str, table: Table) -> str:
        """Return the prefix that the tensor names of a class lack, or ""."""
        return table.prefix if architecture == self.base_architecture else ""


def has_tensor(tensors: Collection[str], name: str) -> bool:
    """Return whether a tensor is among `tensors`, with any prefix or none."""
    return any(other == name or other.endswith("." + name) for other in tensors)
