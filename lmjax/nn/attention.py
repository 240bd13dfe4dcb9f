"""Multi-head attention; `attention_kernels` computes the scores and weighted sums.

B batch, R texts (B, or B times beams), T queries, S keys, D dim, N heads, K kv heads,
H head_dim.
"""

import functools
import math
from typing import Any

import jax
from flax import nnx

from lmjax.config.model import TransformerConfig
from lmjax.nn.attention_context import AttentionOptions
from lmjax.nn.attention_kernels import attend
from lmjax.nn.kv_cache import KVCache, SourceKV
from lmjax.nn.linear import Linear, matrix_options
from lmjax.nn.norm import make_norm
from lmjax.nn.rope import Angles, rotate
from lmjax.parallel.sharding import constrain
from lmjax.types import Array


class Attention(nnx.Module):
    """Multi-head attention with grouped queries (Ainslie et al. 2023).

    A `mask` is one that the config's kernel makes (`attention_kernels.MAKE_MASK`).
    """

    def __init__(
        self, key: Array, config: TransformerConfig, *, name: str = "attention"
    ) -> None:
        c, keys = config, jax.random.split(key, 6)
        self.config = c
        embed, head = {"embed": c.dim}, {"head_dim": c.head_dim}
        heads = {"heads": c.num_heads, **head}
        kv_heads = {"kv_heads": c.num_kv_heads, **head}
        out_bias = c.attention_bias is True
        qkv_bias = out_bias or c.qkv_bias
        options = lambda matrix: matrix_options(c, f"{name}.{matrix}")
        # Scores begin with their usual variance, whatever scales them (T5).
        query_scale = c.head_dim**-0.5 / (c.attention_scale or c.head_dim**-0.5)
        self.query = Linear(
            *(keys[0], embed, heads),
            bias=qkv_bias,
            scale=query_scale,
            **options("query"),
        )
        self.key = Linear(keys[1], embed, kv_heads, bias=qkv_bias, **options("key"))
        self.value = Linear(keys[2], embed, kv_heads, bias=qkv_bias, **options("value"))
        # Residual branches add up over 2 * num_layers sublayers (GPT-2).
        scale = 1.0 / math.sqrt(2 * c.num_layers)
        self.out = Linear(
            keys[3], heads, embed, bias=out_bias, scale=scale, **options("out")
        )
        norm = functools.partial(
            make_norm, kind=c.norm, epsilon=c.norm_epsilon, bias=False
        )
        num_q, num_k = c.num_heads, c.num_kv_heads
        if c.qk_norm_over == "head":
            num_q = num_k = 1
        self.query_norm = norm(keys[4], size=num_q * c.head_dim) if c.qk_norm else None
        self.key_norm = norm(keys[5], size=num_k * c.head_dim) if c.qk_norm else None

    def __call__(
        self,
        x_BTD: Array,
        *,
        mask: Any,
        memory_BSD: Array | None = None,
        bias: Array | None = None,
        angles: Angles | None = None,
        key: Array | None = None,
    ) -> Array:
        """Attend over a whole sequence; the result is (B, T, D).

        Args:
          x_BTD: the queries are projected from it.
          mask: of all T queries and S keys.
          memory_BSD: keys and values are projected from it; by default from `x_BTD`.
          bias: added to the scores, (B or 1, N, T, S).
          angles: of rotary positions.
          key: for dropout of the weights; none without it.
        """
        q = self._queries(x_BTD, angles)
        memory_BSD = x_BTD if memory_BSD is None else memory_BSD
        k, v = self.keys_and_values(memory_BSD, angles)
        return self._attend(q, k, v, mask=mask, bias=bias, key=key)

    def extend(
        self,
        x_RTD: Array,
        cache: KVCache,
        *,
        layer: Array | int,
        mask: Any,
        bias: Array | None = None,
        angles: Angles | None = None,
    ) -> tuple[Array, KVCache]:
        """Attend from new tokens to themselves and to earlier ones, for decoding.

        Args:
          x_RTD: hidden states of T new tokens.
          cache: earlier tokens. The result has the new ones in its next slots.
          layer: which of the cache's layers belongs to this module.
          mask: of the T new tokens and the S slots.
          bias: added to the scores, (R or 1, N, T, S).
          angles: of rotary positions of the new tokens.
        """
        q = self._queries(x_RTD, angles)
        cache = cache.write(layer, *self.keys_and_values(x_RTD, angles))
        k, v = cache.read(layer, q.dtype)
        return self._attend(q, k, v, mask=mask, bias=bias), cache

    def read_source(
        self, x_RTD: Array, source: SourceKV, *, layer: Array | int, mask: Any
    ) -> Array:
        """Attend to a source whose keys and values are computed already.

        Args:
          x_RTD: hidden states of R = B K rows: the K beams of each source row.
          source: keys and values of B rows.
          layer: which of its layers belongs to this module.
          mask: of K T queries in each of the B rows and the S source tokens.
        """
        q = self._queries(x_RTD, None)
        k, v = source.k_LBSKH[layer], source.v_LBSKH[layer]
        # Beams become queries of one row, so that its keys are read once for all.
        q = q.reshape(len(k), -1, *q.shape[2:])
        out = self._attend(q, k, v, mask=mask)
        return out.reshape(x_RTD.shape)

    def keys_and_values(
        self, x_BSD: Array, angles: Angles | None = None
    ) -> tuple[Array, Array]:
        """Project hidden states to keys and values, (B, S, K, H) each."""
        k, v = self.key(x_BSD), self.value(x_BSD)
        if self.key_norm is not None:
            k = self._normalize(k, self.key_norm)
        if angles is not None:
            k = rotate(k, angles)
        k = constrain(k, "batch", "keys", "kv_heads", "head_dim")
        return k, constrain(v, "batch", "keys", "kv_heads", "head_dim")

    def _queries(self, x_BTD: Array, angles: Angles | None) -> Array:
        q = self.query(x_BTD)
        if self.query_norm is not None:
            q = self._normalize(q, self.query_norm)
        if angles is not None:
            q = rotate(q, angles)
        return constrain(q, "batch", "length", "heads", "head_dim")

    def _normalize(self, x_BTNH: Array, norm: Any) -> Array:
        if self.config.qk_norm_over == "head":
            return norm(x_BTNH)
        return norm(x_BTNH.reshape(*x_BTNH.shape[:2], -1)).reshape(x_BTNH.shape)

    def _attend(
        self,
        q_BTNH: Array,
        k_BSKH: Array,
        v_BSKH: Array,
        *,
        mask: Any,
        bias: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        c = self.config
        options = AttentionOptions(
            scale=c.attention_scale,
            softcap=c.attention_softcap,
            dropout_rate=c.attention_dropout,
        )
        out_BTNH = attend(
            q_BTNH, k_BSKH, v_BSKH, mask, options=options, bias=bias, key=key
        )
        out_BTNH = constrain(out_BTNH, "batch", "length", "heads", "head_dim")
        return self.out(out_BTNH)
