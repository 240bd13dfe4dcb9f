"""Attention kernels, and the context from which each makes its mask.

B batch, T queries, S keys, N heads, K kv heads, G heads a kv head, H head_dim.
"""

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lmjax.config.model import TransformerConfig
from lmjax.errors import ConfigError
from lmjax.nn.param import dropout
from lmjax.types import Array

log = logging.getLogger(__name__)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionContext:
    """Which keys each query may attend to: segments and positions of both.

    A query sees the keys of its own segment: if `causal`, those at its position or
    before; with a `window`, those fewer than that many positions away. Padding
    (segment 0) sees padding, so that no row of the softmax is empty.

    Positions are None where neither `causal` nor `window` needs them, as in
    cross-attention.
    """

    segments_BT: Array
    key_segments_BS: Array
    positions_BT: Array | None = None
    key_positions_BS: Array | None = None
    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: int = dataclasses.field(default=0, metadata={"static": True})  # 0: all


def dense_mask(context: AttentionContext) -> Array:
    """Return the boolean (B, 1, T, S) mask, true where a query sees a key."""
    c = context
    mask = c.segments_BT[:, :, None] == c.key_segments_BS[:, None, :]
    if c.causal or c.window:
        assert c.positions_BT is not None and c.key_positions_BS is not None
        distance = c.positions_BT[:, :, None] - c.key_positions_BS[:, None, :]
        if c.causal:
            mask &= distance >= 0
        if c.window:
            mask &= (distance < c.window) & (distance > -c.window)
    return mask[:, None]


@dataclasses.dataclass(frozen=True)
class AttentionKernel:
    """One way to compute attention.

    make_mask: from a context to the form in which `attend` reads it, any pytree of
      arrays. It is called once for all layers of a stack, outside their loop.
    attend: from queries (B, T, N, H), keys and values (B, S, K, H) and that mask to the
      weighted means of the values (B, T, N, H); keyword arguments as `xla_attention`.
    """

    make_mask: Callable[[AttentionContext], Any]
    attend: Callable[..., Array]


def xla_attention(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    mask: Array,
    *,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    dropout_rate: float = 0.0,
    key: Array | None = None,
) -> Array:
    """Attend in plain XLA, with scores and their softmax in float32.

    Args:
      q_BTNH: queries; N is a multiple of K.
      k_BSKH: keys.
      v_BSKH: values.
      mask: of `dense_mask`.
      bias: added to the scores, (B or 1, N, T, S).
      scale: of the scores; by default 1 / sqrt(H).
      softcap: if not 0, scores become softcap * tanh(scores / softcap).
      dropout_rate: of the weights.
      key: for dropout; none without it.
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
    mask: Array,
    *,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    dropout_rate: float = 0.0,
    key: Array | None = None,
) -> Array:
    """Attend with cuDNN's fused kernel; arguments as for `xla_attention`.

    Raises:
      ConfigError: naming the argument that the kernel does not support.
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
    """Return why cuDNN's kernel does not support this attention; "" if it does."""
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs bfloat16, not {jnp.dtype(dtype).name}"
    if softcap:
        return f"has no soft cap (attention_softcap = {softcap})"
    if bias:
        return "has no gradient for relative positions"
    if dropout_rate:
        return f"has no dropout (attention_dropout = {dropout_rate})"
    if head_dim % 8 or head_dim > 128:
        return f"needs head_dim to be a multiple of 8 up to 128, not {head_dim}"
    return ""


# By the names that `config.model.attention` takes.
ATTENTION = {
    "xla": AttentionKernel(dense_mask, xla_attention),
    "cudnn": AttentionKernel(dense_mask, cudnn_attention),
}


def choose_attention(
    config: TransformerConfig, *, platform: str
) -> Literal["xla", "cudnn"]:
    """Return the name of the kernel for a platform: `config.attention`, or for "auto".

    Args:
      config: its dtype is not "auto".
      platform: "cpu", "gpu" or "tpu".

    Raises:
      ConfigError: the kernel that the config names does not support it.
    """
    obstacle = cudnn_obstacle(
        dtype=jnp.dtype(config.dtype),
        softcap=config.attention_softcap,
        head_dim=config.head_dim,
        bias=config.position == "relative",
        dropout_rate=config.attention_dropout,
    )
    if platform != "gpu":
        obstacle = f"runs on GPUs only, not on {platform}"
    if config.attention == "auto":
        # Elsewhere than on a GPU there is no choice to report.
        level = logging.INFO if platform == "gpu" else logging.DEBUG
        name: Literal["xla", "cudnn"] = "xla" if obstacle else "cudnn"
        log.log(level, "attention: %s (cudnn %s)", name, obstacle or "supports it")
        return name
    if config.attention == "cudnn" and obstacle:
        raise ConfigError(f"config.model.attention = 'cudnn': {obstacle}")
    return config.attention
