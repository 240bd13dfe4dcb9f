"""Sources: a `SourceConfig` to the documents of a split.

A mixture is several sources side by side; `pipeline` holds them.
"""

import functools
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from lmjax.config.data import SourceConfig
from lmjax.data.sources.documents import Checked, Documents, HeldOut
from lmjax.data.sources.files import Files, JsonLines, Lines, files_of
from lmjax.data.sources.tfds import open_tfds

Split = Literal["train", "valid", "test"]

_NOT_LIBRARY = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
}


Opener = Callable[[Split], Documents | None]


def open_source(
    config: SourceConfig, *, split: Split, path: str = "config.data"
) -> Documents | None:
    """Open the documents of one split; None where the source has no such split.

    The rest as for `open_splits`.
    """
    return open_splits(config, splits=(split,), path=path).get(split)


def open_splits(
    config: SourceConfig, *, splits: Sequence[Split], path: str = "config.data"
) -> dict[Split, Documents]:
    """Open the documents of the splits there are; what they share is opened once.

    Args:
      config: any source but a mixture.
      splits: of "train", "valid" and "test".
      path: where `config` stands, for the text of errors.

    Raises:
      ConfigError: nothing matches. That a file cannot be read, or that there is no
        text, is found when documents are counted or read.
    """
    opener = SOURCES[config.source](config, path=path)
    found = {split: opener(split) for split in splits}
    return {
        split: Checked(
            documents,
            none=_empty(config, split=split, path=path),
            no_text=f"{path}.path = {config.path!r}: every document for {split} is "
            "empty",
        )
        for split, documents in found.items()
        if documents is not None
    }


def _python_stdlib(config: SourceConfig, *, path: str) -> Opener:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        file
        for file in root.rglob("*.py")
        if not _NOT_LIBRARY.intersection(file.relative_to(root).parts)
    )
    documents = Files(files, on_bad_text=config.on_bad_text, path=path)
    hold_out = functools.partial(_hold_out, documents, config)
    return lambda split: None if split == "test" else hold_out(split=split)


def _text(config: SourceConfig, *, path: str) -> Opener:
    kind = Files if config.document == "file" else Lines
    opener = functools.partial(kind, on_bad_text=config.on_bad_text, path=path)
    return _from_globs(opener, config, path=path)


def _jsonl(config: SourceConfig, *, path: str) -> Opener:
    opener = functools.partial(
        JsonLines, field=config.field, on_bad_text=config.on_bad_text, path=path
    )
    return _from_globs(opener, config, path=path)


SOURCES: dict[str, Callable[..., Opener]] = {
    "python_stdlib": _python_stdlib,
    "text": _text,
    "jsonl": _jsonl,
    "tfds": lambda config, *, path: functools.partial(_tfds, config, path=path),
}


def _tfds(config: SourceConfig, split: Split, *, path: str) -> Documents | None:
    return open_tfds(config, split=split, path=path)


def _from_globs(
    opener: Callable[[Sequence[Path]], Documents], config: SourceConfig, *, path: str
) -> Opener:
    """Open the files given for a split, or what of `path` is held out for it."""

    @functools.cache
    def given(leaf: str) -> Documents:
        return opener(files_of(getattr(config, leaf), path=f"{path}.{leaf}"))

    def open_split(split: Split) -> Documents | None:
        if split == "test":
            return given("test_path") if config.test_path else None
        if not config.valid_path:
            return _hold_out(given("path"), config, split=split)
        return given("path" if split == "train" else "valid_path")

    return open_split


def _hold_out(documents: Documents, config: SourceConfig, *, split: Split) -> Documents:
    return HeldOut(documents, every=config.holdout_every, held_out=split == "valid")


def _empty(config: SourceConfig, *, split: Split, path: str) -> str:
    """Say why a split has no document."""
    leaf = f"{path}.path = {config.path!r}"
    files = config.source in ("text", "jsonl")
    if files and split == "train" and not config.valid_path:
        return (
            f"{leaf}: no more than one document, and that is held out for validation; "
            f"give {path}.valid_path, or for text {path}.document = 'line'"
        )
    return f"{leaf}: no document for {split}"
