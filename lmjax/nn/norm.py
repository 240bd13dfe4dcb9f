"""Normalization over the last dimension, with statistics in float32."""

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.nn.param import ones, param, zeros
from lmjax.types import Array


class LayerNorm(nnx.Module):
    """Layer normalization (Ba et al. 2016)."""

    def __init__(self, key: Array, size: int, *, epsilon: float, bias: bool) -> None:
        self.epsilon = epsilon
        self.scale = param(key, [size], axes=["norm"], init=ones)
        self.bias = param(key, [size], axes=["norm"], init=zeros) if bias else None

    def __call__(self, x: Array) -> Array:
        """Return `x` with zero mean and unit variance, scaled and shifted."""
        y = x.astype(jnp.float32)
        y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.epsilon)
        y = y * self.scale[...]
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root mean square normalization (Zhang and Sennrich 2019).

    The factor is scale + offset. With `offset` 1, as in Gemma, weight decay pulls the
    factor towards 1.
    """

    def __init__(self, key: Array, size: int, *, epsilon: float, offset: float) -> None:
        self.epsilon = epsilon
        self.offset = offset
        init = zeros if offset else ones
        self.scale = param(key, [size], axes=["norm"], init=init)

    def __call__(self, x: Array) -> Array:
        """Return `x` with unit mean square, scaled."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.epsilon)
        scale = self.scale[...] + self.offset if self.offset else self.scale[...]
        return (y * scale).astype(x.dtype)


def make_norm(
    key: Array, kind: str, size: int, *, epsilon: float, bias: bool
) -> LayerNorm | RMSNorm:
    """Build the norm of `config.model.norm`; only LayerNorm can have a bias."""
    if kind == "layernorm":
        return LayerNorm(key, size, epsilon=epsilon, bias=bias)
    offset = 1.0 if kind == "rmsnorm1p" else 0.0
    return RMSNorm(key, size, epsilon=epsilon, offset=offset)
