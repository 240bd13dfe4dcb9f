"""The settings in a config.json, and what lmjax makes of them."""

from collections.abc import Mapping
from typing import Any, TypeVar

from lmjax.errors import ConfigError, nearest

T = TypeVar("T")

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
# Of the spellings above, the one that every model understands.
THEIR_ACTIVATIONS = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}


class Settings:
    """The keys of a config.json; those left out have their class's defaults."""

    def __init__(
        self, values: Mapping[str, Any], defaults: Mapping[str, Any], *, where: str
    ) -> None:
        self.values, self.defaults, self.where = values, defaults, where

    def get(self, key: str) -> Any:
        """Return a value, or its default; None stands for what follows from others."""
        return self.values.get(key, self.defaults.get(key))

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number; `default` instead of null.

        Raises:
          ConfigError: it is something else.
        """
        value = self.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 0:
            raise self.error(key, "must be a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number; `default` instead of null.

        Raises:
          ConfigError: it is something else.
        """
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.error(key, "must be a number")
        return float(value)

    def flag(self, key: str) -> bool:
        """Return true or false.

        Raises:
          ConfigError: it is something else.
        """
        value = self.get(key)
        if type(value) is not bool:
            raise self.error(key, "must be true or false")
        return value

    def choose(self, key: str, table: Mapping[str, T]) -> T:
        """Return what the table has for a value.

        Raises:
          ConfigError: it has nothing.
        """
        value = self.get(key)
        if not isinstance(value, str) or value not in table:
            near = nearest(str(value), list(table))
            raise self.error(key, f"allowed: {', '.join(table)}{near}")
        return table[value]

    def only(self, key: str, *allowed: Any) -> None:
        """Raise unless a setting that lmjax cannot honour is left as it is.

        Raises:
          ConfigError: naming the key, its value, and what is allowed.
        """
        if self.get(key) not in allowed:
            raise self.error(key, f"allowed: {', '.join(map(_json, allowed))}")

    def same(self, *keys: str) -> int:
        """Return the whole number that all keys must agree on.

        Raises:
          ConfigError: they do not.
        """
        first = self.integer(keys[0])
        for key in keys[1:]:
            if self.integer(key) != first:
                raise self.error(key, f"must be {keys[0]} = {first}")
        return first

    def error(self, key: str, message: str) -> ConfigError:
        """Return the error that tells of one key."""
        return ConfigError(f"{self.where}: {key} = {_json(self.get(key))}: {message}")


def _json(value: Any) -> str:
    words = {True: "true", False: "false", None: "null"}
    return (
        words[value]
        if value is None or value is True or value is False
        else (repr(value))
    )
