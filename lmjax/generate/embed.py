"""Vectors of texts, by batches of similar length. N texts, B rows, T length, E dim."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lmjax.data.tokenizers.tokenizer import Tokenizer

# Texts in a batch; lengths are rounded up to a multiple. Both bound compilations.
ROWS, MULTIPLE = 32, 32


def encode_truncated(
    tokenizer: Tokenizer, texts: Sequence[str], *, max_length: int
) -> list[list[int]]:
    """Return the ids of texts between the tokenizer's prefix and suffix ids.

    Each is cut so that it has at most `max_length`, prefix and suffix included.
    """
    before, after = tokenizer.prefix_ids, tokenizer.suffix_ids
    room = max(max_length - len(before) - len(after), 0)
    encoded = tokenizer.encode_batch(list(texts))
    return [[*before, *ids[:room].tolist(), *after] for ids in encoded]


def embed_rows(
    rows: Sequence[Sequence[int]],
    embed: Callable[..., Any],
    *,
    max_length: int,
) -> np.ndarray:
    """Return the vector of each row, float32 (N, E).

    Args:
      rows: token ids; the vector of an empty row is that of padding.
      embed: from tokens (B, T) and `segments` to vectors (B, E).
      max_length: of the model.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    vectors: dict[int, np.ndarray] = {}
    for first in range(0, max(len(rows), 1), ROWS):  # no text: the size of a vector
        group = [rows[i] for i in order[first : first + ROWS]]
        longest = max(1, 1, *map(len, group))
        length = max(longest, min(-(-longest // MULTIPLE) * MULTIPLE, max_length))
        group = group or [[]]
        tokens = np.zeros((len(group), length), np.int32)
        for target, row in zip(tokens, group, strict=True):
            target[: len(row)] = row
        lengths = np.array([*map(len, group)])
        inside = np.arange(length) < lengths[:, None]
        found = np.asarray(embed(tokens, segments=inside.astype(np.int32)))
        vectors |= dict(zip(order[first : first + ROWS], found, strict=False))
    size = found.shape[1]
    return np.array([vectors[i] for i in range(len(rows))], np.float32).reshape(
        len(rows), size
    )
