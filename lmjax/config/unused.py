"""Leaves that are set, but that other leaves leave without effect.

These are no errors: an experiment may set leaves for its own choice while the command
line selects another one. They are told when an experiment is loaded.
"""

import dataclasses
import operator
from collections.abc import Iterator
from typing import Any

from lmjax.errors import show

_LEARNED, _ROPE, _RELATIVE = ("learned",), ("rope",), ("relative",)
_TRAINED = ("sentencepiece",)
_RECORDS = ("jsonl", "tsv", "csv", "parquet", "arrow")
_TEXT_FILES = (
    *("text", "jsonl", "tsv", "csv", "conll", "props", "parallel", "squad", "chat"),
)
_FILES = (*_TEXT_FILES, "parquet", "arrow")
# For each leaf the one that decides whether it has an effect, and the values with which
# it has; (): all but 0, "" and ().
_NEEDS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "data": {
        "field": ("source", (*_RECORDS, "tfds")),
        "document": ("source", ("text",)),
        "columns": ("source", ("conll", "props")),
        "valid_path": ("source", _FILES),
        "test_path": ("source", _FILES),
        "encoding": ("source", _TEXT_FILES),
        "markup": ("source", ("text", *_RECORDS)),
        **dict.fromkeys(
            ("train_split", "valid_split", "test_split"), ("source", ("tfds",))
        ),
    },
    "tokenizer": dict.fromkeys(
        ("algorithm", "lossless", "num_training_bytes"), ("kind", _TRAINED)
    ),
    "task.distill": dict.fromkeys(
        ("temperature", "weight", "hidden", "relations"), ("teacher", ())
    ),
    "sample": dict.fromkeys(
        ("max_tokens", "temperature", "top_k", "top_p"), ("prompts", ())
    ),
    "model": {
        "position_offset": ("position", _LEARNED),
        **dict.fromkeys(
            (
                "rope_theta",
                "rope_scaling",
                "rope_factor",
                "rope_low_frequency_factor",
                "rope_high_frequency_factor",
                "rope_original_length",
            ),
            ("position", _ROPE),
        ),
        **dict.fromkeys(
            ("relative_buckets", "relative_max_distance"), ("position", _RELATIVE)
        ),
        "global_every": ("window", ()),
    },
}


def unused_leaves(config: Any) -> Iterator[str]:
    """Yield a line for each leaf of a `Config` that is set, but has no effect."""
    for name, needs in _NEEDS.items():
        section = operator.attrgetter(name)(config)
        yield from _unused(section, needs, f"config.{name}")
    for i, source in enumerate(config.data.mixture):
        yield from _unused(source, _NEEDS["data"], f"config.data.mixture[{i}]")
    if config.data.source == "mixture":
        yield from _unused_in_mixture(config.data)


def _unused(
    section: Any, needs: dict[str, tuple[str, tuple[str, ...]]], path: str
) -> Iterator[str]:
    for leaf, (choice, values) in needs.items():
        if not _is_set(section, leaf):
            continue
        chosen = getattr(section, choice)
        if chosen not in values if values else not chosen:
            yield _line(section, leaf, path, f"{choice} = {chosen!r}")


def _unused_in_mixture(data: Any) -> Iterator[str]:
    """Yield the leaves of a source that is none: each part of a mixture has its own."""
    for leaf in (
        "encoding",
        "markup",
        "on_bad_text",
        "on_bad_file",
        "on_bad_example",
        "holdout_every",
    ):
        if _is_set(data, leaf):
            yield _line(data, leaf, "config.data", "source = 'mixture'")


def _is_set(section: Any, leaf: str) -> bool:
    """Return whether a section has a leaf with another value than its default."""
    defaults = {field.name: field.default for field in dataclasses.fields(section)}
    return leaf in defaults and getattr(section, leaf) != defaults[leaf]


def _line(section: Any, leaf: str, path: str, why: str) -> str:
    value = show(getattr(section, leaf))
    return f"{path}.{leaf} = {value}: ignored with {path}.{why}"
