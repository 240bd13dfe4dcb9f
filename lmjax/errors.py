"""The errors that a user can fix."""

import difflib
from collections.abc import Sequence


class UserError(ValueError):
    """An error that the user can fix: in a file, a flag, a checkpoint, on the disk.

    The text is one line: the place, the value, what is allowed, and the nearest name.
    """


class ConfigError(UserError):
    """An error in a config; the text has the dotted path of the leaf."""


def nearest(name: str, allowed: Sequence[str]) -> str:
    """Return ` (did you mean X?)` for the most similar allowed name, or ""."""
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
