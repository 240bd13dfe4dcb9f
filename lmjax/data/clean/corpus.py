"""The documents that are cleaned, with the other fields of their records."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from lmjax.config.data import SourceConfig
from lmjax.config.parse import apply_override, build, validate_tree
from lmjax.data.clean.contamination import strings_in
from lmjax.data.sources.columns import ColumnRecords
from lmjax.data.sources.files import JsonLines, JsonRecords
from lmjax.data.sources.find import find_files, splits_of
from lmjax.data.sources.markup import strip_markup
from lmjax.data.sources.plain import strip_suffix
from lmjax.data.sources.registry import READERS
from lmjax.errors import ConfigError, UserError
from lmjax.fileio import parse_json_line

_SOURCE_OF = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".txt": "text",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Root:
    """The part of a config that says how files are read."""

    data: SourceConfig = SourceConfig()


def choose_source(pattern: str, overrides: Sequence[str], *, flag: str) -> SourceConfig:
    """Return how the files of a pattern are read: by their suffixes, and overrides.

    Args:
      pattern: a glob or a directory.
      overrides: "data.LEAF=VALUE".
      flag: that has the pattern.

    Raises:
      UserError: there is no such file, or the suffixes name several sources.
    """
    nested: dict[str, Any] = {"data": {"path": pattern}}
    problems: list[str] = []
    for override in overrides:
        apply_override(_Root, nested, override, problems)
    if not problems and "source" not in nested["data"]:
        nested["data"]["source"] = _guess_source(pattern, flag=flag)
    root = build(_Root, nested, "config", problems)
    problems += [] if problems else validate_tree(root, "config")
    if problems:
        raise ConfigError("; ".join(dict.fromkeys(problems)))
    config: SourceConfig = root.data
    if config.source not in READERS:
        raise ConfigError(
            f"config.data.source = {config.source!r}: must be one of "
            f"{', '.join(READERS)} here"
        )
    return config


def _guess_source(pattern: str, *, flag: str) -> str:
    files = find_files(pattern, path=flag, split="all")
    found = {_SOURCE_OF.get(strip_suffix(file).lower(), "") for file in files}
    known = sorted(found - {""})
    if len(known) > 1:
        raise UserError(
            f"{flag}={pattern}: has files of {' and '.join(known)}; choose by "
            "--config.data.source"
        )
    return known[0] if known else "text"


class Corpus:
    """Documents in the order of their files, and their records.

    Args:
      config: how they are read.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        path = "config.data"
        self.files = find_files(config.path, path=f"{path}.path", source=config.source)
        # Markup is taken out here: `documents` tell places and records.
        self.documents: Any = READERS[config.source](config, path=path)(self.files)
        self._columns: ColumnRecords | None = None
        if config.source in ("parquet", "arrow"):
            self._columns = ColumnRecords(
                self.files,
                on_bad_text=config.on_bad_text,
                on_bad_file=config.on_bad_file,
                path=path,
            )

    def __len__(self) -> int:
        return len(self.documents)

    def read(self, index: int) -> tuple[str, dict[str, Any]]:
        """Return the text of a document, and the record that it is in."""
        record: dict[str, Any] = {}
        if isinstance(self.documents, JsonLines):
            record = self.documents.record(index)
            text = self.documents.text_of(index, record)
        else:
            text = self.documents[index]
        if self._columns is not None:
            record = self._columns[index]
        return strip_markup(text, self.config.markup), record

    def size(self, index: int, /) -> int:
        """Return the bytes of a document with its markup; 0 if it cannot be read."""
        try:
            return int(self.documents.size(index))
        except UserError:
            return 0

    def where(self, index: int) -> str:
        """Return FILE:LINE of a document, for the report."""
        return str(self.documents.where(index))

    def fingerprint(self) -> str:
        """Hash the documents, and the fields beside them."""
        return f"{self.documents.fingerprint()} {self.config.markup}"

    def other_splits(self) -> list[str]:
        """Return the splits of a directory that are not read."""
        return list(splits_of(self.config, "config.data"))[1:]


def read_held_out(pattern: str) -> Iterator[str]:
    """Yield the texts of held-out files: of records every string that they hold.

    Raises:
      UserError: a file cannot be read.
    """
    flag = "--decontaminate"
    source = _guess_source(pattern, flag=flag)
    files = find_files(pattern, path=flag, source=source, split="all")
    # a kind that find_files has accepted
    config = SourceConfig(source=source, path=pattern)  # type: ignore[arg-type]
    if source in ("parquet", "arrow"):
        columns = ColumnRecords(files, on_bad_text="replace", path=flag)
        for index in range(len(columns)):
            yield from strings_in(columns[index])
    elif source == "jsonl":
        lines = JsonRecords(files, on_bad_text="replace", path=flag)
        for index in range(len(lines)):
            where = lambda at=index: lines.where(at)
            yield from strings_in(parse_json_line(lines[index], where=where))
    else:
        documents = READERS[source](config, path=flag)(files)
        for index in range(len(documents)):
            yield documents[index]
