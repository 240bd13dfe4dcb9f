"""Rotary position encodings (Su et al. 2021), and their scaling for long contexts.

B batch, T queries, S keys, N heads, H head_dim, P rotated pairs of dimensions.
"""

import math

import jax.numpy as jnp
import numpy as np

from lmjax.config.model import TransformerConfig
from lmjax.nn.attention_context import AttentionContext
from lmjax.types import Array

Angles = tuple[Array, Array]  # cosines and sines, float32 (B, T, 1, P)


def rope_angles(
    positions_BT: Array,
    config: TransformerConfig,
    *,
    lengths_BT: Array | None = None,
    local: bool = False,
) -> Angles:
    """Return cosines and sines of the angles at positions.

    Args:
      positions_BT: of queries, or of keys.
      config: its `rope_scaling` says how frequencies are scaled.
      lengths_BT: of the texts that they are of; only where `rope_follows_length`.
      local: of the layers with a window, which may have another base and no scaling.
    """
    own_base = local and config.rope_local_theta > 0
    theta = config.rope_local_theta if own_base else config.rope_theta
    frequencies = rope_frequencies(config, theta=theta)
    if own_base:
        return _turn(positions_BT, frequencies)
    scale: Array | np.ndarray
    match config.rope_scaling:
        case "dynamic":
            assert lengths_BT is not None
            scale = _dynamic(lengths_BT, config)
        case "longrope":
            assert lengths_BT is not None
            scale = _longrope(lengths_BT, config)
        case _:
            scale = _fixed_scale(frequencies, config)
    cos, sin = _turn(positions_BT, (frequencies * scale).astype(np.float32))
    factor = _attention_factor(config)
    return cos * factor, sin * factor


def rope_frequencies(config: TransformerConfig, *, theta: float) -> np.ndarray:
    """Return the angle per position of each rotated pair, before scaling (P,)."""
    dim = config.rotary_dim
    return theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)


def rotate(x_BTNH: Array, angles: Angles) -> Array:
    """Rotate each pair (i, i + P) by its angle, in float32; the rest of H stays."""
    cos, sin = angles
    size = cos.shape[-1]
    a, b, rest = jnp.split(x_BTNH.astype(jnp.float32), [size, 2 * size], axis=-1)
    y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
    return y.astype(x_BTNH.dtype)


def text_lengths(context: AttentionContext) -> Array:
    """Return how long the text of each query is, int32 (B, T).

    A text is a segment; all tokens of it so far are among the keys.
    """
    segments_BS, positions_BS = context.keys
    assert positions_BS is not None
    batch, size = segments_BS.shape
    rows = jnp.arange(batch)[:, None]
    lengths = jnp.zeros((batch, size + 1), jnp.int32)
    lengths = lengths.at[rows, segments_BS].max(positions_BS + 1)
    return lengths[rows, context.segments_BT]


def _turn(positions_BT: Array, frequencies: Array | np.ndarray) -> Angles:
    frequencies = jnp.asarray(frequencies, jnp.float32)
    angles = positions_BT[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def _fixed_scale(frequencies: np.ndarray, config: TransformerConfig) -> np.ndarray:
    """Return the factors of the frequencies that are the same in all texts (P,)."""
    match config.rope_scaling:
        case "linear":  # position interpolation (Chen et al. 2023)
            keep = np.zeros_like(frequencies)
        case "llama3":
            keep = _llama3(frequencies, config)
        case "yarn":
            keep = _yarn(config)
        case _:
            return np.ones_like(frequencies)
    return keep + (1.0 - keep) / config.rope_factor


def _llama3(frequencies: np.ndarray, config: TransformerConfig) -> np.ndarray:
    """Return how much of each frequency is kept: the reference code of Llama 3.1.

    Short wavelengths are kept, long ones scaled, those between interpolated.
    """
    low, high = config.rope_low_frequency_factor, config.rope_high_frequency_factor
    turns = config.rope_original_length * frequencies / (2 * math.pi)
    return np.clip((turns - low) / (high - low), 0.0, 1.0)


def _yarn(config: TransformerConfig) -> np.ndarray:
    """Return how much of each frequency is kept (YaRN, Peng et al. 2023).

    Those that turn more than `rope_beta_fast` times within the original length are
    kept, those of fewer turns than `rope_beta_slow` are scaled. Between these bounds
    the share falls linearly, as in the reference code: with the dimension, not as in
    the paper with the turns.
    """
    c, dim = config, config.rotary_dim

    def pair_of(turns: float) -> float:
        length = c.rope_original_length / (2 * math.pi * turns)
        return dim * math.log(length) / (2 * math.log(c.rope_theta))

    first, last = pair_of(c.rope_beta_fast), pair_of(c.rope_beta_slow)
    if c.rope_truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = last - first or 0.001
    return 1.0 - np.clip((np.arange(dim // 2) - first) / width, 0.0, 1.0)


def _dynamic(lengths_BT: Array, config: TransformerConfig) -> Array:
    """Return the factors (B, T, 1, P) of NTK-aware scaling by the length of the text.

    Nothing is scaled up to the original length. Beyond, the base grows such that the
    lowest frequency is divided by what `rope_factor` and the length say.
    """
    c, dim = config, config.rotary_dim
    longer = lengths_BT / c.rope_original_length
    growth = jnp.maximum(c.rope_factor * (longer - 1.0) + 1.0, 1.0)
    exponents = -np.arange(0, dim, 2, dtype=np.float32) / (dim - 2)
    return growth[..., None, None] ** exponents


def _longrope(lengths_BT: Array, config: TransformerConfig) -> Array:
    """Return the factors (B, T, 1, P) of LongRoPE (Ding et al. 2024)."""
    short, long = (
        1.0 / np.asarray(factors)
        for factors in (config.rope_short_factors, config.rope_long_factors)
    )
    is_long = lengths_BT > config.rope_original_length
    return jnp.where(is_long[..., None, None], long, short)


def _attention_factor(config: TransformerConfig) -> float:
    """Return the factor of rotated queries and keys; scores have its square."""
    c = config
    if c.rope_scaling not in ("yarn", "longrope"):
        return 1.0
    if c.rope_attention_factor:
        return c.rope_attention_factor
    growth = math.log(max(c.rope_factor, 1.0))
    if c.rope_scaling == "yarn":
        return 0.1 * growth + 1.0
    return math.sqrt(1.0 + growth / math.log(c.rope_original_length)) if growth else 1.0
