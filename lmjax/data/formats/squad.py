"""Question answering in the format of SQuAD (Rajpurkar et al. 2016, 2018)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.data.sources.documents import hash_json
from lmjax.data.sources.files import TextFiles
from lmjax.errors import UserError
from lmjax.fileio import parse_json


class SquadExamples(TextFiles):
    """One example for each question: its fields in the file, and its `context`.

    A file is one JSON object: "data" is a list of articles with "paragraphs", which
    have a "context" and its questions, "qas". Questions share the string.

    Raises:
      UserError: a file has another structure; names the place.
    """

    by_line = False

    def __init__(self, paths: Sequence[Path], **options: Any) -> None:
        super().__init__(paths, **options)
        questions = self._read_files(
            self._paths,
            lambda file: _list_questions(self._parse(file), where=str(file)),
        )
        self._examples = [(file, *question) for file, question in questions]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        return self._examples[index][2]

    def where(self, index: int, /) -> str:
        """Return FILE: question ID, or the place of a question without an id."""
        file, place, question = self._examples[index]
        if "id" in question:
            place = f"question {question['id']}"
        return f"{file}: {place}"

    def fingerprint(self) -> str:
        """Hash the contents of the files."""
        return hash_json("squad", self._on_bad_text, self._contents)

    def _parse(self, file: Path) -> Any:
        return parse_json(self._text(file), file=file)


def _list_questions(
    record: Any, *, where: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the place and the fields of each question."""
    for a, article in enumerate(_get_list(record, "data", where=where)):
        at = f"data[{a}]"
        paragraphs = _get_list(article, "paragraphs", where=where, at=at)
        for p, paragraph in enumerate(paragraphs):
            at = f"data[{a}].paragraphs[{p}]"
            questions = _get_list(paragraph, "qas", where=where, at=at)
            for q, question in enumerate(questions):
                place = f"{at}.qas[{q}]"
                if not isinstance(question, dict):
                    raise UserError(f"{where}: {place} is not an object")
                if "context" not in paragraph:
                    raise UserError(f"{where}: {at} has no 'context'")
                yield place, {**question, "context": paragraph["context"]}


def _get_list(value: Any, name: str, *, where: str, at: str = "") -> list[Any]:
    """Return a list of an object; `at` is the place of the object in the file."""
    if isinstance(value, dict) and isinstance(value.get(name), list):
        return value[name]
    place = at or "the file"
    raise UserError(
        f"{where}: not in the format of SQuAD: {place} has no list {name!r}"
    )
