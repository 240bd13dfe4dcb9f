"""Sources: a `SourceConfig` to the documents of a split.

A mixture is several sources side by side; `pipeline` holds them.
"""

import functools
import glob
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from lmjax.config import ConfigError, SourceConfig
from lmjax.data.documents import Documents, HeldOut
from lmjax.data.files import Files, JsonLines, Lines
from lmjax.data.tfds_source import open_tfds

Split = Literal["train", "valid", "test"]

_NOT_LIBRARY = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
}


def open_source(
    config: SourceConfig, *, split: Split, path: str = "config.data"
) -> Documents | None:
    """Open the documents of one split; None where the source has no such split.

    Args:
      config: any source but a mixture.
      split: "train", "valid" or "test".
      path: where `config` stands, for the text of errors.

    Raises:
      ConfigError: nothing matches, a file cannot be read, or there is no text.
    """
    documents = SOURCES[config.source](config, split=split, path=path)
    if documents is None:
        return None
    if not len(documents):
        raise ConfigError(_empty(config, split=split, path=path))
    if not any(documents[i] for i in range(len(documents))):  # ends at the first text
        raise ConfigError(
            f"{path}.path = {config.path!r}: every document for {split} is empty"
        )
    return documents


def _python_stdlib(
    config: SourceConfig, *, split: Split, path: str
) -> Documents | None:
    if split == "test":
        return None
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        file
        for file in root.rglob("*.py")
        if not _NOT_LIBRARY.intersection(file.relative_to(root).parts)
    )
    documents = Files(files, on_bad_text=config.on_bad_text, path=path)
    return _hold_out(documents, config, split=split)


def _text(config: SourceConfig, *, split: Split, path: str) -> Documents | None:
    kind = Files if config.document == "file" else Lines
    opener = functools.partial(kind, on_bad_text=config.on_bad_text, path=path)
    return _from_globs(opener, config, split=split, path=path)


def _jsonl(config: SourceConfig, *, split: Split, path: str) -> Documents | None:
    opener = functools.partial(
        JsonLines, field=config.field, on_bad_text=config.on_bad_text, path=path
    )
    return _from_globs(opener, config, split=split, path=path)


SOURCES: dict[str, Callable[..., Documents | None]] = {
    "python_stdlib": _python_stdlib,
    "text": _text,
    "jsonl": _jsonl,
    "tfds": open_tfds,
}


def _from_globs(
    opener: Callable[[Sequence[Path]], Documents],
    config: SourceConfig,
    *,
    split: Split,
    path: str,
) -> Documents | None:
    """Open the files given for a split, or what of `path` is held out for it."""
    leaf = {"train": "path", "valid": "valid_path", "test": "test_path"}[split]
    if split == "test" and not config.test_path:
        return None
    if not config.valid_path and split != "test":
        documents = opener(_glob(config.path, path=f"{path}.path"))
        return _hold_out(documents, config, split=split)
    return opener(_glob(getattr(config, leaf), path=f"{path}.{leaf}"))


def _hold_out(documents: Documents, config: SourceConfig, *, split: Split) -> Documents:
    return HeldOut(documents, every=config.holdout_every, held_out=split == "valid")


def _glob(pattern: str, *, path: str) -> list[Path]:
    """Return the files that match, sorted; directories are passed over."""
    expanded = str(Path(pattern).expanduser())
    found = [Path(name) for name in glob.glob(expanded, recursive=True)]  # noqa: PTH207
    files = sorted(file for file in found if not file.is_dir())
    if not files:
        what = "matches only directories" if found else "matches no file"
        raise ConfigError(f"{path} = {pattern!r}: {what}")
    return files


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
