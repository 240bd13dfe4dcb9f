"""Attention on GPUs by the kernels of tokamax, an optional package.

Like cuDNN's they leave out what no query sees; they also have a soft cap and a bias.

B batch, T queries, S keys, N heads, K kv heads, H head_dim.
"""

import dataclasses
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.nn.attention_context import AttentionContext, AttentionOptions
from lmjax.parallel.sharding import activation_spec, map_shards
from lmjax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RangeMask:
    """The range of keys, by their index in the row, that each query sees."""

    starts_BT: Array
    stops_BT: Array


def is_installed() -> bool:
    """Return whether the package can be imported."""
    return importlib.util.find_spec("tokamax") is not None


def range_mask(context: AttentionContext) -> RangeMask:
    """Return the mask of a sequence that attends to itself."""
    assert context.is_self
    segments_BT = context.segments_BT
    T = segments_BT.shape[1]
    index_1T = jnp.arange(T)[None]
    begins_BT = (segments_BT != jnp.roll(segments_BT, 1, axis=1)).at[:, 0].set(True)
    starts_BT = jax.lax.cummax(jnp.where(begins_BT, index_1T, 0), axis=1)
    ends_BT = jnp.roll(begins_BT, -1, axis=1)
    stops_BT = jnp.where(ends_BT, index_1T + 1, T)
    stops_BT = jax.lax.cummin(stops_BT, axis=1, reverse=True)
    if context.causal:
        stops_BT = jnp.minimum(stops_BT, index_1T + 1)
    if context.window:
        starts_BT = jnp.maximum(starts_BT, index_1T - context.window + 1)
        stops_BT = jnp.minimum(stops_BT, index_1T + context.window)
    return RangeMask(starts_BT=starts_BT, stops_BT=stops_BT)


def tokamax_attention(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    mask: RangeMask,
    *,
    options: AttentionOptions,
    bias: Array | None = None,
    key: Array | None = None,
) -> Array:
    """Attend with tokamax's kernel, on each device to its own rows and heads.

    Arguments as for `attend`, but for the `mask`, which is of `range_mask`.
    """
    assert bias is None and not (key is not None and options.dropout_rate)
    q_spec = activation_spec(q_BTNH.shape, "batch", "length", "heads", "head_dim")
    k_spec = activation_spec(k_BSKH.shape, "batch", "keys", "kv_heads", "head_dim")
    rows = activation_spec(mask.starts_BT.shape, "batch", "length")

    def attend(
        q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, starts_BT: Array, stops_BT: Array
    ) -> Array:
        # Not public: the public function takes no ranges of keys.
        from tokamax._src.ops.attention.base import Mask

        return make_kernel()(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            logits_scale=options.scale_of(q_BTNH.shape[-1]),
            logits_soft_cap=options.softcap or None,
            mask=Mask(k_start=starts_BT[:, None], k_end=stops_BT[:, None]),
        )

    return map_shards(
        attend, in_specs=(q_spec, k_spec, k_spec, rows, rows), out_specs=q_spec
    )(q_BTNH, k_BSKH, v_BSKH, mask.starts_BT, mask.stops_BT)


def make_kernel() -> Any:
    """Return tokamax's attention for recent GPUs."""
    from tokamax._src.ops.attention import pallas_mosaic_gpu

    return pallas_mosaic_gpu.PallasMosaicGpuFlashAttention()
