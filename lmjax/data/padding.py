"""Rows of different lengths as one array, and the positions of the tokens in a row.

Shapes: B rows, T tokens in a row.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def round_up(length: int, multiple: int) -> int:
    """Return the smallest multiple that is not below `length`."""
    return -(-length // multiple) * multiple


def pad_rows(
    rows: Sequence[Any],
    *,
    length: int,
    fill: float = 0,
    dtype: type[np.generic] = np.int32,
) -> np.ndarray:
    """Return the rows as one array (B, length), padded on the right with `fill`."""
    batch_BT = np.full((len(rows), length), fill, dtype)
    for b, row in enumerate(rows):
        batch_BT[b, : len(row)] = row
    return batch_BT


def segment_positions(segments: np.ndarray) -> np.ndarray:
    """Count the tokens of each segment from 0, along the last axis."""
    place_T = np.arange(segments.shape[-1])
    begins = np.diff(segments, axis=-1, prepend=0) != 0
    first = np.maximum.accumulate(np.where(begins, place_T, 0), axis=-1)
    return place_T - first
