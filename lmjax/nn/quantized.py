"""Weights in eight bits or four: how they are rounded, stored and multiplied.

A matrix (*inputs, *outputs) becomes `codes` and `scales`, outputs first: a product with
one row then reads each output's codes in their order.

  int8, fp8   codes (*outputs, *inputs); a scale for each output, float32 (*outputs)
  int4, nf4   two codes a byte, of inputs 2i and 2i + 1, the first in the low bits;
              float16 scales (*outputs, *inputs / group), of groups of the last input

A weight is its level times its scale. Levels are integers from -127 to 127 of int8,
from -8 to 7 of int4 (code - 8), numbers in e4m3 of fp8, and of nf4 the 16 quantiles of
a normal distribution (Dettmers et al. 2023).

I inputs, J bytes of a group, O outputs, G groups, R rows; a stack has a leading axis of
layers.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config.matrices import QuantizeConfig
from lmjax.config.model import ModelConfig, TransformerConfig
from lmjax.types import Array, Params, named_leaves

# The 16 levels of nf4, as QLoRA's appendix E gives them.
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
        *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
        *(0.7229568362236023, 1.0),
    ],
    np.float32,
)
_NF4_BOUNDS = (NF4[1:] + NF4[:-1]) / 2
_FP8 = jnp.float8_e4m3fn
_FP8_MAX = float(jnp.finfo(_FP8).max)
# Rows up to which a product is a sum of fused products: they read each code once, and
# a matrix product of XLA would first write all weights as floats.
FEW_ROWS = 4


@dataclasses.dataclass(frozen=True)
class Format:
    """How the matrices of one place of a model are stored.

    Attributes:
      name: "int8", "int4", "fp8" or "nf4".
      group: inputs that share a scale; 0: all.
    """

    name: str
    group: int = 0

    @property
    def is_packed(self) -> bool:
        """Whether a byte holds two codes."""
        return self.name in ("int4", "nf4")

    def code_dtype(self) -> jnp.dtype:
        """Return the dtype of the codes."""
        return jnp.dtype({"int8": jnp.int8, "fp8": _FP8}.get(self.name, jnp.uint8))

    def code_shape(self, inputs: Sequence[int], outputs: Sequence[int]) -> list[int]:
        """Return the shape of the codes of a matrix."""
        return [*outputs, *inputs[:-1], inputs[-1] // (2 if self.is_packed else 1)]

    def scale_shape(self, inputs: Sequence[int], outputs: Sequence[int]) -> list[int]:
        """Return the shape of the scales of a matrix."""
        groups = [*inputs[:-1], inputs[-1] // self.group] if self.group else []
        return [*outputs, *groups]


def choose_format(config: QuantizeConfig, *, last_input: int) -> Format:
    """Return the format of a matrix, by the size of its last input dimension.

    Where that is smaller than a group (the heads of `attention.out`) it is the group.
    """
    return Format(config.weights, min(config.group, last_input))


def find_scales(w_GIO: Array, name: str) -> Array:
    """Return the scale (G, O) of groups of weights (G, I, O), to round to nearest."""
    if name == "int4":  # the weight of largest magnitude is level -8, exactly
        index = jnp.argmax(jnp.abs(w_GIO), axis=1, keepdims=True)
        largest = jnp.take_along_axis(w_GIO, index, axis=1)[:, 0]
        scale = largest / -8.0
    else:
        top = {"int8": 127.0, "fp8": _FP8_MAX, "nf4": 1.0}[name]
        scale = jnp.abs(w_GIO).max(axis=1) / top
    if name in ("int4", "nf4"):  # codes are those of the scale as it is stored
        scale = scale.astype(jnp.float16).astype(jnp.float32)
    return jnp.where(scale == 0.0, 1.0, scale)


def round_levels(x: Array, name: str) -> Array:
    """Return the nearest levels of weights that are divided by their scale."""
    if name == "int8":
        return jnp.clip(jnp.round(x), -127, 127)
    if name == "int4":
        return jnp.clip(jnp.round(x), -8, 7)
    if name == "fp8":
        x = jnp.clip(x, -_FP8_MAX, _FP8_MAX)
        return x.astype(_FP8).astype(x.dtype)
    return jnp.asarray(NF4)[jnp.searchsorted(jnp.asarray(_NF4_BOUNDS), x)]


def split_groups(w: Array, num_inputs: int, group: int) -> Array:
    """Return a matrix (*inputs, *outputs) as (G, I, O); with group 0, G is 1."""
    num_in = math.prod(w.shape[:num_inputs])
    return w.reshape(num_in // (group or num_in), group or num_in, -1)


def store(
    level_GIO: Array,
    scale_GO: Array,
    shape: Sequence[int],
    num_inputs: int,
    form: Format,
) -> tuple[Array, Array]:
    """Return codes and scales as they are stored.

    Args:
      level_GIO: levels of the weights, in groups of inputs.
      scale_GO: of each group.
      shape: of the matrix (*inputs, *outputs).
      num_inputs: dimensions of its inputs.
      form: of the weights.
    """
    inputs, outputs = shape[:num_inputs], shape[num_inputs:]
    level_OI = level_GIO.reshape(-1, level_GIO.shape[-1]).T
    if form.name == "nf4":
        code_OI = jnp.searchsorted(jnp.asarray(_NF4_BOUNDS), level_OI)
    else:
        code_OI = level_OI + 8 if form.name == "int4" else level_OI
    code_OI = code_OI.astype(form.code_dtype())
    if form.is_packed:
        code_OI = code_OI[:, 0::2] | (code_OI[:, 1::2] << 4)
    scales = scale_GO.T.astype(jnp.float16 if form.group else jnp.float32)
    return (
        code_OI.reshape(form.code_shape(inputs, outputs)),
        scales.reshape(form.scale_shape(inputs, outputs)),
    )


def quantize(w: Array, num_inputs: int, form: Format) -> tuple[Array, Array]:
    """Return the codes and scales of a matrix (*inputs, *outputs), each nearest."""
    w_GIO = split_groups(w.astype(jnp.float32), num_inputs, form.group)
    scale_GO = find_scales(w_GIO, form.name)
    level_GIO = round_levels(w_GIO / scale_GO[:, None], form.name)
    return store(level_GIO, scale_GO, w.shape, num_inputs, form)


def _unpack(codes: Array, which: int, form: Format, dtype: jnp.dtype) -> Array:
    """Return the levels in the low (0) or the high bits (1) of each byte."""
    nibble = codes >> 4 if which else codes & 15
    if form.name == "int4":
        return (nibble.astype(jnp.int8) - 8).astype(dtype)
    return jnp.asarray(NF4, dtype)[nibble]


def _level_OI(codes: Array, num_outputs: int, form: Format, dtype: jnp.dtype) -> Array:
    """Return the levels (O, I) of codes (*outputs, *inputs)."""
    code_OI = codes.reshape(math.prod(codes.shape[:num_outputs]), -1)
    if not form.is_packed:
        return code_OI.astype(dtype)
    low, high = (_unpack(code_OI, i, form, dtype) for i in range(2))
    return jnp.stack([low, high], axis=-1).reshape(len(code_OI), -1)


def _weight_OI(
    codes: Array, scales: Array, num_outputs: int, form: Format, dtype: jnp.dtype
) -> Array:
    """Return the weights (O, I)."""
    level_OI = _level_OI(codes, num_outputs, form, dtype)
    scale_OG = scales.reshape(len(level_OI), -1, 1).astype(dtype)
    level_OGI = level_OI.reshape(*scale_OG.shape[:2], -1)
    return (level_OGI * scale_OG).reshape(level_OI.shape)


def dequantize(codes: Array, scales: Array, *, num_inputs: int, form: Format) -> Array:
    """Return the matrix (*inputs, *outputs) in float32."""
    num_outputs = codes.ndim - num_inputs
    weight_OI = _weight_OI(codes, scales, num_outputs, form, jnp.dtype(jnp.float32))
    outputs, inputs = codes.shape[:num_outputs], codes.shape[num_outputs:]
    last = inputs[-1] * (2 if form.is_packed else 1)
    return weight_OI.T.reshape(*inputs[:-1], last, *outputs)


def round_to_nearest(w: Array, num_inputs: int, form: Format) -> Array:
    """Return a matrix as it is once quantized; the gradient passes straight through.

    Bengio et al. 2013.
    """
    exact = w.astype(jnp.float32)
    codes, scales = quantize(jax.lax.stop_gradient(exact), num_inputs, form)
    rounded = dequantize(codes, scales, num_inputs=num_inputs, form=form)
    return w + jax.lax.stop_gradient(rounded - exact).astype(w.dtype)


def round_activations(x: Array) -> tuple[Array, Array]:
    """Return int8 levels of vectors (..., I), and the scale of each (..., 1)."""
    scale = jnp.abs(x).max(axis=-1, keepdims=True).astype(jnp.float32) / 127.0
    scale = jnp.where(scale == 0.0, 1.0, scale)
    return jnp.round(x.astype(jnp.float32) / scale).astype(jnp.int8), scale


def multiply(
    x: Array,
    codes: Array,
    scales: Array,
    *,
    num_inputs: int,
    form: Format,
    round_inputs: bool = False,
) -> Array:
    """Return x @ weights, (..., *inputs) -> (..., *outputs), in the dtype of `x`.

    Args:
      x: hidden states.
      codes: of the weights.
      scales: of the weights.
      num_inputs: dimensions of the inputs.
      form: of the weights.
      round_inputs: round `x`, too, to int8: products are those of integers.
    """
    cut = x.ndim - num_inputs
    x_RI = x.reshape(math.prod(x.shape[:cut]), -1)
    num_outputs = codes.ndim - num_inputs
    outputs = codes.shape[:num_outputs]
    code_OI = codes.reshape(math.prod(outputs), -1)
    if round_inputs:
        y_RO = _multiply_rounded(x_RI, code_OI) * scales.reshape(-1)
    elif len(x_RI) <= FEW_ROWS:
        scale_OG = scales.reshape(len(code_OI), -1)
        y_RO = jnp.stack([_multiply_row(row, code_OI, scale_OG, form) for row in x_RI])
    elif form.group:
        weight_OI = _weight_OI(codes, scales, num_outputs, form, x.dtype)
        y_RO = _dot(x_RI, weight_OI)
    else:
        y_RO = _dot(x_RI, code_OI.astype(x.dtype)) * scales.reshape(-1)
    return y_RO.astype(x.dtype).reshape(*x.shape[:cut], *outputs)


def _dot(x_RI: Array, w_OI: Array, dtype: Any = jnp.float32) -> Array:
    dims = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(x_RI, w_OI, dims, preferred_element_type=dtype)


def _multiply_row(x_I: Array, code_OI: Array, scale_OG: Array, form: Format) -> Array:
    """Return the product (O,) of one row, in float32."""
    x_I = x_I.astype(jnp.float32)
    if not form.is_packed:
        return (x_I * code_OI.astype(jnp.float32)).sum(axis=1) * scale_OG[:, 0]
    x_GJ2 = x_I.reshape(scale_OG.shape[1], -1, 2)
    code_OGJ = code_OI.reshape(*scale_OG.shape, -1)
    low, high = (_unpack(code_OGJ, i, form, jnp.dtype(jnp.float32)) for i in range(2))
    y_OG = (x_GJ2[:, :, 0] * low + x_GJ2[:, :, 1] * high).sum(axis=2)
    return (y_OG * scale_OG.astype(jnp.float32)).sum(axis=1)


def _multiply_rounded(x_RI: Array, code_OI: Array) -> Array:
    """Return the product of int8 codes and of rows that are rounded to int8."""
    level_RI, scale_R1 = round_activations(x_RI)
    if len(x_RI) <= FEW_ROWS:  # of floats: they are exact up to 2 ** 24
        rows = [row.astype(jnp.float32) for row in level_RI]
        wide_OI = code_OI.astype(jnp.float32)
        return jnp.stack([(row * wide_OI).sum(axis=1) for row in rows]) * scale_R1

    def of_integers(level_RI: Array, code_OI: Array) -> Array:
        return _dot(level_RI, code_OI, jnp.int32).astype(jnp.float32)

    def of_floats(level_RI: Array, code_OI: Array) -> Array:
        return _dot(level_RI.astype(jnp.float32), code_OI.astype(jnp.float32))

    # XLA has no fast product of int8 matrices on CPUs.
    y_RO = jax.lax.platform_dependent(
        level_RI, code_OI, cpu=of_floats, default=of_integers
    )
    return y_RO * scale_R1


def logits(x: Array, codes_VD: Array, scale_V: Array) -> Array:
    """Return the float32 dot products with all rows: (..., D) -> (..., V)."""
    x_RD = x.reshape(-1, x.shape[-1])
    if len(x_RD) <= FEW_ROWS:
        levels_VD = codes_VD.astype(jnp.float32)
        y_RV = jnp.stack([(levels_VD * row).sum(axis=1) for row in x_RD])
    else:
        y_RV = _dot(x_RD, codes_VD.astype(x.dtype))
    return (y_RV * scale_V).reshape(*x.shape[:-1], -1)


def quantize_table(table_VD: Array) -> tuple[Array, Array]:
    """Return the int8 codes and the scale (V,) of each row, rounded to nearest."""
    w_VDO = table_VD.astype(jnp.float32)[..., None]
    scale_V = find_scales(w_VDO, "int8")[:, 0]
    codes = round_levels(table_VD / scale_V[:, None], "int8")
    return codes.astype(jnp.int8), scale_V


def round_table(table_VD: Array) -> Array:
    """Return a table as it is once quantized; the gradient passes straight through."""
    codes_VD, scale_V = quantize_table(jax.lax.stop_gradient(table_VD))
    rounded = codes_VD.astype(jnp.float32) * scale_V[:, None]
    return table_VD + jax.lax.stop_gradient(rounded - table_VD)


def round_inputs(x: Array, num_inputs: int) -> Array:
    """Return hidden states (..., *inputs) as their int8 levels give them.

    The gradient passes straight through.
    """
    cut = x.ndim - num_inputs
    flat = jax.lax.stop_gradient(x).reshape(*x.shape[:cut], -1)
    levels, scale = round_activations(flat)
    rounded = (levels.astype(jnp.float32) * scale).reshape(x.shape).astype(x.dtype)
    return x + jax.lax.stop_gradient(rounded - x)


def dequantize_params(
    params: Params, config: ModelConfig
) -> tuple[Params, ModelConfig]:
    """Return float32 parameters and config of a model that computes the same.

    Inputs are not rounded any more, if they were.
    """
    q = config.quantize
    if not (q.stores_codes or q.stores_table):
        return params, config

    def convert(tree: Any, name: str) -> Any:
        if not isinstance(tree, dict):
            return tree
        new = {key: convert(leaf, key) for key, leaf in tree.items()}
        if "codes" in tree:
            codes, scales = new.pop("codes"), new.pop("scales")
            num_inputs = 2 if name == "out" else 1
            last = codes.shape[-1] * (2 if q.weights in ("int4", "nf4") else 1)
            form = choose_format(q, last_input=last)
            one = functools.partial(dequantize, num_inputs=num_inputs, form=form)
            new["kernel"] = jax.lax.map(
                lambda layer, one=one: one(*layer), (codes, scales)
            )
        if "embedding_codes" in tree:
            codes, scales = new.pop("embedding_codes"), new.pop("embedding_scales")
            new["embedding"] = codes.astype(jnp.float32) * scales[:, None]
        return new

    return convert(params, ""), without_codes(config)


def without_codes(config: ModelConfig) -> ModelConfig:
    """Return the config of the same model in floats."""
    assert isinstance(config, TransformerConfig)
    return dataclasses.replace(config, quantize=QuantizeConfig())


def count_weights(params: Params) -> int:
    """Return the number of parameters, those in codes included, without scales."""
    return sum(
        leaf.size * (2 if leaf.dtype == jnp.uint8 else 1)
        for name, leaf in named_leaves(params).items()
        if not name.endswith("scales")
    )
