"""Answers to questions: spans of a context, as examples list them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmjax.data.formats import fields
from lmjax.data.formats.examples import Example
from lmjax.errors import UserError

_KEYS = ("text", "answer_start")


class Answer(NamedTuple):
    """A span of the context."""

    text: str
    start: int  # the index of its first character


def get_answers(
    example: Example, name: str, *, context: str, leaf: str
) -> tuple[Answer, ...]:
    """Return the answers to a question; () if the example has `is_impossible`: true.

    In the example they are a list of objects with `text` and `answer_start`, or, as in
    TFDS, an object of two such lists.

    Args:
      example: one of `Examples`.
      name: the field with the answers.
      context: the text that contains the answers.
      leaf: the dotted path of the config leaf that has `name`.

    Raises:
      UserError: there is no such field, or an answer is empty or not in the context.
    """
    value = fields.get_field(example, name, leaf=leaf)
    answers = tuple(_check_answer(a, context) for a in _list_answers(value, name=name))
    impossible = example.get("is_impossible", False)
    if impossible not in (False, True):
        raise UserError(f"'is_impossible' = {impossible!r}: must be true or false")
    return () if impossible else answers


def find_answer_tokens(
    answers: Sequence[Answer], offsets_T2: np.ndarray
) -> tuple[int, int]:
    """Return the first and the last token of the most frequent answer.

    Args:
      answers: those of different annotators.
      offsets_T2: the first character of each token, and the one after its last.

    Returns:
      Indices of tokens; (0, -1) if no token overlaps the answer.
    """
    answer = max(answers, key=answers.count)
    begin = answer.start + len(answer.text) - len(answer.text.lstrip())
    end = begin + len(answer.text.strip())
    inside_T = (offsets_T2[:, 1] > begin) & (offsets_T2[:, 0] < end)
    (tokens,) = np.nonzero(inside_T)
    return (int(tokens[0]), int(tokens[-1])) if len(tokens) else (0, -1)


def _list_answers(value: Any, *, name: str) -> list[Any]:
    """Return answers as a list, also those that TFDS has as an object of lists."""
    if isinstance(value, Mapping):
        columns: list[Any] = [value.get(key) for key in _KEYS]
        if all(isinstance(column, list | tuple | np.ndarray) for column in columns):
            counts = [*map(len, columns)]
            if len({*counts}) > 1:
                raise UserError(
                    f"{name!r} has {counts[0]} 'text', but {counts[1]} 'answer_start'"
                )
            rows = zip(*columns, strict=True)
            value = [dict(zip(_KEYS, row, strict=True)) for row in rows]
    if not isinstance(value, list):
        raise UserError(f"{name!r} holds {type(value).__name__}, not a list of answers")
    return value


def _check_answer(value: Any, context: str) -> Answer:
    """Return an answer after checking that the context has it at its position."""
    text, start = map(value.get, _KEYS) if isinstance(value, Mapping) else ("", "")
    start = None if isinstance(start, bool) else start  # a bool is an int in Python
    if not isinstance(text, str) or not isinstance(start, int | np.integer):
        raise UserError("an answer must have a 'text' and a number 'answer_start'")
    if not text.strip():
        raise UserError("an answer is empty")
    if start < 0 or not context.startswith(text, start):
        actual = context.find(text)
        hint = f"it is at {actual}" if actual >= 0 else "nor anywhere else"
        short = text if len(text) <= 60 else f"{text[:60]}..."
        raise UserError(
            f"the answer {short!r} is not at answer_start = {start} of the context "
            f"({hint})"
        )
    return Answer(text, int(start))
