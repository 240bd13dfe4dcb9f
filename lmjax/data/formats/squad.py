"""Questions about texts, in the files of SQuAD (Rajpurkar et al. 2016, 2018)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.data.sources.documents import hash_json
from lmjax.data.sources.files import TextFiles
from lmjax.errors import ConfigError
from lmjax.fileio import parse_json


class SquadExamples(TextFiles):
    """One example for each question: all it has in the file, and its `context`.

    A file is one object: "data" is a list of articles, whose "paragraphs" have a
    "context" and the questions about it, "qas". Questions share the text in memory.

    Raises:
      ConfigError: a file is something else; says where.
    """

    def __init__(self, paths: Sequence[Path], *, on_bad_text: str, path: str) -> None:
        super().__init__(paths, on_bad_text=on_bad_text, path=path)
        self._found = [
            (file, place, question)
            for file in paths
            for place, question in _questions(self._read(file), where=str(file))
        ]

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        return self._found[index][2]

    def where(self, index: int, /) -> str:
        """Return FILE: question ID, or its place where it has no id."""
        file, place, question = self._found[index]
        if "id" in question:
            place = f"question {question['id']}"
        return f"{file}: {place}"

    def fingerprint(self) -> str:
        """Hash the contents of the files."""
        return hash_json("squad", self._on_bad_text, self._contents)

    def _read(self, file: Path) -> Any:
        text = self._text(file).removeprefix("\ufeff")
        return parse_json(text, file=file)


def _questions(record: Any, *, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the place and the parts of each question."""
    for a, article in enumerate(_list(record, "data", where=where)):
        at = f"data[{a}]"
        for p, paragraph in enumerate(_list(article, "paragraphs", where=where, at=at)):
            at = f"data[{a}].paragraphs[{p}]"
            for q, question in enumerate(_list(paragraph, "qas", where=where, at=at)):
                place = f"{at}.qas[{q}]"
                if not isinstance(question, dict):
                    raise ConfigError(f"{where}: {place} is not an object")
                if "context" not in paragraph:
                    raise ConfigError(f"{where}: {at} has no 'context'")
                yield place, {**question, "context": paragraph["context"]}


def _list(value: Any, name: str, *, where: str, at: str = "") -> list[Any]:
    """Return the list of that name; `at` says where in the file its object stands."""
    if isinstance(value, dict) and isinstance(value.get(name), list):
        return value[name]
    what = at or "the file"
    raise ConfigError(f"{where}: not SQuAD's JSON: {what} has no list {name!r}")
