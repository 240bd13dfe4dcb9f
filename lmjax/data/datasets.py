"""The tokenizer and the stores of a run."""

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
    """What a run reads: a tokenizer, and for each split a store of each part."""

    tokenizer: Tokenizer
    stores: Mapping[str, Sequence[Any]]  # of `Store`, all of one kind


def source_parts(config: Config) -> dict[str, SourceConfig]:
    """Return the sources by their paths in the config."""
    if config.data.source != "mixture":
        return {"config.data": config.data}
    return {f"config.data.mixture[{i}]": p for i, p in enumerate(config.data.mixture)}
