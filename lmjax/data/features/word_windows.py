"""Which words of a sentence stand in a row together, where not all of them fit.

W words of a sentence.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np


class Window(NamedTuple):
    """Words that follow one another in a row, and the last of them, its own.

    What a row says of a word counts where the word is its own; the words before are
    there to be seen.
    """

    words: range
    own: range


def consecutive(sizes_W: np.ndarray, *, room: int) -> Iterator[Window]:
    """Yield windows of which each word is in one for its own.

    What room they leave goes to the words before.

    Args:
      sizes_W: tokens of each word, from 1 to `room`.
      room: tokens in a window.
    """
    ends_W = np.cumsum(sizes_W)
    starts_W = ends_W - sizes_W
    begin = 0
    while begin < len(sizes_W):
        stop = int(np.searchsorted(ends_W, starts_W[begin] + room, "right"))
        first = int(np.searchsorted(starts_W, ends_W[stop - 1] - room))
        yield Window(range(first, stop), range(begin, stop))
        begin = stop


def centred(sizes_W: np.ndarray, places: Sequence[int], *, room: int) -> Window:
    """Return the window that has as many words on both sides of some as fit.

    Args:
      sizes_W: tokens of each word, from 1 to `room`.
      places: those in the middle, ascending; the first of them, if not all fit.
      room: tokens in a window.
    """
    ends_W = np.cumsum(sizes_W)
    starts_W = ends_W - sizes_W
    first, last = places[0], places[-1]
    if ends_W[last] - starts_W[first] > room:
        last = first
    spare = room - (ends_W[last] - starts_W[first])
    left = max(spare // 2, spare - (ends_W[-1] - ends_W[last]))
    begin = int(np.searchsorted(starts_W, starts_W[first] - left))
    stop = int(np.searchsorted(ends_W, starts_W[begin] + room, "right"))
    return Window(range(begin, stop), range(begin, stop))


def set_apart(
    words: Sequence[np.ndarray], places: Sequence[int], separator: Sequence[int]
) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """Return the words with separators around some, and their tokens before and after.

    Words that follow one another are set apart together.
    """
    pieces: list[Any] = [*words]
    lead_W, trail_W = np.zeros((2, len(words)), np.int64)
    for i in places:
        if i - 1 not in places:
            pieces[i], lead_W[i] = [*separator, *pieces[i]], len(separator)
        if i + 1 not in places:
            pieces[i], trail_W[i] = [*pieces[i], *separator], len(separator)
    return pieces, lead_W, trail_W
