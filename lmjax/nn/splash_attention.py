"""Attention on TPUs by splash attention, a Pallas kernel that comes with JAX.

It leaves out blocks of scores above the diagonal or outside of the window, and masks
other documents by their segments; its memory grows with the length alone.

B batch, T queries, S keys, N heads, K kv heads, H head_dim.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.nn.attention_context import AttentionContext, AttentionOptions
from lmjax.parallel.sharding import activation_spec, map_shards
from lmjax.types import Array

LANES = 128  # blocks are multiples of it
BLOCK = 1024  # the most queries or keys in a block
INTERPRET = False  # tests run the kernel on the CPU


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SplashMask:
    """What splash attention is given of an `AttentionContext`."""

    segments_BT: Array
    causal: bool = dataclasses.field(metadata={"static": True})
    window: int = dataclasses.field(metadata={"static": True})


def splash_mask(context: AttentionContext) -> SplashMask:
    """Return the mask of a sequence that attends to itself."""
    assert context.is_self
    return SplashMask(
        segments_BT=context.segments_BT, causal=context.causal, window=context.window
    )


def splash_attention(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    mask: SplashMask,
    *,
    options: AttentionOptions,
    bias: Array | None = None,
    key: Array | None = None,
) -> Array:
    """Attend with splash attention, on each device to its own rows and heads.

    Arguments as for `attend`, but for the `mask`, which is of `splash_mask`.
    """
    assert bias is None and not (key is not None and options.dropout_rate)
    q_BTNH = q_BTNH * options.scale_of(q_BTNH.shape[-1])
    q_spec = activation_spec(q_BTNH.shape, "batch", "length", "heads", "head_dim")
    k_spec = activation_spec(k_BSKH.shape, "batch", "keys", "kv_heads", "head_dim")
    rows = activation_spec(mask.segments_BT.shape, "batch", "length")
    attend = functools.partial(
        _attend, causal=mask.causal, window=mask.window, softcap=options.softcap
    )
    return map_shards(
        attend, in_specs=(q_spec, k_spec, k_spec, rows), out_specs=q_spec
    )(q_BTNH, k_BSKH, v_BSKH, mask.segments_BT)


def _attend(
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    segments_BT: Array,
    *,
    causal: bool,
    window: int,
    softcap: float,
) -> Array:
    # Importing Pallas takes time.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    T, N = q_BTNH.shape[1:3]
    block = block_size(T)
    length = -(-T // block) * block
    pad = functools.partial(_pad, length=length)
    shape = (length, length)
    mask: Any = splash.CausalMask(shape) if causal else splash.FullMask(shape)
    if window:
        reach = (window - 1, 0 if causal else window - 1)
        mask = splash.LocalMask(shape, reach, offset=0)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * N),
        block_sizes=splash.BlockSizes(**_block_sizes(length, block)),
        attn_logits_soft_cap=softcap or None,
        head_shards=1,
        q_seq_shards=1,
        # By this name a policy can keep the results, as those of chunked attention.
        residual_checkpoint_name="attention",
        interpret=INTERPRET,
    )
    # What fills the row up is a segment of its own.
    segments_BT = pad(segments_BT, fill=-1)
    q, k, v = (jnp.swapaxes(pad(x), 1, 2) for x in (q_BTNH, k_BTKH, v_BTKH))

    def one(q: Array, k: Array, v: Array, segments_T: Array) -> Any:
        segments = splash.SegmentIds(segments_T, segments_T)
        return kernel(q, k, v, segment_ids=segments)

    out_BNTH = jax.vmap(one)(q, k, v, segments_BT)
    return jnp.swapaxes(out_BNTH, 1, 2)[:, :T]


def block_size(length: int) -> int:
    """Return the size of the blocks that a length is filled up to a multiple of."""
    num = -(-length // BLOCK)
    return -(-length // (num * LANES)) * LANES


def _block_sizes(length: int, block: int) -> dict[str, Any]:
    # Fused, the backward pass holds gradients of the queries for each block of keys.
    fused = length // block <= 8
    names = ["q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute"]
    names += [] if fused else ["q_dq", "kv_dq"]
    sizes = {f"block_{name}": block for name in names}
    return {**sizes, "use_fused_bwd_kernel": fused}


def _pad(x: Array, *, length: int, fill: int = 0) -> Array:
    """Fill up the length of an array (B, T, ...)."""
    widths = [(0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)]
    return jnp.pad(x, widths, constant_values=fill)
