"""Matrix products and embeddings. B batch, T length, D dim, V vocabulary."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.model import TransformerConfig
from lmjax.nn.param import fan_in, normal, param, zeros
from lmjax.types import Array

Dims = dict[str, int]  # logical axis: size

# Called with the kernel and the input of each product: see `watch_inputs`.
_watchers: list[Callable[[Array, Array], None]] = []


@contextlib.contextmanager
def watch_inputs(watch: Callable[[Array, Array], None]) -> Iterator[None]:
    """Call `watch(kernel, x)` for each product of a `Linear` within the block.

    Args:
      watch: given the kernel, the same object that the parameters have, and its input
        (..., *inputs). Where a function is traced, both are tracers.
    """
    _watchers.append(watch)
    try:
        yield
    finally:
        _watchers.remove(watch)


class Linear(nnx.Module):
    """A linear map of the last dimensions: (..., *inputs) -> (..., *outputs).

    Inputs and outputs may be several dimensions, such as heads and head_dim; the
    kernel has the shape (*inputs, *outputs). With a `rank` it has a low-rank adapter,
    kernel + lora_scale * lora_a @ lora_b, initially 0 (LoRA, Hu et al. 2021).
    """

    def __init__(
        self,
        key: Array,
        inputs: Dims,
        outputs: Dims,
        *,
        bias: bool,
        scale: float = 1.0,
        rank: int = 0,
        lora_scale: float = 1.0,
    ) -> None:
        self.num_inputs = len(inputs)
        dims = {**inputs, **outputs}
        init = fan_in(math.prod(inputs.values()), scale=scale)
        self.kernel = param(key, [*dims.values()], axes=[*dims], init=init)
        # A bias along the model's dimension is too small to be worth sharding.
        axes = ["norm" if axis == "embed" else axis for axis in outputs]
        shape = [*outputs.values()]
        self.bias = param(key, shape, axes=axes, init=zeros) if bias else None
        self.lora_scale = lora_scale
        a, b = {**inputs, "rank": rank}, {"rank": rank, **outputs}
        init, key = fan_in(math.prod(inputs.values())), jax.random.fold_in(key, 1)
        self.lora_a = param(key, [*a.values()], axes=[*a], init=init) if rank else None
        self.lora_b = param(key, [*b.values()], axes=[*b], init=zeros) if rank else None

    def __call__(self, x: Array) -> Array:
        """Return x @ kernel + bias in the dtype of `x`."""
        kernel = self.kernel[...]
        for watch in _watchers:
            watch(kernel, x)
        y = jnp.tensordot(x, kernel.astype(x.dtype), axes=self.num_inputs)
        if self.lora_a is not None and self.lora_b is not None:
            h = jnp.tensordot(x, self.lora_a[...].astype(x.dtype), self.num_inputs)
            h = jnp.tensordot(h, self.lora_b[...].astype(x.dtype), 1)
            y = y + self.lora_scale * h
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def lora_options(config: TransformerConfig, matrix: str) -> dict[str, Any]:
    """Return the options `rank` and `lora_scale` of `Linear` for a block's matrix."""
    rank = config.lora.rank_of(matrix)
    return {"rank": rank, "lora_scale": config.lora.alpha / max(rank, 1)}


class Embed(nnx.Module):
    """An embedding table."""

    def __init__(self, key: Array, table: Dims, *, std: float = 0.02) -> None:
        self.embedding = param(key, [*table.values()], axes=[*table], init=normal(std))

    def __call__(self, ids: Array, dtype: jnp.dtype) -> Array:
        """Look up the vectors of int32 `ids`: (...) -> (..., D)."""
        return jnp.take(self.embedding[...], ids, axis=0, mode="clip").astype(dtype)


@jax.custom_vjp
def table_logits(x: Array, table_VD: Array) -> Array:
    """Return the float32 dot products with all rows: (..., D) -> (..., V).

    The products of the backward pass, too, are of arrays in the dtype of `x`: float32
    ones take at least twice the time on a GPU.
    """
    return jax.lax.dot_general(
        x,
        table_VD.astype(x.dtype),
        (((x.ndim - 1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


def _table_logits_forward(x: Array, table_VD: Array) -> Any:
    return table_logits(x, table_VD), (x, table_VD)


def _table_logits_backward(residuals: Any, d_logits: Array) -> tuple[Array, Array]:
    x, table_VD = residuals
    d_logits = d_logits.astype(x.dtype)
    d_x = jnp.tensordot(d_logits, table_VD.astype(x.dtype), 1)
    tokens = tuple(range(x.ndim - 1))
    d_table_VD = jax.lax.dot_general(
        d_logits, x, ((tokens, tokens), ((), ())), preferred_element_type=jnp.float32
    )
    return d_x, d_table_VD.astype(table_VD.dtype)


table_logits.defvjp(_table_logits_forward, _table_logits_backward)
