"""The datasets of a run: its tokenizer, and the stores of its splits."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.config.data import SourceConfig
from lmjax.config.experiment import Config
from lmjax.data.stores.example_store import ExampleStore
from lmjax.data.stores.token_store import TokenStore
from lmjax.data.tokenizers.tokenizer import Tokenizer

Store = TokenStore | ExampleStore


@dataclasses.dataclass(frozen=True, kw_only=True)
class Datasets:
    """A tokenizer, and for each split a store of each source."""

    tokenizer: Tokenizer
    stores: Mapping[str, Sequence[Any]]  # of `Store`, all of one kind


def source_configs(config: Config) -> dict[str, SourceConfig]:
    """Return the sources, more than one in a mixture, by their paths in the config."""
    if config.data.source != "mixture":
        return {"config.data": config.data}
    mixture = config.data.mixture
    return {f"config.data.mixture[{i}]": source for i, source in enumerate(mixture)}
