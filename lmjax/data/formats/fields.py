"""The parts of a labelled example, by name, each looked at before it is used."""

import json
from typing import Any

from lmjax.config.task import label_fault
from lmjax.data.formats.examples import Example
from lmjax.errors import ConfigError, nearest


def text_of(example: Example, name: str, *, leaf: str) -> str:
    """Return a part of an example that is text.

    Args:
      example: as `Examples` give it.
      name: of the part.
      leaf: the name's place in the config.

    Raises:
      ConfigError: there is no such part, or it is not text, or empty.
    """
    value = part_of(example, name, leaf=leaf)
    if not isinstance(value, str):
        raise ConfigError(f"{name!r} holds {type(value).__name__}, not a string")
    if not value.strip():
        raise ConfigError(f"{name!r} is empty")
    return checked(value, name=name)


def words_of(example: Example, name: str, *, leaf: str) -> list[str]:
    """Return a part of an example that is a list of words; else as `text_of`."""
    words = list_of(example, name, leaf=leaf)
    for i, word in enumerate(words):
        if not isinstance(word, str):
            kind = type(word).__name__
            raise ConfigError(f"{name!r} holds {kind} at [{i}], not a string")
    return [checked(word, name=name) for word in words]


def label_of(example: Example, name: str, *, leaf: str) -> str:
    """Return a part of an example that is a label, spelled as text; as `text_of`."""
    return _label(part_of(example, name, leaf=leaf), name=name)


def labels_of(example: Example, name: str, *, leaf: str) -> list[str]:
    """Return a part of an example that is a list of labels; as `label_of`."""
    labels = list_of(example, name, leaf=leaf)
    return [_label(label, name=f"{name}[{i}]") for i, label in enumerate(labels)]


def places_of(example: Example, name: str, *, leaf: str, count: int) -> tuple[int, ...]:
    """Return which of `count` words a part of an example marks; else as `text_of`.

    It is the number of one of them, from 0, or a list with 0 or 1 for each.
    """
    value = part_of(example, name, leaf=leaf)
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < count:
            raise ConfigError(f"{name!r} = {value}: must be from 0 to {count - 1}")
        return (value,)
    if not isinstance(value, list):
        kind = type(value).__name__
        raise ConfigError(f"{name!r} holds {kind}, neither a number nor a list")
    marks = list_of(example, name, leaf=leaf)
    if len(marks) != count:
        raise ConfigError(f"has {count} tokens, but {len(marks)} of {name!r}")
    for i, mark in enumerate(marks):
        if mark not in (0, 1, "0", "1"):
            raise ConfigError(f"{name!r} holds {mark!r} at [{i}], neither 0 nor 1")
    places = tuple(i for i, mark in enumerate(marks) if mark in (1, "1"))
    if not places:
        raise ConfigError(f"{name!r} marks no token")
    return places


def list_of(example: Example, name: str, *, leaf: str) -> list[Any]:
    """Return a part of an example that is a list, and not empty; as `text_of`."""
    value = part_of(example, name, leaf=leaf)
    if not isinstance(value, list):
        raise ConfigError(f"{name!r} holds {type(value).__name__}, not a list")
    if not value:
        raise ConfigError(f"{name!r} is empty")
    return value


def _label(value: Any, *, name: str) -> str:
    if isinstance(value, bool | int):
        return json.dumps(value)
    if not isinstance(value, str):
        raise ConfigError(f"{name!r} holds {type(value).__name__}, not a label")
    if fault := label_fault(value):
        raise ConfigError(f"{name!r} = {value!r}: {fault}")
    return value


def part_of(example: Example, name: str, *, leaf: str) -> Any:
    """Return a part of an example, whatever it is.

    One that is made of others, NAME/REST as TFDS's nested features are called, comes as
    an object of them.
    """
    inside = f"{name}/"
    nested = {n[len(inside) :]: v for n, v in example.items() if n.startswith(inside)}
    if name not in example and nested:
        return nested
    if name not in example:
        hint, names = nearest(name, [*example]), ", ".join(example) or "none"
        raise ConfigError(f"{leaf} = {name!r}: no such field{hint}; there are {names}")
    return example[name]


def checked(text: str, *, name: str) -> str:
    """Return a text as it is.

    Raises:
      ConfigError: it has half of a surrogate pair, which JSON can spell.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name!r} has half of a surrogate pair") from error
    return text
