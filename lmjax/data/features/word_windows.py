"""Split a sentence that is too long for one row into windows of words.

W words of a sentence.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np


class Window(NamedTuple):
    """The words of a row, and the last of them, which are labelled there.

    The words before are context; they are labelled in the window before.
    """

    words: range
    labelled: range


def split_windows(sizes_W: np.ndarray, *, room: int) -> Iterator[Window]:
    """Yield windows that label each word once; room that is left goes to context.

    Args:
      sizes_W: tokens of each word, from 1 to `room`.
      room: tokens in a window.
    """
    ends_W = np.cumsum(sizes_W)
    starts_W = ends_W - sizes_W
    start = 0
    while start < len(sizes_W):
        stop = int(np.searchsorted(ends_W, starts_W[start] + room, "right"))
        first = int(np.searchsorted(starts_W, ends_W[stop - 1] - room))
        yield Window(range(first, stop), range(start, stop))
        start = stop


def center_window(sizes_W: np.ndarray, center: Sequence[int], *, room: int) -> Window:
    """Return a window around some words, with about as many tokens on either side.

    Args:
      sizes_W: tokens of each word, from 1 to `room`.
      center: the words in the middle, ascending; only the first, if not all fit.
      room: tokens in a window.
    """
    ends_W = np.cumsum(sizes_W)
    starts_W = ends_W - sizes_W
    first, last = center[0], center[-1]
    if ends_W[last] - starts_W[first] > room:
        last = first
    spare = room - (ends_W[last] - starts_W[first])
    left = max(spare // 2, spare - (ends_W[-1] - ends_W[last]))
    start = int(np.searchsorted(starts_W, starts_W[first] - left))
    stop = int(np.searchsorted(ends_W, starts_W[start] + room, "right"))
    return Window(range(start, stop), range(start, stop))


def separate_words(
    words: Sequence[np.ndarray], marked: Sequence[int], separator: Sequence[int]
) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """Put a separator before and after the words at some indices.

    Words that follow one another are separated as one.

    Returns:
      The tokens of each word, and the numbers of separator tokens before and after it,
      int64 (W,).
    """
    pieces: list[Any] = [*words]
    lead_W, trail_W = np.zeros((2, len(words)), np.int64)
    for i in marked:
        if i - 1 not in marked:
            pieces[i], lead_W[i] = [*separator, *pieces[i]], len(separator)
        if i + 1 not in marked:
            pieces[i], trail_W[i] = [*pieces[i], *separator], len(separator)
    return pieces, lead_W, trail_W
