"""Matrix products and embeddings. B batch, T length, D dim, V vocabulary."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.matrices import QuantizeConfig
from lmjax.config.model import TransformerConfig
from lmjax.nn import quantized
from lmjax.nn.param import fan_in, normal, ones, param, zeros
from lmjax.types import Array

Dims = dict[str, int]  # logical axis: size

NOT_QUANTIZED = QuantizeConfig()

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
    kernel + lora_scale * lora_a @ lora_b, initially 0 (LoRA, Hu et al. 2021). In place
    of the kernel there may be `codes` and `scales` (see `quantized`), or, with a
    `factor_rank`, `factor_a` and `factor_b`, of which it is the product.
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
        quantize: QuantizeConfig = NOT_QUANTIZED,
        factor_rank: Callable[[int, int], int] = lambda num_inputs, num_outputs: 0,
    ) -> None:
        self.num_inputs = len(inputs)
        self.quantize = quantize
        # A bias along the model's dimension is too small to be worth sharding.
        axes = ["norm" if axis == "embed" else axis for axis in outputs]
        sizes = math.prod(inputs.values()), math.prod(outputs.values())
        kernel = factor_a = factor_b = None
        if quantize.stores_codes:
            self._add_codes(key, inputs, outputs, scale_axes=axes)
        elif factors := factor_rank(*sizes):
            a, b = {**inputs, "rank": factors}, {"rank": factors, **outputs}
            init, keys = fan_in(sizes[0], scale=scale), jax.random.split(key)
            factor_a = param(keys[0], [*a.values()], axes=[*a], init=init)
            init = fan_in(factors)
            factor_b = param(keys[1], [*b.values()], axes=[*b], init=init)
        else:
            dims = {**inputs, **outputs}
            init = fan_in(sizes[0], scale=scale)
            kernel = param(key, [*dims.values()], axes=[*dims], init=init)
        self.kernel, self.factor_a, self.factor_b = kernel, factor_a, factor_b
        shape = [*outputs.values()]
        self.bias = param(key, shape, axes=axes, init=zeros) if bias else None
        self.lora_scale = lora_scale
        a, b = {**inputs, "rank": rank}, {"rank": rank, **outputs}
        init, key = fan_in(math.prod(inputs.values())), jax.random.fold_in(key, 1)
        self.lora_a = param(key, [*a.values()], axes=[*a], init=init) if rank else None
        self.lora_b = param(key, [*b.values()], axes=[*b], init=zeros) if rank else None

    def _add_codes(
        self, key: Array, inputs: Dims, outputs: Dims, *, scale_axes: list[str]
    ) -> None:
        """Declare codes and scales; those of a model that was quantized replace them.

        Scales of groups are small: the dimension of groups is not sharded.
        """
        sizes = [*inputs.values()], [*outputs.values()]
        self.form = form = quantized.choose_format(
            self.quantize, last_input=sizes[0][-1]
        )
        init = lambda key, shape: jnp.zeros(shape, form.code_dtype())
        axes = [*outputs, *inputs]
        self.codes = param(key, form.code_shape(*sizes), axes=axes, init=init)
        dtype = jnp.float16 if form.group else jnp.float32
        init = lambda key, shape: jnp.ones(shape, dtype)
        axes = scale_axes + ([*inputs][:-1] + ["norm"] if form.group else [])
        self.scales = param(key, form.scale_shape(*sizes), axes=axes, init=init)

    def __call__(self, x: Array) -> Array:
        """Return x @ kernel + bias in the dtype of `x`."""
        y = self._multiply(x)
        if self.lora_a is not None and self.lora_b is not None:
            y = y + self.lora_scale * self._multiply_both(x, self.lora_a, self.lora_b)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)

    def _multiply_both(self, x: Array, a: Any, b: Any) -> Array:
        h = jnp.tensordot(x, a[...].astype(x.dtype), self.num_inputs)
        return jnp.tensordot(h, b[...].astype(x.dtype), 1)

    def _multiply(self, x: Array) -> Array:
        q = self.quantize
        if self.factor_a is not None:
            return self._multiply_both(x, self.factor_a, self.factor_b)
        if self.kernel is None:
            return quantized.multiply(
                x,
                self.codes[...],
                self.scales[...],
                num_inputs=self.num_inputs,
                form=self.form,
                round_inputs=bool(q.activations),
            )
        kernel = self.kernel[...]
        for watch in _watchers:
            watch(kernel, x)
        if q.aware and q.weights:
            form = quantized.choose_format(q, last_input=x.shape[-1])
            kernel = quantized.round_to_nearest(kernel, self.num_inputs, form)
            x = quantized.round_inputs(x, self.num_inputs) if q.activations else x
        return jnp.tensordot(x, kernel.astype(x.dtype), axes=self.num_inputs)


def matrix_options(config: TransformerConfig, matrix: str) -> dict[str, Any]:
    """Return the options of `Linear` for one of the matrices of a block."""
    rank = config.lora.rank_of(matrix)
    return {
        "rank": rank,
        "lora_scale": config.lora.alpha / max(rank, 1),
        "quantize": config.quantize,
        "factor_rank": functools.partial(config.low_rank.rank_of, matrix),
    }


class Table(nnx.Module):
    """Vectors of tokens: `embedding` (V, D), or its int8 codes and scales (V,)."""

    def __init__(
        self,
        key: Array,
        table: Dims,
        *,
        std: float = 0.02,
        quantize: QuantizeConfig = NOT_QUANTIZED,
    ) -> None:
        self.is_rounded = bool(quantize.embeddings) and quantize.aware
        shape, axes = [*table.values()], [*table]
        self.embedding: nnx.Param[Array] | None
        if not quantize.stores_table:
            self.embedding = param(key, shape, axes=axes, init=normal(std))
            return
        self.embedding = None
        codes = lambda key, shape: jnp.zeros(shape, jnp.int8)
        self.embedding_codes = param(key, shape, axes=axes, init=codes)
        self.embedding_scales = param(key, shape[:1], axes=axes[:1], init=ones)

    def vectors(self) -> tuple[Array, Array | None]:
        """Return the table (V, D), and what multiplies each of its rows (V,)."""
        if self.embedding is None:
            return self.embedding_codes[...], self.embedding_scales[...]
        table_VD = self.embedding[...]
        if self.is_rounded:
            table_VD = quantized.round_table(table_VD)
        return table_VD, None


class Embed(Table):
    """An embedding table."""

    def __call__(self, ids: Array, dtype: jnp.dtype) -> Array:
        """Look up the vectors of int32 `ids`: (...) -> (..., D)."""
        table_VD, scale_V = self.vectors()
        found = jnp.take(table_VD, ids, axis=0, mode="clip").astype(dtype)
        if scale_V is None:
            return found
        scale = jnp.take(scale_V, ids, axis=0, mode="clip")
        return found * scale[..., None].astype(dtype)


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
