"""Attention. B batch, T queries, S keys, D dim, N heads, K kv heads, H head_dim."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.model import TransformerConfig
from lmjax.errors import ConfigError
from lmjax.nn.beams import take_beams
from lmjax.nn.linear import Linear, adapter
from lmjax.nn.norm import make_norm
from lmjax.nn.param import dropout
from lmjax.nn.position import rotate
from lmjax.parallel.sharding import constrain
from lmjax.types import Array


def attention_mask(
    positions_BT: Array,
    segments_BT: Array,
    key_positions_BS: Array,
    key_segments_BS: Array,
    *,
    causal: bool,
    window: int = 0,
) -> Array:
    """Return the boolean (B, 1, T, S) mask, true where a query sees a key.

    Both must belong to the same segment; a causal query sees keys at its position or
    before, and with a `window` only the last so many, itself included. Padding
    (segment 0) sees padding, so that no row of the softmax is empty.
    """
    mask = segments_BT[:, :, None] == key_segments_BS[:, None, :]
    distance = positions_BT[:, :, None] - key_positions_BS[:, None, :]
    if causal:
        mask &= distance >= 0
    if window:
        mask &= (distance < window) & (distance > -window)
    return mask[:, None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, and which position each slot holds.

    Slots fill from the left, for all rows at once; a slot whose segment is 0 (not yet
    filled, or padding of a shorter prompt) is seen by no query.
    """

    k_LBSKH: Array
    v_LBSKH: Array
    positions_BS: Array
    segments_BS: Array
    slot: Array  # int32 scalar: the next to be filled
    # Whether every slot was: keys of a source, made once and read at each step.
    filled: bool = dataclasses.field(default=False, metadata={"static": True})

    def extend(self, positions_BT: Array, segments_BT: Array) -> "KVCache":
        """Say what T tokens at the slots from `slot` on are."""
        start = (0, self.slot)
        update = jax.lax.dynamic_update_slice
        return dataclasses.replace(
            self,
            positions_BS=update(self.positions_BS, positions_BT, start),
            segments_BS=update(self.segments_BS, segments_BT, start),
        )

    def write(self, layer: Array | int, k_BTKH: Array, v_BTKH: Array) -> "KVCache":
        """Put the keys and values of T tokens at the slots from `slot` on."""
        start = (layer, 0, self.slot, 0, 0)
        return dataclasses.replace(
            self,
            k_LBSKH=jax.lax.dynamic_update_slice(self.k_LBSKH, k_BTKH[None], start),
            v_LBSKH=jax.lax.dynamic_update_slice(self.v_LBSKH, v_BTKH[None], start),
        )

    def take(self, parents_BK: Array) -> "KVCache":
        """Return the cache of beams; as `take_beams`."""
        return dataclasses.replace(
            self,
            k_LBSKH=take_beams(self.k_LBSKH, parents_BK, axis=1),
            v_LBSKH=take_beams(self.v_LBSKH, parents_BK, axis=1),
            positions_BS=take_beams(self.positions_BS, parents_BK),
            segments_BS=take_beams(self.segments_BS, parents_BK),
        )


class Attention(nnx.Module):
    """Multi-head attention with grouped queries (Ainslie et al. 2023)."""

    def __init__(
        self, key: Array, config: TransformerConfig, *, name: str = "attention"
    ) -> None:
        c, keys = config, jax.random.split(key, 6)
        self.config = c
        embed, head = {"embed": c.dim}, {"head_dim": c.head_dim}
        heads = {"heads": c.num_heads, **head}
        kv_heads = {"kv_heads": c.num_kv_heads, **head}
        qkv_bias = c.use_bias or c.qkv_bias
        lora = lambda matrix: adapter(c, f"{name}.{matrix}")
        self.query = Linear(keys[0], embed, heads, bias=qkv_bias, **lora("query"))
        self.key = Linear(keys[1], embed, kv_heads, bias=qkv_bias, **lora("key"))
        self.value = Linear(keys[2], embed, kv_heads, bias=qkv_bias, **lora("value"))
        # Residual branches add up over 2 * num_layers sublayers (GPT-2).
        scale = 1.0 / math.sqrt(2 * c.num_layers)
        self.out = Linear(
            keys[3], heads, embed, bias=c.use_bias, scale=scale, **lora("out")
        )
        norm = functools.partial(
            make_norm, kind=c.norm, size=c.head_dim, epsilon=c.norm_epsilon, bias=False
        )
        self.query_norm = norm(keys[4]) if c.qk_norm else None
        self.key_norm = norm(keys[5]) if c.qk_norm else None

    def __call__(
        self,
        x_BTD: Array,
        *,
        mask: Array,
        bias: Array | None = None,
        angles: tuple[Array, Array] | None = None,
        memory_BSD: Array | None = None,
        key: Array | None = None,
        cache: KVCache | None = None,
        layer: Array | int = 0,
    ) -> tuple[Array, KVCache | None]:
        """Mix values over the keys that `mask` (B, 1, T, S) lets each query see.

        Args:
          x_BTD: what queries are made of.
          mask: boolean.
          bias: added to the scores, (B or 1, N, T, S).
          angles: of rotary positions.
          memory_BSD: what keys and values are made of; by default `x_BTD`.
          key: for dropout of the weights.
          cache: its slots are the keys; those made here are written first. With
            `filled` nothing is made, and the slots are read as they are, each row's
            by as many rows of queries as follow from the sizes of both.
          layer: which of the cache's layers this is.
        """
        q = self.query(x_BTD)
        if self.query_norm is not None:
            q = self.query_norm(q)
        if angles is not None:
            q = rotate(q, angles)
        q = constrain(q, "batch", "length", "heads", "head_dim")
        if cache is None or not cache.filled:
            memory_BSD = x_BTD if memory_BSD is None else memory_BSD
            k, v = self._keys_and_values(memory_BSD, angles)
            cache = cache and cache.write(layer, k, v)
        if cache is not None:
            k, v = cache.k_LBSKH[layer], cache.v_LBSKH[layer]
        if k.shape[0] != q.shape[0]:
            # Beams of one source: queries of one row, and its keys are read once.
            q = q.reshape(k.shape[0], -1, *q.shape[2:])
            mask = mask.reshape(k.shape[0], 1, q.shape[1], -1)
        c = self.config
        out_BTNH = ATTENTION[c.attention](
            q,
            k,
            v,
            mask=mask,
            bias=bias,
            scale=c.attention_scale or None,
            softcap=c.attention_softcap,
            dropout_rate=c.attention_dropout,
            key=key,
        )
        out_BTNH = out_BTNH.reshape(*x_BTD.shape[:2], *out_BTNH.shape[2:])
        out_BTNH = constrain(out_BTNH, "batch", "length", "heads", "head_dim")
        return self.out(out_BTNH), cache

    def _keys_and_values(
        self, x_BSD: Array, angles: tuple[Array, Array] | None
    ) -> tuple[Array, Array]:
        k, v = self.key(x_BSD), self.value(x_BSD)
        if self.key_norm is not None:
            k = self.key_norm(k)
        if angles is not None:
            k = rotate(k, angles)
        k = constrain(k, "batch", "length", "kv_heads", "head_dim")
        return k, constrain(v, "batch", "length", "kv_heads", "head_dim")


def xla_attention(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    *,
    mask: Array,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    dropout_rate: float = 0.0,
    key: Array | None = None,
) -> Array:
    """Attend in plain XLA, the scores and their softmax in float32.

    Without a `scale` scores are divided by sqrt(H).
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores = jnp.einsum(
        "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    )
    scores = scores * (1.0 / math.sqrt(H) if scale is None else scale)
    if bias is not None:
        scores = scores + bias.reshape(-1, K, N // K, *bias.shape[2:])
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BSKH.dtype)
    weights = dropout(weights, rate=dropout_rate, key=key)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights, v_BSKH).reshape(B, T, N, H)


def cudnn_attention(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    *,
    mask: Array,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    dropout_rate: float = 0.0,
    key: Array | None = None,
) -> Array:
    """Attend with cuDNN's fused kernel; the mask goes in whole, segments included.

    Raises:
      ConfigError: a soft-cap, bias, dropout, dtype or head size that the kernel
        cannot honour.
    """
    reason = cudnn_obstacle(
        dtype=q_BTNH.dtype,
        softcap=softcap,
        head_dim=q_BTNH.shape[-1],
        bias=bias is not None,
        dropout_rate=0.0 if key is None else dropout_rate,
    )
    if reason:
        raise ConfigError(f"config.model.attention = 'cudnn': {reason}")
    mask = jnp.broadcast_to(mask, (*mask.shape[:1], 1, *mask.shape[2:]))
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, mask=mask, scale=scale, implementation="cudnn"
    )


def cudnn_obstacle(
    *,
    dtype: jnp.dtype,
    softcap: float,
    head_dim: int,
    bias: bool = False,
    dropout_rate: float = 0.0,
) -> str:
    """Return why cuDNN's kernel cannot serve this attention, or nothing."""
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs bfloat16, not {jnp.dtype(dtype).name}"
    if softcap:
        return f"cannot soft-cap (attention_softcap = {softcap})"
    if bias:
        return "cannot learn relative positions"
    if dropout_rate:
        return f"cannot drop out weights (attention_dropout = {dropout_rate})"
    if head_dim % 8 or head_dim > 128:
        return f"needs head_dim to be a multiple of 8 up to 128, not {head_dim}"
    return ""


ATTENTION: dict[str, Callable[..., Array]] = {
    "xla": xla_attention,
    "cudnn": cudnn_attention,
}
