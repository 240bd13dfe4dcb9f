"""Decoder-only Transformers. B batch, T length, D dim, V vocabulary."""

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config import DecoderConfig
from lmjax.nn.attention import KVCache
from lmjax.nn.block import Stack
from lmjax.nn.linear import Embed
from lmjax.nn.mask import attention_mask
from lmjax.nn.norm import make_norm
from lmjax.nn.param import dropout
from lmjax.nn.position import rope_angles, rope_frequencies
from lmjax.sharding import constrain
from lmjax.types import Array


class Decoder(nnx.Module):
    """GPT-2 (Radford et al. 2019), Llama (Touvron et al. 2023), and all between."""

    def __init__(self, key: Array, config: DecoderConfig) -> None:
        c, keys = config, jax.random.split(key, 5)
        self.config = c
        words = {"vocab": c.vocab_size, "embed": c.dim}
        places = {"length": c.max_length, "embed": c.dim}
        self.embed = Embed(keys[0], words)
        self.positions = Embed(keys[1], places) if c.position == "learned" else None
        self.stack = Stack(keys[2], c)
        self.norm = make_norm(
            keys[3], c.norm, c.dim, epsilon=c.norm_epsilon, bias=c.use_bias
        )
        self.head = None if c.tie_embeddings else Embed(keys[4], words)

    def __call__(
        self,
        tokens_BT: Array,
        *,
        positions_BT: Array,
        segments_BT: Array,
        key: Array | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Array, KVCache | None]:
        """Return the last hidden states (B, T, D), and the cache if one came.

        Args:
          tokens_BT: int32 ids.
          positions_BT: int32, restarting at each document.
          segments_BT: int32, a token sees only its own segment; 0 is padding.
          key: for dropout; none without it.
          cache: earlier tokens, which these ones also see.
        """
        c = self.config
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD = self.embed(tokens_BT, jnp.dtype(c.dtype))
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(positions_BT, x_BTD.dtype)
        x_BTD = dropout(x_BTD, rate=c.dropout, key=keys[0])
        x_BTD = constrain(x_BTD, "batch", "length", "embed")
        angles = None
        if c.position == "rope":
            angles = rope_angles(positions_BT, rope_frequencies(c))
        mask, cache = self._mask(positions_BT, segments_BT, cache)
        x_BTD, cache = self.stack(
            x_BTD, mask=mask, angles=angles, key=keys[1], cache=cache
        )
        return self.norm(x_BTD), cache

    def logits(self, x_BTD: Array) -> Array:
        """Return float32 logits (..., V) of hidden states (..., D)."""
        logits = (self.head or self.embed).attend(x_BTD)
        if self.config.logit_softcap:
            cap = self.config.logit_softcap
            logits = cap * jnp.tanh(logits / cap)
        if logits.ndim == 3:
            logits = constrain(logits, "batch", "length", "vocab")
        return logits

    def _mask(
        self, positions_BT: Array, segments_BT: Array, cache: KVCache | None
    ) -> tuple[Array, KVCache | None]:
        """Return who sees whom, and the cache knowing of the new tokens."""
        keys = (positions_BT, segments_BT)
        if cache is not None:
            cache = cache.extend(positions_BT, segments_BT)
            keys = (cache.positions_BS, cache.segments_BS)
        mask = attention_mask(
            positions_BT, segments_BT, *keys, causal=True, window=self.config.window
        )
        return mask, cache
