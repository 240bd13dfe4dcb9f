"""Decoder-only Transformers. B batch, R texts, T length, D dim, V vocabulary."""

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.model import DecoderConfig
from lmjax.models import flops
from lmjax.models.heads import Classifier, Head, OutputLayer, TextEmbedding, apply_head
from lmjax.nn import intermediates
from lmjax.nn.kv_cache import TransformerDecodeState
from lmjax.nn.linear import Embed
from lmjax.nn.stack import TransformerStack, resolve_stack
from lmjax.types import Array, Batch


class Decoder(nnx.Module):
    """GPT-2 (Radford et al. 2019), Llama (Touvron et al. 2023), and all between."""

    resolve = staticmethod(resolve_stack)

    def __init__(self, key: Array, config: DecoderConfig) -> None:
        c, keys = config, jax.random.split(key, 3)
        self.config = c
        self.embed = Embed(
            keys[0], {"vocab": c.vocab_size, "embed": c.dim}, quantize=c.quantize
        )
        self.decoder = TransformerStack(
            keys[1], c, num_layers=c.num_layers, causal=True
        )
        self.head = (
            Head(keys[2], c, logit_softcap=c.logit_softcap) if c.lm_head else None
        )
        self.classifier = (
            Classifier(
                jax.random.fold_in(key, 3),
                c.dim,
                c.num_labels,
                dropout=c.dropout,
                bias=c.label_bias,
            )
            if c.num_labels
            else None
        )
        own = jax.random.fold_in(key, 7)
        self.embedding = TextEmbedding(own, c.text_embedding, dim=c.width)

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Array:
        """Return the last hidden states (B, T, D); dropout only with a key."""
        x_BTD = self.embed(batch["tokens"], jnp.dtype(self.config.dtype))
        return self.decoder(
            intermediates.record("embeddings", x_BTD),
            positions_BT=batch["positions"],
            segments_BT=batch["segments"],
            key=key,
        )

    def init_decode_state(
        self, *, num_rows: int, num_slots: int, source: Batch | None
    ) -> TransformerDecodeState:
        """Return the state before the first token; there is no source."""
        assert source is None
        return self.decoder.init_decode_state(num_rows=num_rows, num_slots=num_slots)

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
          tokens_RT: int32 ids.
          state: the tokens before them.
          positions_RT: int32.
          segments_RT: int32, a token sees only its own segment; 0 is padding.
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

    def summary(self, x_BTD: Array, segments_BT: Array) -> Array:
        """Return one vector for each row (B, D): its last token's."""
        last_B = jnp.maximum((segments_BT > 0).sum(axis=1) - 1, 0)
        return jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)[:, 0]

    @staticmethod
    def count_macs(
        config: DecoderConfig, kernels: flops.KernelSizes, batch: Batch
    ) -> float:
        """Return the multiply-adds of a forward pass over one row."""
        length = batch["tokens"].shape[1]
        pairs = config.num_layers * flops.causal_pairs(config, length)
        return (
            length * kernels("decoder.")
            + flops.attention_macs(config, pairs)
            + flops.head_macs(config, kernels, batch)
        )
