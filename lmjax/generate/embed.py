"""Embeddings of texts by mean pooling. N texts, T length, D dim."""

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


def mean_pool(
    rows: Sequence[Sequence[int]],
    hidden: Callable[..., Any],
    *,
    dim: int,
    max_length: int,
) -> np.ndarray:
    """Return the mean of each row's last hidden states, float32 (N, D).

    Args:
      rows: token ids; the mean of an empty row is 0.
      hidden: from tokens (B, T) and `segments` to hidden states (B, T, D).
      dim: D.
      max_length: of the model.
    """
    means = np.zeros((len(rows), dim), np.float32)
    for first in range(0, len(rows), ROWS):
        group = rows[first : first + ROWS]
        longest = max(1, *map(len, group))
        length = max(longest, min(-(-longest // MULTIPLE) * MULTIPLE, max_length))
        tokens = np.zeros((len(group), length), np.int32)
        for target, row in zip(tokens, group, strict=True):
            target[: len(row)] = row
        lengths = np.array([len(row) for row in group])
        inside = np.arange(length) < lengths[:, None]
        states = np.asarray(hidden(tokens, segments=inside.astype(np.int32)))
        sums = np.where(inside[..., None], states, 0).sum(axis=1)
        means[first : first + len(group)] = sums / np.maximum(lengths, 1)[:, None]
    return means
