"""The errors that a user can act on."""

import difflib
from collections.abc import Sequence


class UserError(ValueError):
    """A mistake that the user can mend: a file, a flag, a disk, a lock.

    The text is one line: where, the value, what is allowed, and the nearest name.
    """


class ConfigError(UserError):
    """A mistake in a config; the text names the dotted path of the leaf."""


def nearest(name: str, allowed: Sequence[str]) -> str:
    """Return ` (did you mean X?)` for the closest allowed name, or nothing."""
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
