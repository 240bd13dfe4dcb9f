"""Rows of documents, and attention in float64 by Python loops."""

import math

import jax.numpy as jnp
import numpy as np

from lmjax.nn.attention_context import AttentionContext


def normal(*shape, seed=0):
    """Return the same float32 numbers for a shape and a seed, normally distributed."""
    rng = np.random.default_rng([seed, *shape])
    return rng.standard_normal(shape).astype(np.float32)


def pack(rows, length):
    """Return the positions and segments of rows of documents of given lengths.

    What a row has left is padding.
    """
    segments, positions = np.zeros((2, len(rows), length), np.int32)
    for row, lengths in enumerate(rows):
        start = 0
        for i, n in enumerate(lengths):
            segments[row, start : start + n] = i + 1
            positions[row, start : start + n] = np.arange(n)
            start += n
    return positions, segments


def self_attention(positions, segments, **options):
    """Return the context of a sequence that attends to itself."""
    return AttentionContext(
        positions_BT=jnp.asarray(positions),
        segments_BT=jnp.asarray(segments),
        **options,
    )


def reference(q, k, v, sees, *, softcap=0.0):
    """Attend in float64, one query and head at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        keys = [s for s in range(k.shape[1]) if sees(b, t, s)]
        scores = k[b, keys, n // group] @ q[b, t, n] / math.sqrt(q.shape[3])
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ v[b, keys, n // group]
    return out
