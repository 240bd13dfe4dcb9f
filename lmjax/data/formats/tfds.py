"""Examples from TensorFlow Datasets: each field is a feature of a record."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from lmjax.config.data import SourceConfig
from lmjax.data.sources import tfds
from lmjax.data.sources.documents import hash_json
from lmjax.data.sources.text import decode_utf8
from lmjax.errors import ConfigError


class TfdsExamples:
    """The records of one split, as JSON values by the names of their features.

    A class label is its name, or None if it is unknown (-1), as in test sets without
    labels. A nested feature has both names with a slash: answers/text. Images, audio
    and nested datasets are omitted.
    """

    def __init__(
        self, builder: Any, *, split: str, on_bad_text: str, path: str
    ) -> None:
        self._records = tfds.open_records(builder, split, path=path)
        self._identity = tfds.identity(builder, split)
        self._leaves = dict(_leaves(builder.info.features))
        self._on_bad_text = on_bad_text
        self._path = path

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        record = self._records[index]
        text = lambda raw: decode_utf8(
            raw,
            where=lambda: self.where(index),
            on_bad_text=self._on_bad_text,
            path=self._path,
        )
        return {
            name: _to_json(_get_nested(record, name), leaf, text=text)
            for name, leaf in self._leaves.items()
        }

    def where(self, index: int, /) -> str:
        """Return DATASET SPLIT[INDEX]."""
        name, split = self._identity[:2]
        return f"{name} {split}[{index}]"

    def fingerprint(self) -> str:
        """Hash the name, the version, the split and its size."""
        return hash_json("tfds examples", self._identity, self._on_bad_text)

    def class_names(self, name: str) -> tuple[str, ...]:
        """Return the class names of a feature, in the order of their ids; (): none."""
        return tuple(getattr(self._leaves.get(name), "names", None) or ())


def open_tfds_examples(
    config: SourceConfig, *, split: str, path: str
) -> TfdsExamples | None:
    """Open a catalog name or a built directory; None if the config has no such split.

    Raises:
      ConfigError: there is no such dataset or split, or it is empty, or it cannot be
        downloaded.
    """
    opened = tfds.open_split(config, split=split, path=path)
    if opened is None:
        return None
    builder, name = opened
    if builder.info.splits[name].num_examples < 1:
        raise ConfigError(f"{path}.{split}_split = {name!r}: has no example")
    return TfdsExamples(builder, split=name, on_bad_text=config.on_bad_text, path=path)


def _leaves(features: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the name and the type of each feature that is text or numbers."""
    from tensorflow_datasets import features as kinds

    for name, feature in features.items():
        while isinstance(feature, kinds.Sequence):
            feature = None if isinstance(feature, kinds.Dataset) else feature.feature
        if isinstance(feature, kinds.FeaturesDict):
            yield from _leaves(feature, f"{prefix}{name}/")
        elif isinstance(feature, kinds.Tensor):
            yield prefix + name, feature


def _get_nested(record: Any, name: str) -> Any:
    for part in name.split("/"):
        record = record[part]
    return record


def _to_json(value: Any, leaf: Any, *, text: Callable[[bytes], str]) -> Any:
    """Convert a value of a feature, or a sequence of values, to JSON."""
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim):
        return [_to_json(item, leaf, text=text) for item in value]
    if isinstance(value, bytes):
        return text(value)
    value = np.asarray(value).item()
    if hasattr(leaf, "int2str"):
        return leaf.int2str(value) if value >= 0 else None
    return value
