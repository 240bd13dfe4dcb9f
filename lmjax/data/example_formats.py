"""From a config to the examples of a split: the table of formats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmjax.config import ConfigError, SourceConfig, nearest
from lmjax.data.conll import ConllExamples, PropsExamples
from lmjax.data.documents import HeldOut
from lmjax.data.examples import (
    Examples,
    JsonExamples,
    ParallelExamples,
    TableExamples,
)
from lmjax.data.files import Lines, files_of
from lmjax.data.squad import SquadExamples
from lmjax.data.tfds_examples import open_tfds_examples


class HeldOutExamples(HeldOut):
    """Every n-th example of others, or all but those."""

    def where(self, index: int, /) -> str:
        """Return FILE:LINE."""
        return self._documents.where(self._place(index))  # type: ignore[attr-defined]


def open_examples(
    config: SourceConfig, *, split: str, path: str = "config.data"
) -> Examples | None:
    """Open the examples of one split; None where the source has no such split.

    Args:
      config: one of the sources of `FORMATS`, or "tfds".
      split: "train", "valid" or "test".
      path: where `config` stands, for the text of errors.

    Raises:
      ConfigError: no file, or one that cannot be read as what it should be.
    """
    if config.source == "tfds":
        return open_tfds_examples(config, split=split, path=path)
    leaf = {"train": "path", "valid": "valid_path", "test": "test_path"}[split]
    if split == "test" and not config.test_path:
        return None
    held_out = not config.valid_path and split != "test"
    leaf = "path" if held_out else leaf
    pattern = getattr(config, leaf)
    found = FORMATS[config.source](config, pattern, path=path, leaf=f"{path}.{leaf}")
    if not len(found):
        raise ConfigError(f"{path}.{leaf} = {pattern!r}: holds no example")
    if held_out:
        every = config.holdout_every
        found = HeldOutExamples(found, every=every, held_out=split == "valid")
    if not len(found):
        raise ConfigError(
            f"{path}.{leaf} = {pattern!r}: no more than one example, and that is held "
            f"out for validation; give {path}.valid_path"
        )
    return found


def _of_files(kind: Any, **more: Callable[[SourceConfig], Any]) -> Callable[..., Any]:
    def opened(config: SourceConfig, pattern: str, *, path: str, leaf: str) -> Any:
        options = {name: value(config) for name, value in more.items()}
        files = files_of(pattern, path=leaf)
        return kind(files, on_bad_text=config.on_bad_text, path=path, **options)

    return opened


def _parallel(config: SourceConfig, stem: str, *, path: str, leaf: str) -> Examples:
    names = config.fields.source, config.fields.target
    return ParallelExamples(
        stem,
        names=names,
        on_bad_text=config.on_bad_text,
        on_bad_example=config.on_bad_example,
        path=path,
        leaf=leaf,
    )


FORMATS: dict[str, Callable[..., Any]] = {
    "jsonl": _of_files(JsonExamples),
    "tsv": _of_files(TableExamples, delimiter=lambda _: "\t"),
    "csv": _of_files(TableExamples, delimiter=lambda _: ","),
    "conll": _of_files(ConllExamples, columns=lambda config: config.columns),
    "props": _of_files(
        PropsExamples,
        columns=lambda config: config.columns,
        fields=lambda config: config.fields,
    ),
    "parallel": _parallel,
    "squad": _of_files(SquadExamples),
}
# What a file to predict may be: also texts alone, one a line.
FILES = {**FORMATS, "text": _of_files(Lines)}


def open_file(config: SourceConfig, file: Path, *, kind: str, leaf: str) -> Any:
    """Open a file of examples, or of texts.

    Args:
      config: how a run's own examples are read.
      file: to open.
      kind: one of `FILES`; "": the one that the file's name ends in, else the run's.
      leaf: what gave the file, for the text of errors.

    Raises:
      ConfigError: no such file or kind, or it cannot be read as one.
    """
    named = kind or file.suffix.removeprefix(".")
    if named not in FILES and not kind:
        named = config.source
    if named not in FILES:
        hint = nearest(named, [*FILES])
        raise ConfigError(
            f"{leaf}={file}: is not read as {named!r}{hint}; give --format, one of "
            f"{', '.join(FILES)}"
        )
    return FILES[named](config, str(file), path="config.data", leaf=leaf)
