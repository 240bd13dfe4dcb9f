"""Attention kernels: each makes its own mask from an `AttentionContext`.

B batch, T queries, S keys, N heads, K kv heads, H head_dim.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.nn.attention_context import (
    AttentionContext,
    AttentionOptions,
    dense_mask,
)
from lmjax.nn.chunked_attention import BlockMask, block_mask, chunked_attention
from lmjax.nn.cudnn_attention import PackedMask, cudnn_attention, packed_mask
from lmjax.nn.dense_attention import dense_attention
from lmjax.nn.splash_attention import SplashMask, splash_attention, splash_mask
from lmjax.nn.tokamax_attention import RangeMask, range_mask, tokamax_attention
from lmjax.types import Array

LONG = 1024  # keys; up to so many all scores fit well into memory
SHORT = 128  # up to so many, kernels for long rows have nothing to save

# From a context to the form in which a kernel reads it, any pytree of arrays.
MakeMask = Callable[[AttentionContext], Any]


def long_mask(context: AttentionContext) -> Array | BlockMask:
    """Return a mask in blocks if the rows are long, else a dense one.

    A few queries, as in decoding, are no long rows.
    """
    T, S = context.segments_BT.shape[1], context.keys[0].shape[1]
    is_long = S > LONG and T * S > LONG**2
    return block_mask(context) if is_long else dense_mask(context)


def _of_sequences(make: MakeMask) -> MakeMask:
    """Return a maker of masks for a kernel in which a sequence attends to itself.

    Cross-attention, decoding and short rows are left to the kernels of any platform.
    """

    def make_mask(context: AttentionContext) -> Any:
        is_short = context.segments_BT.shape[1] <= SHORT
        return (make if context.is_self and not is_short else long_mask)(context)

    return make_mask


# How the kernels that `config.model.attention` names make their masks.
MAKE_MASK: dict[str, MakeMask] = {
    "xla": dense_mask,
    "chunked": long_mask,
    "cudnn": _of_sequences(packed_mask),
    "splash": _of_sequences(splash_mask),
    "tokamax": _of_sequences(range_mask),
}

# The kernel that reads a mask, by its type; any array is a dense mask.
_KERNELS: dict[type, Callable[..., Array]] = {
    BlockMask: chunked_attention,
    PackedMask: cudnn_attention,
    SplashMask: splash_attention,
    RangeMask: tokamax_attention,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskChoice:
    """Masks of which each layer has one, where they differ in what is compiled."""

    is_first: Array  # bool scalar
    first: Any
    second: Any


def choose_mask(is_first: Array, first: Any, second: Any) -> Any:
    """Return the first or the second mask; a traced bool says which.

    Masks that differ in their arrays alone are merged.
    """
    structure: Any = jax.tree.structure(first)
    if structure == jax.tree.structure(second):
        select = functools.partial(jnp.where, is_first)
        return jax.tree.map(select, first, second)
    return MaskChoice(is_first, first, second)


def attend(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    mask: Any,
    *,
    options: AttentionOptions,
    bias: Array | None = None,
    key: Array | None = None,
) -> Array:
    """Return the weighted means of the values (B, T, N, H).

    Args:
      q_BTNH: queries; N is a multiple of K.
      k_BSKH: keys.
      v_BSKH: values.
      mask: one that `MAKE_MASK` makes. It is made once for all layers of a stack,
        outside their loop.
      options: of the scores and weights.
      bias: added to the scores, (B or 1, N, T, S).
      key: for dropout; none without it.
    """
    if isinstance(mask, MaskChoice):
        attend_to = lambda mask: functools.partial(
            attend, mask=mask, options=options, bias=bias, key=key
        )
        first, second = attend_to(mask.first), attend_to(mask.second)
        return jax.lax.cond(mask.is_first, first, second, q_BTNH, k_BSKH, v_BSKH)
    kernel = _KERNELS.get(type(mask), dense_attention)
    return kernel(q_BTNH, k_BSKH, v_BSKH, mask, options=options, bias=bias, key=key)
