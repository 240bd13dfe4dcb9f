"""Position encodings: sinusoidal and relative; `rope` has the rotary ones.

B batch, T length, S keys, N heads, D dim.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lmjax.config.model import TransformerConfig
from lmjax.nn.param import normal, param
from lmjax.types import Array


def sinusoids(num_positions: int, dim: int) -> np.ndarray:
    """Return the table of Vaswani et al. 2017, float32: sines, then cosines.

    As in tensor2tensor and fairseq. The paper interleaves sines and cosines, which is
    the same up to the order of dimensions.
    """
    frequencies = 10_000.0 ** -(np.arange(0, dim, 2) / dim)
    angles = np.arange(num_positions)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class RelativeBias(nnx.Module):
    """A trained bias of scores by head and distance (T5, Raffel et al. 2020)."""

    def __init__(self, key: Array, config: TransformerConfig, *, causal: bool) -> None:
        self.config, self.causal = config, causal
        shape = [config.relative_buckets, config.num_heads]
        self.embedding = param(key, shape, axes=["buckets", "heads"], init=normal(0.02))

    def __call__(self, positions_BT: Array, key_positions_BS: Array) -> Array:
        """Return the bias of the scores, float32 (B, N, T, S)."""
        distance_BTS = key_positions_BS[:, None, :] - positions_BT[:, :, None]
        max_distance = self.config.relative_max_distance
        buckets = relative_buckets(
            np.arange(-max_distance, max_distance + 1),
            num_buckets=self.config.relative_buckets,
            max_distance=max_distance,
            causal=self.causal,
        )
        index_BTS = jnp.clip(distance_BTS, -max_distance, max_distance) + max_distance
        bias_BTSN = self.embedding[...][jnp.asarray(buckets)[index_BTS]]
        return jnp.transpose(bias_BTSN, (0, 3, 1, 2))


def relative_buckets(
    distance: np.ndarray, *, num_buckets: int, max_distance: int, causal: bool
) -> np.ndarray:
    """Return the bucket of each distance (key position - query position), int32.

    The first half of the buckets hold one distance each, the others logarithmically
    growing ranges, up to `max_distance`. Unless `causal`, keys before and keys after
    the query use half of the buckets each.
    """
    first = np.zeros_like(distance)
    if causal:
        distance = np.maximum(-distance, 0)
    else:
        num_buckets //= 2
        first = np.where(distance > 0, num_buckets, 0)
        distance = np.abs(distance)
    near = num_buckets // 2
    # In float32 and in the order of the reference: another rounding would move the
    # bounds of buckets.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(near))
    ratio = ratio / np.float32(math.log(max_distance / near))
    far = near + (ratio * np.float32(num_buckets - near)).astype(np.int32)
    far = np.minimum(far, num_buckets - 1)
    return (first + np.where(distance < near, distance, far)).astype(np.int32)
