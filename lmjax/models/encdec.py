"""Encoder-decoder Transformers. B batch, S source length, T length, D dim."""

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.model import EncoderDecoderConfig
from lmjax.models.heads import Head
from lmjax.nn.block import Cache, Trunk
from lmjax.nn.linear import Embed
from lmjax.types import Array, Batch


class EncoderDecoder(nnx.Module):
    """The Transformer (Vaswani et al. 2017), BART (Lewis et al. 2020), T5 (Raffel)."""

    def __init__(self, key: Array, config: EncoderDecoderConfig) -> None:
        c, keys = config, jax.random.split(key, 4)
        self.config = c
        self.embed = Embed(keys[0], {"vocab": c.vocab_size, "embed": c.dim})
        self.encoder = Trunk(keys[1], c, num_layers=c.num_encoder_layers, causal=False)
        self.decoder = Trunk(
            keys[2], c, num_layers=c.num_layers, causal=True, cross=True
        )
        self.head = Head(keys[3], c)

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Array:
        """Return the decoder's last hidden states (B, T, D); dropout with a key."""
        keys = (None, None) if key is None else jax.random.split(key)
        return self.extend(
            batch["tokens"],
            batch["positions"],
            batch["segments"],
            memory_BSD=self.encode(batch, key=keys[0]),
            memory_segments_BS=batch["source_segments"],
            key=keys[1],
        )[0]

    def encode(self, batch: Batch, *, key: Array | None = None) -> Array:
        """Return the encoder's last hidden states (B, S, D)."""
        return self.encoder(
            self.embed(batch["source"], jnp.dtype(self.config.dtype)),
            positions_BT=batch["source_positions"],
            segments_BT=batch["source_segments"],
            key=key,
        )[0]

    def extend(
        self,
        tokens_BT: Array,
        positions_BT: Array,
        segments_BT: Array,
        *,
        memory_BSD: Array | None = None,
        memory_segments_BS: Array | None = None,
        key: Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[Array, Cache | None]:
        """Return the hidden states of tokens that follow a cache, and the new cache.

        Args:
          tokens_BT: int32 ids, which begin with `config.decoder_prefix_ids`.
          positions_BT: int32, restarting at each document.
          segments_BT: int32, a token sees only its own segment, here and in the
            source; 0 is padding.
          memory_BSD: the encoder's hidden states, unless the cache has read them.
          memory_segments_BS: the source's segments, unless the cache knows them.
          key: for dropout; none without it.
          cache: earlier tokens, which these ones also see.
        """
        if cache is not None and cache.source is not None:
            segments_BS = cache.source.segments_BS
            num_beams = tokens_BT.shape[0] // segments_BS.shape[0]
            memory_segments_BS = jnp.repeat(segments_BS, num_beams, axis=0)
        return self.decoder(
            self.embed(tokens_BT, jnp.dtype(self.config.dtype)),
            positions_BT=positions_BT,
            segments_BT=segments_BT,
            memory_BSD=memory_BSD,
            memory_segments_BS=memory_segments_BS,
            key=key,
            cache=cache,
        )

    def logits(self, x: Array) -> Array:
        """Return float32 logits (..., V) of hidden states (..., D)."""
        return self.head(x, self.embed)
