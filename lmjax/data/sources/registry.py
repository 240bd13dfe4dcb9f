"""The table of text sources: from a `SourceConfig` to the documents of its splits.

A mixture is a list of sources; `pipeline` opens each of them.
"""

import functools
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from lmjax.config.data import SourceConfig
from lmjax.data.sources.documents import Documents, HoldoutSplit, NonEmptyDocuments
from lmjax.data.sources.files import Files, JsonLines, Lines, find_files
from lmjax.data.sources.tfds import open_tfds

Split = Literal["train", "valid", "test"]
# From a split to its documents; None where the source has no such split.
Opener = Callable[[Split], Documents | None]

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


def _open_text(config: SourceConfig, *, path: str) -> Opener:
    kind = Files if config.document == "file" else Lines
    opener = functools.partial(kind, **_file_options(config, path=path))
    return _open_globs(opener, config, path=path)


def _open_jsonl(config: SourceConfig, *, path: str) -> Opener:
    options = _file_options(config, path=path)
    opener = functools.partial(JsonLines, field=config.field, **options)
    return _open_globs(opener, config, path=path)


def _file_options(config: SourceConfig, *, path: str) -> dict[str, Any]:
    """Return the options of `TextFiles`."""
    return {
        "on_bad_text": config.on_bad_text,
        "on_bad_file": config.on_bad_file,
        "path": path,
    }


SOURCES: dict[str, Callable[..., Opener]] = {
    "python_stdlib": _open_python_stdlib,
    "text": _open_text,
    "jsonl": _open_jsonl,
    "tfds": lambda config, *, path: (
        lambda split: open_tfds(config, split=split, path=path)
    ),
}


def _open_globs(
    opener: Callable[[Sequence[Path]], Documents], config: SourceConfig, *, path: str
) -> Opener:
    """Open the files of each split, or hold documents of `path` out for validation."""

    @functools.cache
    def open_leaf(leaf: str) -> Documents:
        return opener(find_files(getattr(config, leaf), path=f"{path}.{leaf}"))

    def open_split(split: Split) -> Documents | None:
        if split == "test":
            return open_leaf("test_path") if config.test_path else None
        if not config.valid_path:
            return _hold_out(open_leaf("path"), config, split=split)
        return open_leaf("path" if split == "train" else "valid_path")

    return open_split


def _hold_out(documents: Documents, config: SourceConfig, *, split: Split) -> Documents:
    return HoldoutSplit(
        documents, every=config.holdout_every, held_out=split == "valid"
    )


def _explain_no_documents(config: SourceConfig, *, split: Split, path: str) -> str:
    """Return the error message of a split without documents."""
    leaf = f"{path}.path = {config.path!r}"
    files = config.source in ("text", "jsonl")
    if files and split == "train" and not config.valid_path:
        return (
            f"{leaf}: only one document, which is held out for validation; "
            f"give {path}.valid_path, or for text {path}.document = 'line'"
        )
    return f"{leaf}: no document for {split}"
