"""Arrays within a network, for those who ask: attention weights, hidden states.

A network records arrays under names while it is traced. Unless somebody captures them,
that does nothing, and the compiled program is the same.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping

from lmjax.types import Array


@dataclasses.dataclass(frozen=True)
class _Frame:
    captured: dict[str, Array]
    replace: Mapping[str, Array]


_FRAME: contextvars.ContextVar[_Frame | None] = contextvars.ContextVar(
    "intermediates", default=None
)


@contextlib.contextmanager
def capture(replace: Mapping[str, Array] | None = None) -> Iterator[dict[str, Array]]:
    """Collect what a network records meanwhile, by name.

    It is for use within a function that is traced as a whole, such as one that is
    jitted.

    Args:
      replace: arrays that the network uses in place of those it would record.
    """
    with _frame(_Frame({}, replace or {})) as captured:
        yield captured


@contextlib.contextmanager
def nested() -> Iterator[dict[str, Array]]:
    """Collect what is recorded within the body of a loop, which returns it.

    The loop's caller records the result. Nothing is collected, unless it is captured.
    """
    if _FRAME.get() is None:
        yield {}
        return
    with _frame(_Frame({}, {})) as captured:
        yield captured


@contextlib.contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Record what is recorded meanwhile with a prefix before its names."""
    with nested() as captured:
        yield
    record_all(captured, prefix=prefix)


def record(name: str, x: Array) -> Array:
    """Return an array, or what replaces it, after recording it."""
    frame = _FRAME.get()
    if frame is None:
        return x
    frame.captured[name] = x
    return frame.replace.get(name, x)


def record_all(captured: Mapping[str, Array], *, prefix: str = "") -> None:
    """Record several arrays."""
    for name, x in captured.items():
        record(prefix + name, x)


@contextlib.contextmanager
def _frame(frame: _Frame) -> Iterator[dict[str, Array]]:
    token = _FRAME.set(frame)
    try:
        yield frame.captured
    finally:
        _FRAME.reset(token)
