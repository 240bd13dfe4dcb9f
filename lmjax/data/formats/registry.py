"""The table of formats, and how the examples of a split or of a file are opened."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmjax.config.data import SourceConfig
from lmjax.data.formats.chats import open_chats
from lmjax.data.formats.conll import ConllExamples, PropsExamples, list_layouts
from lmjax.data.formats.examples import (
    Examples,
    JsonExamples,
    ParallelExamples,
    TableExamples,
)
from lmjax.data.formats.squad import SquadExamples
from lmjax.data.formats.tfds import open_tfds_examples
from lmjax.data.sources.columns import ColumnRecords
from lmjax.data.sources.documents import HoldoutSplit, expand_path
from lmjax.data.sources.files import Lines, TextFiles
from lmjax.data.sources.find import Split, SplitFiles, find_split
from lmjax.data.sources.plain import strip_suffix
from lmjax.errors import ConfigError, UserError, nearest
from lmjax.storage.paths import open_path


class HoldoutExamples(HoldoutSplit):
    """Every n-th example, or all but those; see `HoldoutSplit`."""

    def where(self, index: int, /) -> str:
        """Return FILE:LINE."""
        # `HoldoutSplit` is for any documents; here they are `Examples`.
        return self._documents.where(self._whole_index(index))  # type: ignore[attr-defined]


def open_examples(
    config: SourceConfig, *, split: Split, path: str = "config.data"
) -> Examples | None:
    """Open the examples of one split; None if the source has no such split.

    Args:
      config: its `source` is a key of `FORMATS`, or "tfds".
      split: "train", "valid" or "test".
      path: the dotted path of `config`, for error texts.

    Raises:
      UserError: there is no file, or it is not in the format.
    """
    if config.source == "tfds":
        return open_tfds_examples(config, split=split, path=path)
    found = _find_split(config, split, path=path)
    if found is None:
        return None
    leaf = f"{found.leaf} = {getattr(config, found.leaf.rpartition('.')[2])!r}"
    examples = FORMATS[config.source](config, found.files, path=path)
    if not len(examples):
        raise ConfigError(f"{leaf}: has no example")
    if found.held_out:
        every = config.holdout_every
        examples = HoldoutExamples(examples, every=every, held_out=split == "valid")
    if not len(examples):
        raise ConfigError(
            f"{leaf}: has only one example, which is held out for validation; set "
            f"{path}.valid_path"
        )
    return examples


Opener = Callable[..., Any]  # (config, files, path="config.data") -> Examples


def _make_opener(kind: Any, **options: Callable[[SourceConfig], Any]) -> Opener:
    """Return a function that opens files as the class `kind`.

    Args:
      kind: a class of `Examples` in files.
      options: for each further argument of it, a function of the config.
    """

    def open_files(config: SourceConfig, files: Sequence[Path], *, path: str) -> Any:
        arguments = {name: get_value(config) for name, get_value in options.items()}
        encoded = issubclass(kind, TextFiles)
        encoding = {"encoding": config.encoding} if encoded else {}
        return kind(
            files,
            on_bad_text=config.on_bad_text,
            on_bad_file=config.on_bad_file,
            path=path,
            **encoding,
            **arguments,
        )

    return open_files


FORMATS: dict[str, Opener] = {
    "jsonl": _make_opener(JsonExamples),
    "tsv": _make_opener(TableExamples, delimiter=lambda _: "\t"),
    "csv": _make_opener(TableExamples, delimiter=lambda _: ","),
    "parquet": _make_opener(ColumnRecords),
    "arrow": _make_opener(ColumnRecords),
    "conll": _make_opener(ConllExamples, layouts=lambda config: [config.columns]),
    "props": _make_opener(
        PropsExamples,
        layouts=lambda config: [config.columns],
        fields=lambda config: config.fields,
    ),
    "parallel": _make_opener(
        ParallelExamples,
        names=lambda config: (config.fields.source, config.fields.target),
        on_bad_example=lambda config: config.on_bad_example,
    ),
    "squad": _make_opener(SquadExamples),
    "chat": open_chats,
}
# The formats of a file to predict: also texts, one per line. Labels may be missing.
INPUT_FORMATS: dict[str, Opener] = {
    **FORMATS,
    "tsv": _make_opener(
        TableExamples, delimiter=lambda _: "\t", keep_blank=lambda _: True
    ),
    "csv": _make_opener(
        TableExamples, delimiter=lambda _: ",", keep_blank=lambda _: True
    ),
    "conll": _make_opener(
        ConllExamples,
        layouts=lambda config: list_layouts(config.columns, config.fields),
    ),
    "props": _make_opener(
        PropsExamples,
        layouts=lambda config: list_layouts(config.columns, config.fields),
        fields=lambda config: config.fields,
    ),
    "parallel": _make_opener(
        ParallelExamples,
        names=lambda config: (config.fields.source,),
        on_bad_example=lambda config: config.on_bad_example,
    ),
    "text": _make_opener(Lines),
}


# Those that have an example in each line but blank ones, which they skip.
LINE_FORMATS = ("jsonl", "text")


def _find_split(config: SourceConfig, split: Split, *, path: str) -> SplitFiles | None:
    """Return the files of a split; parallel files are named by their fields."""
    if config.source != "parallel":
        return find_split(config, split, path=path)
    if split == "test" and not config.test_path:
        return None
    leaf = {"train": "path", "valid": "valid_path", "test": "test_path"}[split]
    held_out = not config.valid_path and split != "test"
    leaf = "path" if held_out else leaf
    files = _parallel_files(config, getattr(config, leaf), leaf=f"{path}.{leaf}")
    return SplitFiles(files, f"{path}.{leaf}", held_out)


def _parallel_files(config: SourceConfig, pattern: str, *, leaf: str) -> list[Path]:
    names = config.fields.source, config.fields.target
    return [expand_path(f"{pattern}.{name}", leaf=leaf) for name in names]


# Suffixes that are not the name of their format.
_ALIASES = {"json": "jsonl", "ndjson": "jsonl", "pq": "parquet", "feather": "arrow"}


def find_input_file(
    config: SourceConfig, path: Path, *, kind: str, leaf: str
) -> tuple[str, Path]:
    """Find a file to predict, and its format, a key of `INPUT_FORMATS`.

    Args:
      config: the data of the run.
      path: the file; for parallel files also PATH of PATH.SOURCE.
      kind: the format; "": that of the file's suffix, else the run's.
      leaf: the flag with the file, for error texts.

    Raises:
      UserError: there is no such file or format.
    """
    suffix = strip_suffix(path).removeprefix(".")
    if suffix == "json" and config.source == "squad":
        suffix = "squad"
    name = kind or _ALIASES.get(suffix, suffix)
    if name not in INPUT_FORMATS and not kind:
        name = config.source
    if name not in INPUT_FORMATS:
        names = ", ".join(INPUT_FORMATS)
        if kind:
            hint = nearest(kind, [*INPUT_FORMATS])
            raise UserError(f"--format={kind}: must be one of {names}{hint}")
        raise UserError(
            f"{leaf}={path}: unknown format; set --format to one of {names}"
        )
    file, also = path, ""
    if name == "parallel" and not path.exists():
        file, also = open_path(f"{path}.{config.fields.source}"), f", nor {path}"
    if not file.is_file():
        why = "not a file" if file.exists() else f"no such file{also}"
        raise UserError(f"{leaf}={file}: {why}")
    return name, file


def open_input_file(
    config: SourceConfig, file: Path, *, kind: str, leaf: str, labelled: bool = False
) -> Any:
    """Open a file of examples or texts to predict; labels may be missing.

    Args:
      config: the data of the run.
      file: the file.
      kind: its format, a key of `INPUT_FORMATS`.
      leaf: the flag with the file, for error texts.
      labelled: there must be labels, to compare predictions with; of parallel files
        `file` is then that of the sources, and the targets lie beside it.

    Raises:
      UserError: it is not in the format, or has no example.
    """
    own: Any = {"source": kind, "path": str(file), "valid_path": str(file)}
    own["on_bad_file"] = "error"  # it is the only one
    config = dataclasses.replace(config, **own)
    for problem in config.validate("config.data"):
        raise ConfigError(f"{leaf}={file}: {problem}")
    if not labelled:
        examples = INPUT_FORMATS[kind](config, [file], path="config.data")
    elif kind not in FORMATS:
        raise UserError(f"{leaf}={file}: texts have no labels to compare with")
    else:
        files = [file]
        if kind == "parallel":
            pattern = str(file).removesuffix(f".{config.fields.source}")
            files = _parallel_files(config, pattern, leaf=leaf)
        examples = FORMATS[kind](config, files, path="config.data")
    if not len(examples):
        raise UserError(f"{leaf}={file}: has no example")
    return examples
