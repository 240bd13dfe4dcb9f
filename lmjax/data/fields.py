"""The parts of a labelled example, by name, each looked at before it is used."""

import json
from typing import Any

from lmjax.config import ConfigError, nearest
from lmjax.data.examples import Example


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
    value = part_of(example, name, leaf=leaf)
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        kind = type(value).__name__
        raise ConfigError(f"{name!r} holds {kind}, not a list of strings")
    if not value:
        raise ConfigError(f"{name!r} is empty")
    return [checked(word, name=name) for word in value]


def label_of(example: Example, name: str, *, leaf: str) -> str:
    """Return a part of an example that is a label, spelled as text; as `text_of`."""
    value = part_of(example, name, leaf=leaf)
    if isinstance(value, bool | int):
        return json.dumps(value)
    if not isinstance(value, str):
        raise ConfigError(f"{name!r} holds {type(value).__name__}, not a label")
    if not value.strip():
        raise ConfigError(f"{name!r} is empty")
    return value


def part_of(example: Example, name: str, *, leaf: str) -> Any:
    """Return a part of an example, whatever it is."""
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
