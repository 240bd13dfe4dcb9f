"""The table of text sources: from a `SourceConfig` to the documents of its splits.

A mixture is a list of sources; `pipeline` opens each of them.
"""

import functools
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmjax.config.data import SourceConfig
from lmjax.data.sources.columns import ColumnTexts
from lmjax.data.sources.documents import Documents, HoldoutSplit, NonEmptyDocuments
from lmjax.data.sources.files import Files, JsonLines, Lines
from lmjax.data.sources.find import Split, find_split
from lmjax.data.sources.markup import PlainDocuments
from lmjax.data.sources.rewrite import TABLES
from lmjax.data.sources.tfds import open_tfds

# From a split to its documents; None where the source has no such split.
Opener = Callable[[Split], Documents | None]
# From files to their documents.
FileReader = Callable[[Sequence[Path]], Documents]

# Directories of the standard library that are not its source code.
_NOT_LIBRARY = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
}


def open_splits(
    config: SourceConfig, *, splits: Sequence[Split], path: str = "config.data"
) -> dict[Split, Documents]:
    """Open the documents of those splits that a source has.

    Files that splits share are opened once.

    Args:
      config: any source but a mixture.
      splits: of "train", "valid" and "test".
      path: dotted path of `config`, for errors.

    Raises:
      ConfigError: no file matches, or no such dataset. Files that cannot be read, and
        a split without text, are errors only when documents are counted or read.
    """
    opener = SOURCES[config.source](config, path=path)
    opened = {split: opener(split) for split in splits}
    return {
        split: NonEmptyDocuments(
            documents,
            none=_explain_no_documents(config, split=split, path=path),
            no_text=f"{path}.path = {config.path!r}: every document for {split} is "
            "empty",
        )
        for split, documents in opened.items()
        if documents is not None
    }


def _open_python_stdlib(config: SourceConfig, *, path: str) -> Opener:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        file
        for file in root.rglob("*.py")
        if not _NOT_LIBRARY.intersection(file.relative_to(root).parts)
    )
    documents = Files(files, **_file_options(config, path=path))

    def open_split(split: Split) -> Documents | None:
        return None if split == "test" else _hold_out(documents, config, split=split)

    return open_split


def _read_text(config: SourceConfig, *, path: str) -> FileReader:
    kind = Files if config.document == "file" else Lines
    return functools.partial(kind, **_file_options(config, path=path))


def _read_records(config: SourceConfig, *, path: str) -> FileReader:
    table = config.source if config.source in TABLES else ""
    return functools.partial(
        JsonLines, field=config.field, table=table, **_file_options(config, path=path)
    )


def _read_columns(config: SourceConfig, *, path: str) -> FileReader:
    options = _file_options(config, path=path)
    del options["encoding"]  # these formats say theirs
    return functools.partial(ColumnTexts, field=config.field, **options)


def _file_options(config: SourceConfig, *, path: str) -> dict[str, Any]:
    """Return the options of `TextFiles`."""
    return {
        "on_bad_text": config.on_bad_text,
        "on_bad_file": config.on_bad_file,
        "encoding": config.encoding,
        "path": path,
    }


# From a config to what opens files as documents, with their markup.
READERS: dict[str, Callable[..., FileReader]] = {
    "text": _read_text,
    **dict.fromkeys(("jsonl", "csv", "tsv"), _read_records),
    **dict.fromkeys(("parquet", "arrow"), _read_columns),
}


def _open_files(config: SourceConfig, *, path: str) -> Opener:
    """Open the files of each split, or hold documents of `path` out for validation."""
    opener = READERS[config.source](config, path=path)

    @functools.cache
    def open_shared(files: tuple[Path, ...]) -> Documents:
        return opener(files)

    def open_split(split: Split) -> Documents | None:
        found = find_split(config, split, path=path)
        if found is None:
            return None
        documents = open_shared(tuple(found.files))
        if config.markup != "keep":
            documents = PlainDocuments(documents, markup=config.markup)
        if found.held_out:
            return _hold_out(documents, config, split=split)
        return documents

    return open_split


SOURCES: dict[str, Callable[..., Opener]] = {
    "python_stdlib": _open_python_stdlib,
    **dict.fromkeys(READERS, _open_files),
    "tfds": lambda config, *, path: (
        lambda split: open_tfds(config, split=split, path=path)
    ),
}


def _hold_out(documents: Documents, config: SourceConfig, *, split: Split) -> Documents:
    return HoldoutSplit(
        documents, every=config.holdout_every, held_out=split == "valid"
    )


def _explain_no_documents(config: SourceConfig, *, split: Split, path: str) -> str:
    """Return the error message of a split without documents."""
    leaf = f"{path}.path = {config.path!r}"
    files = config.source not in ("python_stdlib", "tfds")
    if files and split == "train" and not config.valid_path:
        return (
            f"{leaf}: only one document, which is held out for validation; "
            f"give {path}.valid_path, or for text {path}.document = 'line'"
        )
    return f"{leaf}: no document for {split}"
