"""TensorFlow Datasets as documents, read without TensorFlow."""

from pathlib import Path
from typing import Any

import numpy as np

from lmjax.config.data import SourceConfig
from lmjax.data.sources.documents import Documents, expand_path, hash_json
from lmjax.data.sources.text import decode_utf8
from lmjax.errors import ConfigError, nearest


class TfdsDocuments:
    """One document for each example of a split: the text in one of its features."""

    def __init__(
        self, builder: Any, *, split: str, field: str, on_bad_text: str, path: str
    ) -> None:
        self._examples = open_records(builder, split, path=path)
        self._identity = identity(builder, split)
        self._field = field
        self._on_bad_text = on_bad_text
        self._path = path

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int, /) -> str:
        text = self._examples[index][self._field]
        name, split = self._identity[:2]
        return decode_utf8(
            text.encode() if isinstance(text, str) else bytes(text),
            where=lambda: f"{name} {split}[{index}]",
            on_bad_text=self._on_bad_text,
            path=self._path,
        )

    def size(self, index: int, /) -> int:
        """Return the bytes of one example's text."""
        return len(self[index].encode())

    def fingerprint(self) -> str:
        """Hash the name and version of the dataset, the split and its size."""
        return hash_json("tfds", self._identity, self._field, self._on_bad_text)


def open_tfds(config: SourceConfig, *, split: str, path: str) -> Documents | None:
    """Open a split of a dataset of the catalog, or of a directory that TFDS built.

    Returns:
      None where the config names no such split.

    Raises:
      ConfigError: there is no such dataset, split or text feature, or the dataset
        cannot be downloaded.
    """
    opened = open_split(config, split=split, path=path)
    if opened is None:
        return None
    builder, name = opened
    _check_field(builder, config.field, path=f"{path}.field")
    return TfdsDocuments(
        builder,
        split=name,
        field=config.field,
        on_bad_text=config.on_bad_text,
        path=path,
    )


def open_split(
    config: SourceConfig, *, split: str, path: str
) -> tuple[Any, str] | None:
    """Return a prepared builder and the name of its split; as `open_tfds`."""
    name = getattr(config, f"{split}_split")
    if not name:
        return None
    builder = _open_builder(config.path, path=f"{path}.path")
    _check_split(builder, name, path=f"{path}.{split}_split")
    return builder, name


def open_records(builder: Any, split: str, *, path: str) -> Any:
    """Return the records of a split, with random access.

    Raises:
      ConfigError: the files are missing or damaged.
    """
    try:
        records = builder.as_data_source(split)
        if len(records):
            records[0]  # files are opened when they are read
        return records
    except Exception as error:  # many types, also of array_record in C++
        raise ConfigError(
            f"{path}.path: the split {split!r} of {builder.data_dir} cannot be read: "
            f"{_first_line(error)}"
        ) from error


def identity(builder: Any, split: str) -> list[Any]:
    """Return the name and version of a dataset, the split, and its size."""
    splits = builder.info.splits
    size = sum(splits[name].num_bytes for name in _base_splits(split))
    return [builder.info.full_name, split, splits[split].num_examples, size]


def _open_builder(name: str, *, path: str) -> Any:
    """Return a builder whose files exist; download and prepare them if missing."""
    import tensorflow_datasets as tfds

    directory = expand_path(name, leaf=path)
    if (directory / "dataset_info.json").exists():
        try:
            builder = tfds.builder_from_directory(directory)
        except Exception as error:  # many types: other programs write such a file too
            raise ConfigError(
                f"{path} = {name!r}: its dataset_info.json is not one of TFDS: "
                f"{type(error).__name__}: {_first_line(error)}"
            ) from error
        _check_format(builder, name, path=path)
        return builder
    try:
        # The one format that can be read in full without TensorFlow.
        builder = tfds.builder(name, file_format="array_record")
    except Exception as error:  # many types: for the name, the config, the version
        if directory.exists():
            raise ConfigError(
                f"{path} = {name!r}: {_describe_path(directory)}"
            ) from error
        base = name.partition("/")[0].partition(":")[0]
        catalog = tfds.list_builders(with_community_datasets=False)
        hint = "" if base in catalog else nearest(base, catalog)
        raise ConfigError(
            f"{path} = {name!r}: neither a directory that TFDS built nor in its catalog"
            f"{hint}: {_first_line(error)}"
        ) from error
    try:
        builder.download_and_prepare()
    except Exception as error:  # many types: each server fails in its own way
        raise ConfigError(
            f"{path} = {name!r}: cannot be prepared: {_first_line(error)}"
        ) from error
    return builder


def _describe_path(path: Path) -> str:
    """Return why a file or directory is not a dataset of TFDS."""
    if not path.is_dir():
        return "is a file, neither a directory that TFDS built nor in its catalog"
    inner = sorted(file.parent for file in path.glob("**/dataset_info.json"))
    hint = f"; {inner[0]} has one" if inner else ""
    return f"TFDS built no such directory: it has no dataset_info.json{hint}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2]


def _check_format(builder: Any, name: str, *, path: str) -> None:
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise ConfigError(
            f"{path} = {name!r}: its files are {file_format}; build it with "
            "file_format='array_record'"
        )


def _check_split(builder: Any, split: str, *, path: str) -> None:
    splits = builder.info.splits
    for name in _base_splits(split):
        if name not in splits:
            raise ConfigError(
                f"{path} = {split!r}: no such split{nearest(name, list(splits))}; "
                f"{builder.info.name} has {', '.join(splits)}"
            )
    try:
        _ = splits[split].num_examples
    except ValueError as error:
        raise ConfigError(
            f"{path} = {split!r}: cannot be read as a split such as 'train[:90%]': "
            f"{_last_line(error)}"
        ) from error


def _check_field(builder: Any, field: str, *, path: str) -> None:
    features = builder.info.features
    if field not in features:
        raise ConfigError(
            f"{path} = {field!r}: no such feature{nearest(field, list(features))}; "
            f"{builder.info.name} has {', '.join(features)}"
        )
    if features[field].shape != () or features[field].np_dtype != np.object_:
        raise ConfigError(f"{path} = {field!r}: must be text, not {features[field]}")


def _base_splits(split: str) -> list[str]:
    """Return the names in a split: of `train[:90%]+validation` two."""
    return [part.partition("[")[0].strip() for part in split.split("+")]
