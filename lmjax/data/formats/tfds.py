"""Records of TensorFlow Datasets as examples: each part a feature, by its name."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from lmjax.config.data import SourceConfig
from lmjax.data.sources import tfds
from lmjax.data.sources.documents import decode_utf8, hash_json
from lmjax.errors import ConfigError


class TfdsExamples:
    """The records of one split, as plain values under the names of their features.

    Text is str, and what has a set of names is one of these; None of a number that
    stands for no name, as where a test set's labels are secret. Of a feature within
    another both names are written, with a slash: answers/text. Images, sounds and
    datasets within a record are left out.
    """

    def __init__(
        self, builder: Any, *, split: str, on_bad_text: str, path: str
    ) -> None:
        self._records = builder.as_data_source(split)
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
            name: _plain(_within(record, name), leaf, text=text)
            for name, leaf in self._leaves.items()
        }

    def where(self, index: int, /) -> str:
        """Return DATASET SPLIT[INDEX]."""
        name, split = self._identity[:2]
        return f"{name} {split}[{index}]"

    def fingerprint(self) -> str:
        """Hash the name, version, split and size."""
        return hash_json("tfds examples", self._identity, self._on_bad_text)

    def class_names(self, name: str) -> tuple[str, ...]:
        """Return the names that a feature's numbers stand for, in order, or ()."""
        return tuple(getattr(self._leaves.get(name), "names", None) or ())


def open_tfds_examples(
    config: SourceConfig, *, split: str, path: str
) -> TfdsExamples | None:
    """Open a catalog name or a built directory; None where the config has no split.

    Raises:
      ConfigError: there is no such dataset or split, or it cannot be downloaded, or
        there is no example.
    """
    found = tfds.open_split(config, split=split, path=path)
    if found is None:
        return None
    builder, name = found
    if builder.info.splits[name].num_examples < 1:
        raise ConfigError(f"{path}.{split}_split = {name!r}: no example is in it")
    return TfdsExamples(builder, split=name, on_bad_text=config.on_bad_text, path=path)


def _leaves(features: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the name of each feature of text or numbers, and what one of these is."""
    from tensorflow_datasets import features as kinds

    for name, feature in features.items():
        while isinstance(feature, kinds.Sequence):
            feature = None if isinstance(feature, kinds.Dataset) else feature.feature
        if isinstance(feature, kinds.FeaturesDict):
            yield from _leaves(feature, f"{above}{name}/")
        elif isinstance(feature, kinds.Tensor):
            yield above + name, feature


def _within(record: Any, name: str) -> Any:
    for part in name.split("/"):
        record = record[part]
    return record


def _plain(value: Any, leaf: Any, *, text: Callable[[bytes], str]) -> Any:
    """Return JSON of a feature's value, or of a sequence of them."""
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim):
        return [_plain(item, leaf, text=text) for item in value]
    if isinstance(value, bytes):
        return text(value)
    value = np.asarray(value).item()
    if hasattr(leaf, "int2str"):
        return leaf.int2str(value) if value >= 0 else None
    return value
