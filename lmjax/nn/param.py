"""Parameters that know the logical axes of their dimensions."""

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
    """Return a float32 parameter, with one logical axis for each dimension."""
    assert len(shape) == len(axes), (shape, axes)
    return nnx.Param(init(key, tuple(shape)), axes=tuple(axes))


def normal(std: float) -> Initializer:
    """Return an initializer: a normal cut off at two standard deviations."""
    # 0.8796 is the standard deviation of the unit normal so cut.
    return lambda key, shape: (
        std / 0.87962566 * jax.random.truncated_normal(key, -2.0, 2.0, shape)
    )


def fan_in(num_inputs: int, *, scale: float = 1.0) -> Initializer:
    """Return an initializer that keeps the variance of `num_inputs` inputs."""
    return normal(scale / math.sqrt(num_inputs))


def zeros(key: Array, shape: tuple[int, ...]) -> Array:
    """Initialise to zero."""
    return jnp.zeros(shape)


def ones(key: Array, shape: tuple[int, ...]) -> Array:
    """Initialise to one."""
    return jnp.ones(shape)


def dropout(x: Array, *, rate: float, key: Array | None) -> Array:
    """Zero a `rate` of the elements and scale the rest; the identity without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
