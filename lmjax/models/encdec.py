"""Encoder-decoder Transformers.

B batch, R rows of texts (B, or B times beams), S source length, T length, D dim.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.model import EncoderDecoderConfig
from lmjax.models import flops
from lmjax.models.heads import Head, OutputLayer, apply_head
from lmjax.nn import intermediates
from lmjax.nn.kv_cache import TransformerDecodeState
from lmjax.nn.linear import Embed
from lmjax.nn.stack import TransformerStack, resolve_stack
from lmjax.types import Array, Batch


class EncoderDecoder(nnx.Module):
    """The Transformer (Vaswani et al. 2017), BART (Lewis et al. 2020), T5 (Raffel)."""

    resolve = staticmethod(resolve_stack)

    def __init__(self, key: Array, config: EncoderDecoderConfig) -> None:
        c, keys = config, jax.random.split(key, 4)
        self.config = c
        self.embed = Embed(
            keys[0], {"vocab": c.vocab_size, "embed": c.dim}, quantize=c.quantize
        )
        self.encoder = TransformerStack(
            keys[1], c, num_layers=c.num_encoder_layers, causal=False
        )
        self.decoder = TransformerStack(
            keys[2], c, num_layers=c.num_layers, causal=True, cross=True
        )
        scale = c.dim**-0.5 if c.scale_logits else 1.0
        self.head = (
            Head(keys[3], c, scale=scale, logit_softcap=c.logit_softcap)
            if c.lm_head
            else None
        )

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Array:
        """Return the decoder's last hidden states (B, T, D); dropout with a key.

        The tokens begin with `config.decoder_prefix_ids`. In packed rows a token sees
        the source tokens of its own segment number.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        memory_BSD = self.encode(batch, key=keys[0])
        x_BTD = self.embed(batch["tokens"], jnp.dtype(self.config.dtype))
        return self.decoder(
            intermediates.record("embeddings", x_BTD),
            positions_BT=batch["positions"],
            segments_BT=batch["segments"],
            memory_BSD=memory_BSD,
            memory_segments_BS=batch["source_segments"],
            key=keys[1],
        )

    def encode(self, batch: Batch, *, key: Array | None = None) -> Array:
        """Return the encoder's last hidden states (B, S, D)."""
        x_BSD = self.embed(batch["source"], jnp.dtype(self.config.dtype))
        x_BSD = intermediates.record("source_embeddings", x_BSD)
        with intermediates.prefixed("source_"):
            return self.encoder(
                x_BSD,
                positions_BT=batch["source_positions"],
                segments_BT=batch["source_segments"],
                key=key,
            )

    def init_decode_state(
        self, *, num_rows: int, num_slots: int, source: Batch | None
    ) -> TransformerDecodeState:
        """Encode a source, and return the state before the first token."""
        assert source is not None
        return self.decoder.init_decode_state(
            num_rows=num_rows,
            num_slots=num_slots,
            memory_BSD=self.encode(source),
            memory_segments_BS=source["source_segments"],
        )

    def extend(
        self,
        tokens_RT: Array,
        state: TransformerDecodeState,
        *,
        positions_RT: Array,
        segments_RT: Array,
    ) -> tuple[Array, TransformerDecodeState]:
        """Return the hidden states (R, T, D) of new tokens, and the new state.

        Args:
          tokens_RT: int32 ids, which begin with `config.decoder_prefix_ids`.
          state: the tokens before them, and the source.
          positions_RT: int32.
          segments_RT: int32, a token sees only its own segment, here and in the
            source; 0 is padding.
        """
        x_RTD = self.embed(tokens_RT, jnp.dtype(self.config.dtype))
        return self.decoder.extend(
            x_RTD, state, positions_RT=positions_RT, segments_RT=segments_RT
        )

    def output_layer(self, x: Array) -> OutputLayer:
        """Return the output layer of hidden states (..., D).

        Raises:
          ConfigError: the model has no head over the vocabulary.
        """
        return apply_head(self.head, x, self.embed)

    @staticmethod
    def count_macs(
        config: EncoderDecoderConfig, kernels: flops.KernelSizes, batch: Batch
    ) -> float:
        """Return the multiply-adds of a forward pass over one row and its source."""
        c, length, source = config, batch["tokens"].shape[1], batch["source"].shape[1]
        # Cross-attention projects each token of the source to a key and a value.
        cross = "decoder.blocks.cross_attention"
        keys_and_values = kernels(f"{cross}.key.", f"{cross}.value.")
        pairs = c.num_encoder_layers * source**2
        pairs += c.num_layers * (flops.causal_pairs(c, length) + length * source)
        return (
            source * (kernels("encoder.") + keys_and_values)
            + length * (kernels("decoder.") - keys_and_values)
            + flops.attention_macs(c, pairs)
            + flops.head_macs(c, kernels, batch)
        )
