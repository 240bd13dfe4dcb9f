"""Answers that are parts of a text, as an example lists them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmjax.data.formats import fields
from lmjax.data.formats.examples import Example
from lmjax.errors import ConfigError

_PARTS = ("text", "answer_start")


class Answer(NamedTuple):
    """A part of the context."""

    text: str
    start: int  # its first character


def answers_of(
    example: Example, name: str, *, context: str, leaf: str
) -> tuple[Answer, ...]:
    """Return the answers to a question; none if it says `is_impossible`: true.

    They are a list of objects with `text` and `answer_start`, or, as TFDS has them, an
    object of two such lists.

    Args:
      example: as `Examples` give it.
      name: of the part that holds the answers.
      context: what they are parts of.
      leaf: the name's place in the config.

    Raises:
      ConfigError: there is no such part, or an answer is empty, or elsewhere.
    """
    value = fields.part_of(example, name, leaf=leaf)
    found = tuple(_answer(a, context) for a in _listed(value, name=name))
    impossible = example.get("is_impossible", False)
    if impossible not in (False, True):
        raise ConfigError(f"'is_impossible' = {impossible!r}: must be true or false")
    return () if impossible else found


def tokens_of(answers: Sequence[Answer], offsets_T2: np.ndarray) -> tuple[int, int]:
    """Return the first and the last token of the answer that most people gave.

    Where no token stands for it, the last is before the first.
    """
    answer = max(answers, key=answers.count)
    begin = answer.start + len(answer.text) - len(answer.text.lstrip())
    end = begin + len(answer.text.strip())
    inside_T = (offsets_T2[:, 1] > begin) & (offsets_T2[:, 0] < end)
    (found,) = np.nonzero(inside_T)
    return (int(found[0]), int(found[-1])) if len(found) else (0, -1)


def _listed(value: Any, *, name: str) -> list[Any]:
    if isinstance(value, Mapping):
        columns: list[Any] = [value.get(part) for part in _PARTS]
        if all(isinstance(column, list | tuple | np.ndarray) for column in columns):
            if len({*map(len, columns)}) > 1:
                raise ConfigError(f"{name!r} has not as many 'text' as 'answer_start'")
            rows = zip(*columns, strict=True)
            value = [dict(zip(_PARTS, row, strict=True)) for row in rows]
    if not isinstance(value, list):
        kind = type(value).__name__
        raise ConfigError(f"{name!r} holds {kind}, not a list of answers")
    return value


def _answer(value: Any, context: str) -> Answer:
    """Return an answer that is where it says it is."""
    text, start = map(value.get, _PARTS) if isinstance(value, Mapping) else ("", "")
    start = None if isinstance(start, bool) else start  # to Python that is a number
    if not isinstance(text, str) or not isinstance(start, int | np.integer):
        raise ConfigError("an answer must have a 'text' and a number 'answer_start'")
    if not text.strip():
        raise ConfigError("an answer is empty")
    if start < 0 or not context.startswith(text, start):
        place = context.find(text)
        hint = f"it is at {place}" if place >= 0 else "nor anywhere else"
        short = text if len(text) <= 60 else f"{text[:60]}..."
        raise ConfigError(
            f"the answer {short!r} is not at answer_start = {start} of the context "
            f"({hint})"
        )
    return Answer(text, int(start))
