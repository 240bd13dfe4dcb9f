"""The key-value store of the processes of one run.

The first process serves it, and knows of no devices: whoever waits here waits with a
limit, while a collective of the devices waits forever. JAX keeps the client to itself;
this is the only file that touches it.
"""

import math
import socket
import time
from typing import Any, Protocol

from jax._src import distributed
from jax.errors import JaxRuntimeError

# One call of the client waits at most so long; the time in between is Python's.
_SLICE_SECONDS = 60.0
# What this file calls on the client of `jax.distributed`.
CLIENT_METHODS = (
    "blocking_key_value_get",
    "key_value_delete",
    "key_value_dir_get",
    "key_value_set",
)


class KeyValues(Protocol):
    """Text by key, which all processes see."""

    def set(self, key: str, value: str) -> None:
        """Set a value, in place of an earlier one."""

    def get(self, key: str, *, seconds: float) -> str | None:
        """Return a value once it is set; None if it is not within so many seconds."""

    def list(self, prefix: str) -> dict[str, str]:
        """Return the values below `prefix/`, by what follows it in their keys."""

    def delete(self, prefix: str) -> None:
        """Delete a key, and all below it."""


class Coordination:
    """The store of `jax.distributed`; its calls raise `ConnectionError`."""

    def __init__(self) -> None:
        self._client: Any = distributed.global_state.client

    def set(self, key: str, value: str) -> None:
        """Set a value, in place of an earlier one."""
        self._call("key_value_set", key, value, allow_overwrite=True)

    def get(self, key: str, *, seconds: float) -> str | None:
        """Return a value once it is set; None if it is not within so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            left = max(0.0, deadline - time.monotonic())
            milliseconds = math.ceil(1000 * min(left, _SLICE_SECONDS)) + 1
            try:
                found = self._call("blocking_key_value_get", key, milliseconds)
            except TimeoutError:
                if left <= _SLICE_SECONDS:
                    return None
            else:
                return str(found)

    def list(self, prefix: str) -> dict[str, str]:
        """Return the values below `prefix/`, by what follows it in their keys."""
        found = self._call("key_value_dir_get", f"{prefix}/")
        return {key.removeprefix(f"{prefix}/"): value for key, value in found}

    def delete(self, prefix: str) -> None:
        """Delete a key, and all below it."""
        self._call("key_value_delete", prefix)

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        try:
            return getattr(self._client, method)(*args, **options)
        except JaxRuntimeError as error:
            text = str(error).strip().splitlines()[0]
            if text.startswith("DEADLINE_EXCEEDED"):
                raise TimeoutError(text) from error
            raise ConnectionError(text) from error


def has_joined() -> bool:
    """Return whether this process is one of several that have joined each other."""
    return distributed.global_state.client is not None and num_processes() > 1


def num_processes() -> int:
    """Return how many processes there are; touches no device."""
    return distributed.global_state.num_processes


def process_index() -> int:
    """Return the index of this process; touches no device."""
    return distributed.global_state.process_id


def answers(*, seconds: float) -> bool:
    """Return whether the first process can still be connected to."""
    address = distributed.global_state.coordinator_address or ""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except (OSError, ValueError):
        return False
    return True
