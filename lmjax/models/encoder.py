"""Encoder-only Transformers. B batch, T length, D dim, V vocabulary."""

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.model import EncoderConfig
from lmjax.errors import ConfigError
from lmjax.models import flops
from lmjax.models.heads import (
    Classifier,
    LabelLayer,
    MaskedLMHead,
    OutputLayer,
    Pooler,
    TextEmbedding,
    pool,
)
from lmjax.nn import intermediates
from lmjax.nn.linear import Embed, Linear
from lmjax.nn.stack import TransformerStack, resolve_stack
from lmjax.types import Array, Batch


class Encoder(nnx.Module):
    """BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019), and all of their kind."""

    resolve = staticmethod(resolve_stack)

    def __init__(self, key: Array, config: EncoderConfig) -> None:
        c, keys = config, jax.random.split(key, 6)
        self.config = c
        types = {"token_types": c.num_token_types, "embed": c.dim}
        self.embed = Embed(
            keys[0], {"vocab": c.vocab_size, "embed": c.dim}, quantize=c.quantize
        )
        self.token_types = Embed(keys[1], types) if c.num_token_types else None
        self.encoder = TransformerStack(
            keys[2], c, num_layers=c.num_layers, causal=False
        )
        self.head = MaskedLMHead(keys[3], c) if c.mlm_head else None
        self.pooler = (
            Pooler(keys[4], c.dim, activation=c.pooler_activation) if c.pooler else None
        )
        pair = {"embed": c.dim}, {"features": 2}
        self.pair = Linear(keys[5], *pair, bias=True) if c.pair_head else None
        self.classifier = (
            Classifier(
                jax.random.fold_in(key, 6),
                c.dim,
                c.num_labels,
                dropout=c.dropout,
                layer=(
                    LabelLayer(jax.random.fold_in(key, 8), c) if c.label_layer else None
                ),
            )
            if c.num_labels
            else None
        )
        own = jax.random.fold_in(key, 7)
        self.embedding = TextEmbedding(own, c.text_embedding, dim=c.width)

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Array:
        """Return the last hidden states (B, T, D); dropout only with a key.

        `token_types` (B, T) may be left out of the batch: all are then of type 0.
        """
        x_BTD = self.embed(batch["tokens"], jnp.dtype(self.config.dtype))
        x_BTD = intermediates.record("embeddings", x_BTD)
        if self.token_types is not None:
            types_BT = batch.get("token_types", jnp.zeros_like(batch["tokens"]))
            x_BTD = x_BTD + self.token_types(types_BT, x_BTD.dtype)
        return self.encoder(
            x_BTD,
            positions_BT=batch["positions"],
            segments_BT=batch["segments"],
            key=key,
        )

    def output_layer(self, x: Array) -> OutputLayer:
        """Return the output layer of hidden states (..., D).

        Raises:
          ConfigError: the model has no head over the vocabulary.
        """
        if self.head is None:
            raise ConfigError("config.model.mlm_head = False: there are no logits")
        return self.head(x, self.embed)

    def pooled(self, x_BTD: Array) -> Array:
        """Return one vector for each row (B, D), from its first token.

        Raises:
          ConfigError: the model has no pooler.
        """
        if self.pooler is None:
            raise ConfigError("config.model.pooler = False: there is no pooled vector")
        return self.pooler(x_BTD)

    def summary(self, x_BTD: Array, segments_BT: Array) -> Array:
        """Return one vector for each row (B, D): `config.summary` of its states."""
        if self.config.summary == "pooler":
            return self.pooled(x_BTD)
        real_BT = segments_BT > 0
        return pool(
            jnp.where(real_BT[..., None], x_BTD, 0), real_BT, self.config.summary
        )

    def pair_logits(self, x_BTD: Array) -> Array:
        """Return float32 logits (B, 2): are the two texts in order, or swapped?

        Raises:
          ConfigError: the model has no head for pairs.
        """
        if self.pair is None:
            raise ConfigError("config.model.pair_head = False: there is no pair head")
        return self.pair(self.pooled(x_BTD)).astype(jnp.float32)

    @staticmethod
    def count_macs(
        config: EncoderConfig, kernels: flops.KernelSizes, batch: Batch
    ) -> float:
        """Return the multiply-adds of a forward pass over one row."""
        length = batch["tokens"].shape[1]
        return (
            length * kernels("encoder.")
            + flops.attention_macs(config, config.num_layers * length**2)
            + flops.head_macs(config, kernels, batch)
            + kernels("pooler", "pair.")
        )
