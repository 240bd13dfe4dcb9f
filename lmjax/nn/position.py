"""Position encodings: rotary, sinusoidal and relative.

B batch, T length, S keys, N heads, H head_dim, D dim.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lmjax.config.model import TransformerConfig
from lmjax.nn.param import normal, param
from lmjax.types import Array


def rope_frequencies(config: TransformerConfig) -> np.ndarray:
    """Return the angle per position of each pair of dimensions, float32 (H/2,).

    Su et al. 2021. `rope_scaling` "linear" is position interpolation (Chen et al.
    2023), "llama3" the interpolation by wavelength of Llama 3.1's reference
    implementation.
    """
    half = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies = config.rope_theta**-half
    if config.rope_scaling == "linear":
        frequencies = frequencies / config.rope_factor
    if config.rope_scaling == "llama3":
        frequencies = _llama3(frequencies, config)
    return frequencies.astype(np.float32)


def _llama3(frequencies: np.ndarray, config: TransformerConfig) -> np.ndarray:
    low, high = config.rope_low_frequency_factor, config.rope_high_frequency_factor
    turns = config.rope_original_length * frequencies / (2 * math.pi)
    # Short wavelengths are kept, long ones scaled, those between interpolated.
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (keep + (1.0 - keep) / config.rope_factor)


def rope_angles(positions_BT: Array, frequencies: np.ndarray) -> tuple[Array, Array]:
    """Return cosines and sines, float32 (B, T, 1, H/2)."""
    angles = positions_BT[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTNH: Array, angles: tuple[Array, Array]) -> Array:
    """Rotate each pair (i, i + H/2) by its angle, in float32."""
    cos, sin = angles
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return y.astype(x_BTNH.dtype)


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
