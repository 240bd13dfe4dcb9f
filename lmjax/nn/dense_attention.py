"""Attention that computes all scores at once.

B batch, T queries, S keys, N heads, K kv heads, G heads a kv head, H head_dim.
"""

import jax
import jax.numpy as jnp

from lmjax.nn import intermediates
from lmjax.nn.attention_context import AttentionOptions
from lmjax.nn.param import dropout
from lmjax.types import Array


def dense_attention(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    mask: Array,
    *,
    options: AttentionOptions,
    bias: Array | None = None,
    key: Array | None = None,
) -> Array:
    """Attend in plain XLA, with scores and their softmax in float32.

    Arguments as for `attend`, but for the `mask`, which is of `dense_mask`.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores = jnp.einsum(
        "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    )
    scores = scores * options.scale_of(H)
    if bias is not None:
        scores = scores + bias.reshape(-1, K, N // K, *bias.shape[2:])
    if options.softcap:
        scores = options.softcap * jnp.tanh(scores / options.softcap)
    scores = jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    intermediates.record("attention", weights.reshape(B, N, T, -1))
    weights = dropout(weights.astype(v_BSKH.dtype), rate=options.dropout_rate, key=key)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights, v_BSKH).reshape(B, T, N, H)
