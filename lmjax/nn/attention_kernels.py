"""Attention kernels: each makes its own mask from an `AttentionContext`.

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
from lmjax.nn.attention_context import AttentionContext, dense_mask
from lmjax.nn.chunked_attention import BlockMask, block_mask, chunked_attention
from lmjax.nn.param import dropout
from lmjax.types import Array

log = logging.getLogger(__name__)


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


LONG = 1024  # keys; up to so many all scores fit well into memory


def long_mask(context: AttentionContext) -> Array | BlockMask:
    """Return the mask of `long_attention`: in blocks if the rows are long.

    A few queries, as in decoding, are no long rows.
    """
    T, S = context.segments_BT.shape[1], context.key_segments_BS.shape[1]
    is_long = S > LONG and T * S > LONG**2
    return block_mask(context) if is_long else dense_mask(context)


def long_attention(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    mask: Array | BlockMask,
    **options: Any,
) -> Array:
    """Attend block by block where rows are long, else at once.

    Arguments as for `xla_attention`, but for the `mask`, which is of `long_mask`.
    """
    attend = chunked_attention if isinstance(mask, BlockMask) else xla_attention
    return attend(q_BTNH, k_BSKH, v_BSKH, mask, **options)  # type: ignore[arg-type]


# By the names that `config.model.attention` takes.
ATTENTION = {
    "xla": AttentionKernel(dense_mask, xla_attention),
    "chunked": AttentionKernel(long_mask, long_attention),
    "cudnn": AttentionKernel(dense_mask, cudnn_attention),
}


def choose_attention(
    config: TransformerConfig, *, platform: str
) -> Literal["xla", "chunked", "cudnn"]:
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
        name: Literal["chunked", "cudnn"] = "chunked" if obstacle else "cudnn"
        log.log(level, "attention: %s (cudnn %s)", name, obstacle or "supports it")
        return name
    if config.attention == "cudnn" and obstacle:
        raise ConfigError(f"config.model.attention = 'cudnn': {obstacle}")
    return config.attention
