"""The errors that a user can fix."""

import difflib
from collections.abc import Sequence


class UserError(ValueError):
    """An error that the user can fix: in a file, a flag, a checkpoint, on the disk.

    The text is one line: the place, the value, what is allowed, and the nearest name.
    """


class ConfigError(UserError):
    """An error in a config; the text has the dotted path of the leaf."""


def show(value: object) -> str:
    """Return a value as a short text for an error, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # an integer of thousands of digits, or a faulty __repr__
        return f"<{type(value).__name__}>"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


_MAX_SHOWN = 300  # characters of a value in an error


def nearest(name: str, allowed: Sequence[str]) -> str:
    """Return ` (did you mean X?)` for the most similar allowed name, or ""."""
    close = difflib.get_close_matches(name[:_MAX_SHOWN], allowed, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
