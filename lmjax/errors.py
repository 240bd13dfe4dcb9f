"""The errors a user can act on, and hints for them."""

import difflib
from collections.abc import Sequence


class ConfigError(ValueError):
    """A mistake in a config that its author can mend; the text is one line."""


def nearest(name: str, allowed: Sequence[str]) -> str:
    """Return ` (did you mean X?)` for the closest allowed name, or nothing."""
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
