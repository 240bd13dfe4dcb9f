"""Read and check the fields of labelled examples."""

import json
from typing import Any

from lmjax.config.task import label_fault
from lmjax.data.formats.examples import Example
from lmjax.errors import ConfigError, UserError, nearest


def get_field(example: Example, name: str, *, leaf: str) -> Any:
    """Return a field of an example, of any type.

    The nested features NAME/REST of a TFDS record are returned as an object of them.

    Args:
      example: one of `Examples`.
      name: the field.
      leaf: the dotted path of the config leaf that has `name`.

    Raises:
      ConfigError: there is no such field.
    """
    prefix = f"{name}/"
    nested = {n[len(prefix) :]: v for n, v in example.items() if n.startswith(prefix)}
    if name not in example and nested:
        return nested
    if name not in example:
        hint, names = nearest(name, [*example]), ", ".join(example) or "none"
        raise ConfigError(f"{leaf} = {name!r}: no such field{hint}; there are {names}")
    return example[name]


def get_text(example: Example, name: str, *, leaf: str) -> str:
    """Return a field that is text; the arguments are those of `get_field`.

    Raises:
      UserError: there is no such field, or it is not text, or empty.
    """
    value = get_field(example, name, leaf=leaf)
    if not isinstance(value, str):
        raise UserError(f"{name!r} holds {type(value).__name__}, not a string")
    if not value.strip():
        raise UserError(f"{name!r} is empty")
    return _check_unicode(value, name=name)


def get_list(example: Example, name: str, *, leaf: str) -> list[Any]:
    """Return a field that is a list, and not empty; see `get_text`."""
    value = get_field(example, name, leaf=leaf)
    if not isinstance(value, list):
        raise UserError(f"{name!r} holds {type(value).__name__}, not a list")
    if not value:
        raise UserError(f"{name!r} is empty")
    return value


def get_words(example: Example, name: str, *, leaf: str) -> list[str]:
    """Return a field that is a list of words; see `get_text`."""
    words = get_list(example, name, leaf=leaf)
    for i, word in enumerate(words):
        if not isinstance(word, str):
            kind = type(word).__name__
            raise UserError(f"{name!r} holds {kind} at [{i}], not a string")
    return [_check_unicode(word, name=name) for word in words]


def get_label(example: Example, name: str, *, leaf: str) -> str:
    """Return a field that is a label, as text; see `get_text`."""
    return _check_label(get_field(example, name, leaf=leaf), name=name)


def get_labels(example: Example, name: str, *, leaf: str) -> list[str]:
    """Return a field that is a list of labels, as text; see `get_text`."""
    labels = get_list(example, name, leaf=leaf)
    return [_check_label(label, name=f"{name}[{i}]") for i, label in enumerate(labels)]


def get_word_indices(
    example: Example, name: str, *, leaf: str, count: int
) -> tuple[int, ...]:
    """Return the indices of the words that a field marks; see `get_text`.

    The field is the index of a word, or a list with 0 or 1 for each word.

    Args:
      example: one of `Examples`.
      name: the field.
      leaf: the dotted path of the config leaf that has `name`.
      count: the number of words.
    """
    value = get_field(example, name, leaf=leaf)
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < count:
            raise UserError(f"{name!r} = {value}: must be from 0 to {count - 1}")
        return (value,)
    if not isinstance(value, list):
        kind = type(value).__name__
        raise UserError(f"{name!r} holds {kind}, neither a number nor a list")
    marks = get_list(example, name, leaf=leaf)
    if len(marks) != count:
        raise UserError(f"has {count} tokens, but {len(marks)} of {name!r}")
    for i, mark in enumerate(marks):
        if mark not in (0, 1, "0", "1"):
            raise UserError(f"{name!r} holds {mark!r} at [{i}], neither 0 nor 1")
    indices = tuple(i for i, mark in enumerate(marks) if mark in (1, "1"))
    if not indices:
        raise UserError(f"{name!r} marks no token")
    return indices


def _check_label(value: Any, *, name: str) -> str:
    if isinstance(value, bool | int):
        return json.dumps(value)
    if not isinstance(value, str):
        raise UserError(f"{name!r} holds {type(value).__name__}, not a label")
    if fault := label_fault(value):
        raise UserError(f"{name!r} = {value!r}: {fault}")
    return value


def _check_unicode(text: str, *, name: str) -> str:
    """Return the text; an error if it has half of a surrogate pair, as JSON allows."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name!r} has half of a surrogate pair") from error
    return text
