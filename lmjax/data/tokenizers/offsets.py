"""Which characters of its text each token stands for. T tokens, N characters."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Encoded(NamedTuple):
    """The tokens of a text, and where in it they stand.

    Characters are counted as Python counts them. A token that is a part of a character
    has all of it; one that stands for nothing of the text has an empty span.
    """

    ids: np.ndarray  # int32 (T,)
    offsets: np.ndarray  # int32 (T, 2): the first character, and the one after the last


def encoded(ids: Sequence[int] | np.ndarray, offsets: Any) -> Encoded:
    """Return ids and pairs, in whatever they come, as arrays."""
    pairs = np.asarray(offsets, np.int32).reshape(-1, 2)
    return Encoded(np.asarray(ids, np.int32), pairs)


def joined(parts: Iterable[tuple[int, Encoded]]) -> Encoded:
    """Return the tokens of a text, given those of its parts and where these begin."""
    empty = encoded([], [])
    placed = [(part.ids, part.offsets + begin) for begin, part in parts]
    ids, offsets = zip((empty.ids, empty.offsets), *placed, strict=True)
    return Encoded(np.concatenate(ids), np.concatenate(offsets))


def of_bytes(text: str) -> np.ndarray:
    """Return the offsets of the bytes of a text in UTF-8: each has its character's."""
    codes_N = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    limits = np.array([0x80, 0x800, 0x10000])
    num_bytes_N = 1 + (codes_N[:, None] >= limits).sum(axis=1)
    place_T = np.repeat(np.arange(len(text), dtype=np.int32), num_bytes_N)
    return np.stack([place_T, place_T + 1], axis=1)


def with_marks(text: str, offsets_T2: np.ndarray) -> np.ndarray:
    """Return offsets in which combining marks are the token's that they stand behind.

    A tokenizer that drops accents has no token for them, but a character is only whole
    with its marks.
    """
    if text.isascii():
        return offsets_T2
    begin_T, end_T = offsets_T2[:, 0], offsets_T2[:, 1].copy()
    change_N = np.zeros(len(text) + 1, np.int32)
    np.add.at(change_N, begin_T, 1)
    np.add.at(change_N, end_T, -1)
    for i in np.flatnonzero(np.cumsum(change_N)[:-1] == 0):  # few, and spaces
        if unicodedata.category(text[i]).startswith("M"):
            end_T[end_T == i] = i + 1
    return np.stack([begin_T, end_T], axis=1)


def with_whole_bytes(offsets_T2: np.ndarray, is_byte_T: np.ndarray) -> np.ndarray:
    """Return offsets in which all bytes of a character have it, not the last alone."""
    empty_T = is_byte_T & (offsets_T2[:, 0] == offsets_T2[:, 1])
    place_T = np.where(empty_T, len(empty_T), np.arange(len(empty_T)))
    return offsets_T2[np.minimum.accumulate(place_T[::-1])[::-1]]
