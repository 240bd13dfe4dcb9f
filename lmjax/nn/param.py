"""Parameters with logical axes, their initializers, and dropout."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.types import Array

Initializer = Callable[[Array, tuple[int, ...]], Array]


def param(
    key: Array, shape: Sequence[int], *, axes: Sequence[str], init: Initializer
) -> nnx.Param[Array]:
    """Make a float32 parameter with one logical axis for each dimension."""
    assert len(shape) == len(axes), (shape, axes)
    return nnx.Param(init(key, tuple(shape)), axes=tuple(axes))


def normal(std: float) -> Initializer:
    """Return the initializer of a normal truncated at two standard deviations."""
    # 0.8796 is the standard deviation of the truncated unit normal.
    return lambda key, shape: (
        std / 0.87962566 * jax.random.truncated_normal(key, -2.0, 2.0, shape)
    )


def fan_in(num_inputs: int, *, scale: float = 1.0) -> Initializer:
    """Return the initializer that preserves the variance of `num_inputs` inputs."""
    return normal(scale / math.sqrt(num_inputs))


def zeros(key: Array, shape: tuple[int, ...]) -> Array:
    """Initialize to zero."""
    return jnp.zeros(shape)


def ones(key: Array, shape: tuple[int, ...]) -> Array:
    """Initialize to one."""
    return jnp.ones(shape)


def dropout(x: Array, *, rate: float, key: Array | None) -> Array:
    """Zero a fraction of the elements and scale the rest; identity without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
