"""Attention. B batch, T queries, S keys, D dim, N heads, K kv heads, H head_dim."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config import ConfigError, DecoderConfig
from lmjax.nn.linear import Linear
from lmjax.nn.norm import make_norm
from lmjax.nn.position import rotate
from lmjax.sharding import constrain
from lmjax.types import Array


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


class Attention(nnx.Module):
    """Multi-head attention with grouped queries (Ainslie et al. 2023)."""

    def __init__(self, key: Array, config: DecoderConfig) -> None:
        c, keys = config, jax.random.split(key, 6)
        self.config = c
        embed, head = {"embed": c.dim}, {"head_dim": c.head_dim}
        heads = {"heads": c.num_heads, **head}
        kv_heads = {"kv_heads": c.num_kv_heads, **head}
        self.query = Linear(keys[0], embed, heads, bias=c.use_bias)
        self.key = Linear(keys[1], embed, kv_heads, bias=c.use_bias)
        self.value = Linear(keys[2], embed, kv_heads, bias=c.use_bias)
        # Residual branches add up over 2 * num_layers sublayers (GPT-2).
        scale = 1.0 / math.sqrt(2 * c.num_layers)
        self.out = Linear(keys[3], heads, embed, bias=c.use_bias, scale=scale)
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
        angles: tuple[Array, Array] | None = None,
        cache: KVCache | None = None,
        layer: Array | int = 0,
    ) -> tuple[Array, KVCache | None]:
        """Mix values over the keys that `mask` (B, 1, T, S) lets each query see.

        With a cache, its slots are the keys, and these T tokens are written first.
        """
        q, k, v = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        q = constrain(q, "batch", "length", "heads", "head_dim")
        k = constrain(k, "batch", "length", "kv_heads", "head_dim")
        v = constrain(v, "batch", "length", "kv_heads", "head_dim")
        if cache is not None:
            cache = cache.write(layer, k, v)
            k, v = cache.k_LBSKH[layer], cache.v_LBSKH[layer]
        attend = ATTENTION[self.config.attention]
        out_BTNH = attend(q, k, v, mask=mask, softcap=self.config.attention_softcap)
        out_BTNH = constrain(out_BTNH, "batch", "length", "heads", "head_dim")
        return self.out(out_BTNH), cache


def xla_attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, *, mask: Array, softcap: float
) -> Array:
    """Attend in plain XLA, the scores and their softmax in float32."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores = jnp.einsum(
        "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    )
    scores = scores / math.sqrt(H)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights, v_BSKH).reshape(B, T, N, H)


def cudnn_attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, *, mask: Array, softcap: float
) -> Array:
    """Attend with cuDNN's fused kernel; the mask goes in whole, segments included.

    Raises:
      ConfigError: a soft-cap, dtype or head size that the kernel cannot honour.
    """
    reason = cudnn_obstacle(
        dtype=q_BTNH.dtype, softcap=softcap, head_dim=q_BTNH.shape[-1]
    )
    if reason:
        raise ConfigError(f"config.model.attention = 'cudnn': {reason}")
    mask = jnp.broadcast_to(mask, (*mask.shape[:1], 1, *mask.shape[2:]))
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, mask=mask, implementation="cudnn"
    )


def cudnn_obstacle(*, dtype: jnp.dtype, softcap: float, head_dim: int) -> str:
    """Return why cuDNN's kernel cannot serve this attention, or nothing."""
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs bfloat16, not {jnp.dtype(dtype).name}"
    if softcap:
        return f"cannot soft-cap (attention_softcap = {softcap})"
    if head_dim % 8 or head_dim > 128:
        return f"needs head_dim to be a multiple of 8 up to 128, not {head_dim}"
    return ""


ATTENTION: dict[str, Callable[..., Array]] = {
    "xla": xla_attention,
    "cudnn": cudnn_attention,
}
