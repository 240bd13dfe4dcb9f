"""Decoder-only Transformers. B batch, T length, D dim, V vocabulary."""

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.model import DecoderConfig
from lmjax.models.heads import Classifier, Head
from lmjax.nn.block import Cache, Trunk
from lmjax.nn.linear import Embed
from lmjax.types import Array, Batch


class Decoder(nnx.Module):
    """GPT-2 (Radford et al. 2019), Llama (Touvron et al. 2023), and all between."""

    def __init__(self, key: Array, config: DecoderConfig) -> None:
        c, keys = config, jax.random.split(key, 3)
        self.config = c
        self.embed = Embed(keys[0], {"vocab": c.vocab_size, "embed": c.dim})
        self.decoder = Trunk(keys[1], c, num_layers=c.num_layers, causal=True)
        self.head = Head(keys[2], c)
        self.classifier = (
            Classifier(
                jax.random.fold_in(key, 3), c.dim, c.num_labels, dropout=c.dropout
            )
            if c.num_labels
            else None
        )

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Array:
        """Return the last hidden states (B, T, D); dropout only with a key."""
        return self.extend(
            batch["tokens"], batch["positions"], batch["segments"], key=key
        )[0]

    def extend(
        self,
        tokens_BT: Array,
        positions_BT: Array,
        segments_BT: Array,
        *,
        key: Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[Array, Cache | None]:
        """Return the hidden states of tokens that follow a cache, and the new cache.

        Args:
          tokens_BT: int32 ids.
          positions_BT: int32, restarting at each document.
          segments_BT: int32, a token sees only its own segment; 0 is padding.
          key: for dropout; none without it.
          cache: earlier tokens, which these ones also see.
        """
        x_BTD = self.embed(tokens_BT, jnp.dtype(self.config.dtype))
        return self.decoder(
            x_BTD,
            positions_BT=positions_BT,
            segments_BT=segments_BT,
            key=key,
            cache=cache,
        )

    def logits(self, x: Array) -> Array:
        """Return float32 logits (..., V) of hidden states (..., D)."""
        return self.head(x, self.embed)

    def summary(self, x_BTD: Array, segments_BT: Array) -> Array:
        """Return one vector for each row (B, D): its last token's."""
        last_B = jnp.maximum((segments_BT > 0).sum(axis=1) - 1, 0)
        return jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)[:, 0]
