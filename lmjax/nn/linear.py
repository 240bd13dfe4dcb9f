"""Matrix products and embeddings. B batch, T length, D dim, V vocabulary."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.nn.param import fan_in, normal, param, zeros
from lmjax.types import Array

Dims = dict[str, int]  # logical axis: size


class Linear(nnx.Module):
    """A product over the last dimensions: (..., *inputs) -> (..., *outputs).

    Inputs and outputs may be several dimensions, such as heads and head_dim; the
    kernel has the shape (*inputs, *outputs).
    """

    def __init__(
        self, key: Array, inputs: Dims, outputs: Dims, *, bias: bool, scale: float = 1.0
    ) -> None:
        self.num_inputs = len(inputs)
        dims = {**inputs, **outputs}
        init = fan_in(math.prod(inputs.values()), scale=scale)
        self.kernel = param(key, [*dims.values()], axes=[*dims], init=init)
        # A bias along the model's dimension is too small to be worth splitting.
        axes = ["norm" if axis == "embed" else axis for axis in outputs]
        shape = [*outputs.values()]
        self.bias = param(key, shape, axes=axes, init=zeros) if bias else None

    def __call__(self, x: Array) -> Array:
        """Return x @ kernel + bias in the dtype of `x`."""
        y = jnp.tensordot(x, self.kernel[...].astype(x.dtype), axes=self.num_inputs)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Embed(nnx.Module):
    """A table of vectors, looked up by id; `attend` multiplies by it."""

    def __init__(self, key: Array, table: Dims, *, std: float = 0.02) -> None:
        self.embedding = param(key, [*table.values()], axes=[*table], init=normal(std))

    def __call__(self, ids: Array, dtype: jnp.dtype) -> Array:
        """Return the vectors of int32 `ids`: (...) -> (..., D)."""
        return jnp.take(self.embedding[...], ids, axis=0, mode="clip").astype(dtype)

    def attend(self, x: Array) -> Array:
        """Return the float32 products with each vector: (..., D) -> (..., V)."""
        return attend(x, self.embedding[...])


def attend(x: Array, table_VD: Array) -> Array:
    """Return the float32 products with each row: (..., D) -> (..., V)."""
    return jax.lax.dot_general(
        x,
        table_VD.astype(x.dtype),
        (((x.ndim - 1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
