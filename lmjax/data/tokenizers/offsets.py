"""The characters of a text that each token covers. T tokens, N characters."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Encoding(NamedTuple):
    """The tokens of a text, and the characters that each covers.

    Characters are Unicode code points, as in Python. A token that is a part of a
    character covers all of it; one that stands for no text covers an empty span.
    """

    ids: np.ndarray  # int32 (T,)
    offsets: np.ndarray  # int32 (T, 2): the first character, and the one after the last


def make_encoding(ids: Sequence[int] | np.ndarray, offsets: Any) -> Encoding:
    """Return ids and pairs of offsets, in any sequences, as arrays."""
    pairs = np.asarray(offsets, np.int32).reshape(-1, 2)
    return Encoding(np.asarray(ids, np.int32), pairs)


def concatenate_encodings(pieces: Iterable[tuple[int, Encoding]]) -> Encoding:
    """Return the encoding of a text from those of its pieces.

    Args:
      pieces: for each piece the character where it begins, and its encoding.
    """
    empty = make_encoding([], [])
    shifted = [(piece.ids, piece.offsets + begin) for begin, piece in pieces]
    ids, offsets = zip((empty.ids, empty.offsets), *shifted, strict=True)
    return Encoding(np.concatenate(ids), np.concatenate(offsets))


def byte_offsets(text: str) -> np.ndarray:
    """Return the offsets of the UTF-8 bytes of a text: those of their characters."""
    codes_N = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    limits = np.array([0x80, 0x800, 0x10000])
    num_bytes_N = 1 + (codes_N[:, None] >= limits).sum(axis=1)
    place_T = np.repeat(np.arange(len(text), dtype=np.int32), num_bytes_N)
    return np.stack([place_T, place_T + 1], axis=1)


def include_combining_marks(text: str, offsets_T2: np.ndarray) -> np.ndarray:
    """Return offsets in which a token covers the combining marks that follow it.

    A tokenizer that drops accents has no token for them, but a character is complete
    only with its marks.
    """
    if text.isascii():
        return offsets_T2
    begin_T, end_T = offsets_T2[:, 0], offsets_T2[:, 1].copy()
    change_N = np.zeros(len(text) + 1, np.int32)
    np.add.at(change_N, begin_T, 1)
    np.add.at(change_N, end_T, -1)
    for i in np.flatnonzero(np.cumsum(change_N)[:-1] == 0):  # few besides spaces
        if unicodedata.category(text[i]).startswith("M"):
            end_T[end_T == i] = i + 1
    return np.stack([begin_T, end_T], axis=1)


def widen_byte_offsets(offsets_T2: np.ndarray, is_byte_T: np.ndarray) -> np.ndarray:
    """Return offsets in which each byte of a character covers it, not only the last."""
    empty_T = is_byte_T & (offsets_T2[:, 0] == offsets_T2[:, 1])
    place_T = np.where(empty_T, len(empty_T), np.arange(len(empty_T)))
    return offsets_T2[np.minimum.accumulate(place_T[::-1])[::-1]]
