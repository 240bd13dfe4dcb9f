"""Rotary positions. B batch, T length, N heads, H head_dim."""

import math

import jax.numpy as jnp
import numpy as np

from lmjax.config import DecoderConfig
from lmjax.types import Array


def rope_frequencies(config: DecoderConfig) -> np.ndarray:
    """Return the radians a position of each pair of dimensions, float32 (H/2,).

    Su et al. 2021; "linear" is position interpolation (Chen et al. 2023), "llama3"
    the interpolation by wavelength of Llama 3.1's reference implementation.
    """
    half = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies = config.rope_theta**-half
    if config.rope_scaling == "linear":
        frequencies = frequencies / config.rope_factor
    if config.rope_scaling == "llama3":
        frequencies = _llama3(frequencies, config)
    return frequencies.astype(np.float32)


def _llama3(frequencies: np.ndarray, config: DecoderConfig) -> np.ndarray:
    low, high = config.rope_low_frequency_factor, config.rope_high_frequency_factor
    turns = config.rope_original_length * frequencies / (2 * math.pi)
    # Short wavelengths stay, long ones are stretched, those between are blended.
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (keep + (1.0 - keep) / config.rope_factor)


def rope_angles(positions_BT: Array, frequencies: np.ndarray) -> tuple[Array, Array]:
    """Return cosines and sines, float32 (B, T, 1, H/2)."""
    angles = positions_BT[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTNH: Array, angles: tuple[Array, Array]) -> Array:
    """Turn each pair (i, i + H/2) by its angle, in float32."""
    cos, sin = angles
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return y.astype(x_BTNH.dtype)
