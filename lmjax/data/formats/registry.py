"""From a config to the examples of a split: the table of formats."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmjax.config.data import SourceConfig
from lmjax.data.formats.conll import ConllExamples, PropsExamples, unlabelled
from lmjax.data.formats.examples import (
    Examples,
    JsonExamples,
    ParallelExamples,
    TableExamples,
)
from lmjax.data.formats.squad import SquadExamples
from lmjax.data.formats.tfds import open_tfds_examples
from lmjax.data.sources.documents import HoldoutSplit, expand_path
from lmjax.data.sources.files import Lines, check_not_compressed, find_files
from lmjax.errors import ConfigError, nearest


class HeldOutExamples(HoldoutSplit):
    """Every n-th example of others, or all but those."""

    def where(self, index: int, /) -> str:
        """Return FILE:LINE."""
        # `HeldOut` is of any documents; those that are given here are examples.
        return self._documents.where(self._whole_index(index))  # type: ignore[attr-defined]


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
    files = _files(config, pattern, leaf=f"{path}.{leaf}")
    found = FORMATS[config.source](config, files, path=path)
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


Opener = Callable[..., Any]  # (config, files, path="config.data") -> Examples


def _opener(kind: Any, **more: Callable[[SourceConfig], Any]) -> Opener:
    """Return what opens files as `kind`, of which `more` reads the other arguments."""

    def opened(config: SourceConfig, files: Sequence[Path], *, path: str) -> Any:
        options = {name: value(config) for name, value in more.items()}
        return kind(files, on_bad_text=config.on_bad_text, path=path, **options)

    return opened


class Texts(Lines):
    """A text for each line that is not blank."""

    def __getitem__(self, index: int, /) -> str:
        return super().__getitem__(index).removeprefix("\ufeff")


FORMATS: dict[str, Opener] = {
    "jsonl": _opener(JsonExamples),
    "tsv": _opener(TableExamples, delimiter=lambda _: "\t"),
    "csv": _opener(TableExamples, delimiter=lambda _: ","),
    "conll": _opener(ConllExamples, layouts=lambda config: [config.columns]),
    "props": _opener(
        PropsExamples,
        layouts=lambda config: [config.columns],
        fields=lambda config: config.fields,
    ),
    "parallel": _opener(
        ParallelExamples,
        names=lambda config: (config.fields.source, config.fields.target),
        on_bad_example=lambda config: config.on_bad_example,
    ),
    "squad": _opener(SquadExamples),
}
# What a file to predict may be: also texts alone, one a line. Answers may be missing.
FILES: dict[str, Opener] = {
    **FORMATS,
    "conll": _opener(
        ConllExamples, layouts=lambda config: unlabelled(config.columns, config.fields)
    ),
    "props": _opener(
        PropsExamples,
        layouts=lambda config: unlabelled(config.columns, config.fields),
        fields=lambda config: config.fields,
    ),
    "parallel": _opener(
        ParallelExamples,
        names=lambda config: (config.fields.source,),
        on_bad_example=lambda config: config.on_bad_example,
    ),
    "text": _opener(Texts),
}


def _files(config: SourceConfig, pattern: str, *, leaf: str) -> list[Path]:
    """Return the files that a leaf of the config names."""
    if config.source != "parallel":
        return find_files(pattern, path=leaf)
    names = config.fields.source, config.fields.target
    files = [expand_path(f"{pattern}.{name}", leaf=leaf) for name in names]
    check_not_compressed(files, path=leaf)
    return files


def find_file(
    config: SourceConfig, given: Path, *, kind: str, leaf: str
) -> tuple[str, Path]:
    """Return the format of a file to predict, a key of `FILES`, and the file.

    Args:
      config: how a run's own examples are read.
      given: the file; of parallel files also what stands before .SOURCE.
      kind: its format; "": the one that its name ends in, else the run's.
      leaf: what gave the file, for the text of errors.

    Raises:
      ConfigError: no such file or format.
    """
    named = kind or given.suffix.removeprefix(".")
    if named not in FILES and not kind:
        named = config.source
    if named not in FILES:
        hint = nearest(named, [*FILES])
        raise ConfigError(
            f"{leaf}={given}: is not read as {named!r}{hint}; give --format, one of "
            f"{', '.join(FILES)}"
        )
    file, more = given, ""
    if named == "parallel" and not given.exists():
        file, more = Path(f"{given}.{config.fields.source}"), f", nor {given}"
    if not file.is_file():
        why = "is no file" if file.exists() else f"no such file{more}"
        raise ConfigError(f"{leaf}={file}: {why}")
    return named, file


def open_file(config: SourceConfig, file: Path, *, kind: str, leaf: str) -> Any:
    """Open a file of examples, or of texts, whose answers nobody need know.

    Args:
      config: how a run's own examples are read.
      file: to open.
      kind: its format, a key of `FILES`.
      leaf: what gave the file, for the text of errors.

    Raises:
      ConfigError: it cannot be read as one, or has no example.
    """
    own: Any = {"source": kind, "path": str(file), "valid_path": str(file)}
    config = dataclasses.replace(config, **own)
    for mistake in config.validate("config.data"):
        raise ConfigError(f"{leaf}={file}: {mistake}")
    found = FILES[kind](config, [file], path="config.data")
    if not len(found):
        raise ConfigError(f"{leaf}={file}: has no example")
    return found
