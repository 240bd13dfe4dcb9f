"""Attention in blocks of queries and keys, in memory that grows with the length alone.

The online softmax of FlashAttention (Dao et al. 2022) in plain JAX, for any platform:
no array has a dimension of all queries and one of all keys, and pairs of blocks in
which no query sees a key cost nothing. The backward pass computes the weights again.

B batch, T queries, S keys, N heads, K kv heads, G heads a kv head, H head_dim; I and J
blocks, of X queries and of Y keys; P pairs of blocks.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from lmjax.nn.attention_context import AttentionContext, AttentionOptions
from lmjax.parallel.sharding import context_shards
from lmjax.types import Array

BLOCK = 512  # the most queries or keys in a block
_LOWEST = -1e30  # below all scores; not -inf, whose differences are not numbers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockMask:
    """An `AttentionContext` in blocks, and the pairs of blocks where something is seen.

    The window is data, so that layers with and without one can share a loop.
    """

    segments_IBX: Array
    positions_IBX: Array
    key_segments_JBY: Array
    key_positions_JBY: Array
    window: Array  # int32 scalar
    pairs_P2: Array  # (i, j); the first `num_pairs` count
    num_pairs: Array  # int32 scalar
    causal: bool = dataclasses.field(metadata={"static": True})

    def sees_BXY(self, i: Array, j: Array) -> Array:
        """Return which queries of block i see which keys of block j."""
        q, k = self.segments_IBX[i], self.key_segments_JBY[j]
        sees = q[:, :, None] == k[:, None, :]
        q, k = self.positions_IBX[i], self.key_positions_JBY[j]
        distance = q[:, :, None] - k[:, None, :]
        sees &= jnp.abs(distance) < self.window
        return sees & (distance >= 0) if self.causal else sees


def block_mask(context: AttentionContext) -> BlockMask:
    """Return a context in blocks; the last are filled up with what nothing sees.

    Where rows are split over devices, the mask of each part of the queries.
    """
    if context_shards(context.segments_BT.shape[1]) == 1:
        return _whole_mask(context)
    own, whole = PartitionSpec(None, "context"), PartitionSpec()
    key_segments_BS, key_positions_BS = context.keys
    context = dataclasses.replace(
        context, key_segments_BS=key_segments_BS, key_positions_BS=key_positions_BS
    )
    specs: Any = {
        "segments_BT": own,
        "key_segments_BS": whole,
        "positions_BT": None if context.positions_BT is None else own,
        "key_positions_BS": None if key_positions_BS is None else whole,
    }
    specs = dataclasses.replace(context, **specs)
    stacked = lambda context: jax.tree.map(lambda x: x[None], _whole_mask(context))
    return jax.shard_map(
        stacked,
        in_specs=(specs,),
        out_specs=PartitionSpec("context"),
        axis_names={"context"},
        check_vma=False,
    )(context)


def _whole_mask(context: AttentionContext) -> BlockMask:
    c = context
    (key_segments, key_positions), positions = c.keys, c.positions_BT
    T, S = c.segments_BT.shape[1], key_segments.shape[1]
    if not (c.causal or c.window):
        positions, key_positions = (
            jnp.zeros_like(x) for x in (c.segments_BT, key_segments)
        )
    assert positions is not None and key_positions is not None
    num_i, num_j = num_blocks(T), num_blocks(S)
    mask = BlockMask(
        segments_IBX=_blocks(c.segments_BT, 1, fill=-2),
        positions_IBX=_blocks(positions, 1),
        key_segments_JBY=_blocks(key_segments, 1, fill=-1),
        key_positions_JBY=_blocks(key_positions, 1),
        window=jnp.int32(c.window or jnp.iinfo(jnp.int32).max),
        pairs_P2=jnp.stack(
            jnp.meshgrid(jnp.arange(num_i), jnp.arange(num_j), indexing="ij"), axis=-1
        ).reshape(-1, 2),
        num_pairs=jnp.int32(num_i * num_j),
        causal=c.causal,
    )
    seen_P = jax.lax.map(lambda pair: mask.sees_BXY(*pair).any(), mask.pairs_P2)
    (seen,) = jnp.nonzero(seen_P, size=len(seen_P), fill_value=0)
    return dataclasses.replace(
        mask, pairs_P2=mask.pairs_P2[seen], num_pairs=seen_P.sum(dtype=jnp.int32)
    )


def chunked_attention(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    mask: BlockMask,
    *,
    options: AttentionOptions,
    bias: Array | None = None,
    key: Array | None = None,
) -> Array:
    """Attend block by block; scores and their softmax in float32.

    Arguments as for `attend`, but for the `mask`, which is of `block_mask`. A query
    that sees no key gets 0.
    """
    key = key if options.dropout_rate else None
    inputs = _Inputs(q_BTNH, k_BSKH, v_BSKH, bias, mask, key)
    if not mask.num_pairs.ndim:
        return _attend(options, inputs)

    def attend(inputs: _Inputs) -> Array:
        """Attend from this device's part of the queries to all keys."""
        mask, key = jax.tree.map(lambda x: x[0], inputs.mask), inputs.key
        if key is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index("context"))
        return _attend(options, inputs._replace(mask=mask, key=key))

    own, whole = PartitionSpec(None, "context"), PartitionSpec()
    specs: Any = _Inputs(
        *(own, whole, whole),  # type: ignore[arg-type]
        bias=None if bias is None else PartitionSpec(None, None, "context"),  # type: ignore[arg-type]
        mask=PartitionSpec("context"),  # type: ignore[arg-type]
        key=None if key is None else whole,  # type: ignore[arg-type]
    )
    return jax.shard_map(
        attend,
        in_specs=(specs,),
        out_specs=own,
        axis_names={"context"},
        check_vma=False,
    )(inputs)


class _Inputs(NamedTuple):
    q_BTNH: Array
    k_BSKH: Array
    v_BSKH: Array
    bias: Array | None
    mask: BlockMask
    key: Array | None

    def blocks(self) -> tuple[Array, Array, Array, Array | None]:
        """Return queries, keys, values and the bias in blocks."""
        K = self.k_BSKH.shape[2]
        q, bias = _split_q(self.q_BTNH, K), _split_bias(self.bias, K)
        return q, _split_kv(self.k_BSKH), _split_kv(self.v_BSKH), bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options: AttentionOptions, inputs: _Inputs) -> Array:
    return _forward(options, inputs)[0]


def _forward(options: AttentionOptions, inputs: _Inputs) -> tuple[Array, Any]:
    mask, key = inputs.mask, inputs.key
    q, k, v, bias = inputs.blocks()
    rows = q.shape[:-1]  # I B K G X

    def visit(p: Array, carry: tuple[Array, Array, Array]) -> Any:
        top, total, out = carry  # maxima, sums and weighted sums so far
        i, j = mask.pairs_P2[p]
        scores, _ = _scores(options, q[i], k[j], mask, bias, i, j)
        new_top = jnp.maximum(top[i], scores.max(axis=-1))
        shrink = jnp.exp(top[i] - new_top)
        weights = jnp.exp(scores - new_top[..., None])
        weights = jnp.where(scores > _LOWEST, weights, 0.0)
        new_total = total[i] * shrink + weights.sum(axis=-1)
        kept = _dropout(options, weights, key, i, j)
        new_out = out[i] * shrink[..., None] + jnp.einsum(
            "BKGXY,BKYH->BKGXH",
            kept.astype(v.dtype),
            v[j],
            preferred_element_type=jnp.float32,
        )
        return (
            top.at[i].set(new_top),
            total.at[i].set(new_total),
            out.at[i].set(new_out),
        )

    start = (
        jnp.full(rows, _LOWEST, jnp.float32),
        jnp.zeros(rows, jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    top, total, out = jax.lax.fori_loop(0, mask.num_pairs, visit, start)
    total = jnp.where(total > 0.0, total, 1.0)
    T, dtype = inputs.q_BTNH.shape[1], inputs.q_BTNH.dtype
    out_BTNH = _join_q(out / total[..., None], T).astype(dtype)
    log_total = top + jnp.log(total)
    # By this name a policy can keep both, so that they are not computed again.
    out_BTNH, log_total = checkpoint_name((out_BTNH, log_total), "attention")
    return out_BTNH, (inputs, out_BTNH, log_total)


def _backward(options: AttentionOptions, residuals: Any, d_out_BTNH: Array) -> Any:
    inputs, out_BTNH, log_total = residuals
    mask, key = inputs.mask, inputs.key
    T, (S, K) = d_out_BTNH.shape[1], inputs.k_BSKH.shape[1:3]
    q, k, v, bias = inputs.blocks()
    d_out = _split_q(d_out_BTNH, K)
    # Of each query: the sum over keys of weight times gradient of the weight.
    products = d_out_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32)
    mean = _split_q(products.sum(axis=-1, keepdims=True), K)
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def visit(p: Array, carry: Any) -> Any:
        d_q, d_k, d_v, d_bias = carry
        i, j = mask.pairs_P2[p]
        scores, slope = _scores(options, q[i], k[j], mask, bias, i, j)
        weights = jnp.exp(scores - log_total[i][..., None])
        weights = jnp.where(scores > _LOWEST, weights, 0.0)
        kept = _dropout(options, weights, key, i, j).astype(v.dtype)
        d_v = d_v.at[j].add(dot("BKGXY,BKGXH->BKYH", kept, d_out[i]))
        d_weights = dot("BKGXH,BKYH->BKGXY", d_out[i], v[j])
        d_weights = _dropout(options, d_weights, key, i, j)
        d_scores = weights * (d_weights - mean[i]) * slope
        if d_bias is not None:
            shared = bias.shape[2] == 1
            own = d_scores.sum(axis=0, keepdims=True) if shared else d_scores
            d_bias = d_bias.at[i, j].add(own)
        d_scores = (d_scores * options.scale_of(q.shape[-1])).astype(q.dtype)
        d_q = d_q.at[i].add(dot("BKGXY,BKYH->BKGXH", d_scores, k[j]))
        d_k = d_k.at[j].add(dot("BKGXY,BKGXH->BKYH", d_scores, q[i]))
        return d_q, d_k, d_v, d_bias

    zeros = lambda x: None if x is None else jnp.zeros(x.shape, jnp.float32)
    start = (zeros(q), zeros(k), zeros(v), zeros(bias))
    d_q, d_k, d_v, d_bias = jax.lax.fori_loop(0, mask.num_pairs, visit, start)
    grads = _Inputs(
        _join_q(d_q, T).astype(q.dtype),
        _join_kv(d_k, S).astype(k.dtype),
        _join_kv(d_v, S).astype(v.dtype),
        None if bias is None else _join_bias(d_bias, T, S).astype(bias.dtype),
        None,  # type: ignore[arg-type]
        None,
    )
    return (grads,)


_attend.defvjp(_forward, _backward)


def _scores(
    options: AttentionOptions,
    q_BKGXH: Array,
    k_BKYH: Array,
    mask: BlockMask,
    bias: Array | None,
    i: Array,
    j: Array,
) -> tuple[Array, Array | float]:
    """Return the scores (B, K, G, X, Y) of two blocks, and the slope of the soft cap.

    Where a query does not see a key, the score is the lowest.
    """
    scores = jnp.einsum(
        "BKGXH,BKYH->BKGXY", q_BKGXH, k_BKYH, preferred_element_type=jnp.float32
    )
    scores = scores * options.scale_of(q_BKGXH.shape[-1])
    if bias is not None:
        scores = scores + bias[i, j]
    slope: Array | float = 1.0
    if options.softcap:
        share = jnp.tanh(scores / options.softcap)
        scores, slope = options.softcap * share, 1.0 - jnp.square(share)
    sees = mask.sees_BXY(i, j)[:, None, None]
    return jnp.where(sees, scores, _LOWEST), slope


def _dropout(
    options: AttentionOptions, weights: Array, key: Array | None, i: Array, j: Array
) -> Array:
    """Drop out weights, or their gradients in the same way: a block has its own key."""
    if key is None:
        return weights
    own = jax.random.fold_in(jax.random.fold_in(key, i), j)
    keep = jax.random.bernoulli(own, 1.0 - options.dropout_rate, weights.shape)
    return jnp.where(keep, weights / (1.0 - options.dropout_rate), 0.0)


def num_blocks(length: int) -> int:
    """Return into how many blocks a length is cut."""
    return -(-length // BLOCK)


def _blocks(x: Array, axis: int, *, fill: int = 0) -> Array:
    """Cut an axis into blocks of one size, numbered by a new first axis."""
    length = x.shape[axis]
    num = num_blocks(length)
    size = -(-length // num)
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, num * size - length)
    x = jnp.pad(x, widths, constant_values=fill) if num * size > length else x
    x = x.reshape(*x.shape[:axis], num, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def _unblock(x: Array, axis: int, length: int) -> Array:
    """Join blocks to an axis of `length`, the inverse of `_blocks`."""
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)


def _split_q(x_BTNH: Array, K: int) -> Array:
    """Return queries, or what has their shape, as blocks (I, B, K, G, X, H)."""
    B, T, N, H = x_BTNH.shape
    x = _blocks(x_BTNH.reshape(B, T, K, N // K, H), 1)
    return x.transpose(0, 1, 3, 4, 2, 5)


def _join_q(x_IBKGXH: Array, T: int) -> Array:
    x = _unblock(x_IBKGXH.transpose(0, 1, 4, 2, 3, 5), 1, T)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _split_kv(x_BSKH: Array) -> Array:
    """Return keys or values as blocks (J, B, K, Y, H)."""
    return _blocks(x_BSKH, 1).transpose(0, 1, 3, 2, 4)


def _join_kv(x_JBKYH: Array, S: int) -> Array:
    return _unblock(x_JBKYH.transpose(0, 1, 3, 2, 4), 1, S)


def _split_bias(bias: Array | None, K: int) -> Array | None:
    """Return a bias (B or 1, N, T, S) as blocks (I, J, B or 1, K, G, X, Y)."""
    if bias is None:
        return None
    B, N, T, S = bias.shape
    x = _blocks(bias.reshape(B, K, N // K, T, S), 3)  # I B K G X S
    return jnp.moveaxis(_blocks(x, 5), 0, 1)


def _join_bias(x: Array, T: int, S: int) -> Array:
    x = _unblock(jnp.moveaxis(x, 1, 0), 5, S)
    x = _unblock(x, 3, T)
    return x.reshape(x.shape[0], -1, T, S)
