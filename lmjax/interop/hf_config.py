"""Reading a config.json key by key, with the defaults of its transformers class."""

from collections.abc import Mapping
from typing import Any, TypeVar

from lmjax.errors import UserError, nearest

T = TypeVar("T")

# The activations of lmjax by transformers' names for them.
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
# The other way round. Of several names the first, which all models understand.
HF_ACTIVATIONS = {name: hf_name for hf_name, name in reversed(ACTIVATIONS.items())}


class HFConfig:
    """The keys of a config.json.

    Args:
      values: of the keys that are there.
      defaults: of the other keys.
      file: how errors name the config.json.
    """

    def __init__(
        self, values: Mapping[str, Any], defaults: Mapping[str, Any], *, file: str
    ) -> None:
        self.values, self.defaults, self.file = values, defaults, file

    @property
    def architecture(self) -> str:
        """Return the class of transformers that the model was saved as, or ""."""
        listed = self.values.get("architectures")
        if listed is None or listed == []:
            return ""
        if not isinstance(listed, list) or not isinstance(listed[0], str):
            raise self.error("architectures", "expected a list of names")
        return listed[0]

    def get(self, key: str) -> Any:
        """Return a value, or its default, or None."""
        return self.values.get(key, self.defaults.get(key))

    def get_int(self, key: str, default: int | None = None) -> int:
        """Return a whole number; `default` if it is null or missing.

        Raises:
          UserError: the value is something else, or negative.
        """
        value = self.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 0:
            raise self.error(key, "expected a whole number")
        return value

    def get_float(self, key: str, default: float | None = None) -> float:
        """Return a number; `default` if it is null or missing.

        Raises:
          UserError: the value is something else.
        """
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.error(key, "expected a number")
        return float(value)

    def get_bool(self, key: str) -> bool:
        """Return a boolean.

        Raises:
          UserError: the value is something else.
        """
        value = self.get(key)
        if type(value) is not bool:
            raise self.error(key, "expected true or false")
        return value

    def look_up(self, key: str, table: Mapping[str, T]) -> T:
        """Return the entry of `table` for a value.

        Raises:
          UserError: the table has none.
        """
        value = self.get(key)
        if not isinstance(value, str) or value not in table:
            hint = nearest(str(value), list(table))
            raise self.error(key, f"allowed: {', '.join(table)}{hint}")
        return table[value]

    def require(self, key: str, *allowed: Any) -> None:
        """Check that a value is one of those that lmjax can compute.

        Raises:
          UserError: it is not.
        """
        if self.get(key) not in allowed:
            raise self.error(key, f"allowed: {', '.join(map(_format, allowed))}")

    def get_equal_int(self, *keys: str) -> int:
        """Return the whole number that all keys have.

        Raises:
          UserError: they differ.
        """
        first = self.get_int(keys[0])
        for key in keys[1:]:
            if self.get_int(key) != first:
                raise self.error(key, f"expected {keys[0]} = {first}")
        return first

    def error(self, key: str, message: str) -> UserError:
        """Return an error about the value of a key."""
        return UserError(f"{self.file}: {key} = {_format(self.get(key))}: {message}")


def _format(value: Any) -> str:
    """Return a value as JSON has it, but texts in single quotes."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)
