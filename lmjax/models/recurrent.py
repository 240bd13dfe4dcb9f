"""Recurrent networks. B batch, R rows of texts, T length, D dim, L layers, H hidden.

The hidden states of a bidirectional network are those of both directions, (B, T, 2 H).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from lmjax.config.model import RecurrentConfig
from lmjax.errors import ConfigError
from lmjax.models import flops
from lmjax.models.heads import Classifier, Head, OutputLayer, TextEmbedding
from lmjax.nn import intermediates
from lmjax.nn.linear import Embed
from lmjax.nn.recurrent.decode_state import RecurrentDecodeState
from lmjax.nn.recurrent.layers import Recurrent, State, zero_state
from lmjax.types import Array, Batch


class RecurrentNetwork(nnx.Module):
    """A language model, or a classifier of texts or of their tokens.

    Mikolov et al. 2010 and, with LSTMs and dropout, Zaremba et al. 2014; in both
    directions Graves and Schmidhuber 2005, as a tagger Huang et al. 2015.

    Dropout is on all connections but the recurrent ones: on the embeddings, between
    layers, and before the head or the classifier.
    """

    def __init__(self, key: Array, config: RecurrentConfig) -> None:
        c, keys = config, jax.random.split(key, 3)
        self.config = c
        # Zaremba et al. draw from +- 0.1, whose standard deviation this is.
        std = 0.1 * 3**-0.5
        self.embed = Embed(keys[0], {"vocab": c.vocab_size, "embed": c.dim}, std=std)
        types = {"token_types": c.num_token_types, "embed": c.dim}
        own = jax.random.fold_in(key, 3), jax.random.fold_in(key, 4)
        self.token_types = Embed(own[0], types, std=std) if c.num_token_types else None
        self.recurrent = Recurrent(
            keys[1],
            cell=c.cell,
            dim=c.dim,
            hidden_dim=c.hidden_dim,
            num_layers=c.num_layers,
            bidirectional=c.bidirectional,
            dropout=c.dropout,
            variational=c.variational_dropout,
        )
        self.head = None if c.num_labels else Head(keys[2], c)
        self.classifier = (
            Classifier(own[1], c.width, c.num_labels, dropout=c.dropout)
            if c.num_labels
            else None
        )
        seventh = jax.random.fold_in(key, 7)
        self.embedding = TextEmbedding(seventh, c.text_embedding, dim=c.width)

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Array:
        """Return the last hidden states (B, T, H); dropout only with a key.

        `token_types` (B, T) may be left out of the batch: all are then of type 0.
        """
        return self.hidden_with_carry(batch, None, key=key)[0]

    def hidden_with_carry(
        self, batch: Batch, carry: State | None, *, key: Array | None = None
    ) -> tuple[Array, State]:
        """Return the last hidden states (B, T, H), and the state after the last token.

        Args:
          batch: its `positions` are 0 only where a document begins, which forgets the
            one before; its `segments` are 0 at padding, which changes no state.
          carry: the state before the first token, (B, L, H); None: of zeros.
          key: for dropout; none without it.
        """
        x_BTD = self.embed(batch["tokens"], jnp.dtype(self.config.dtype))
        x_BTD = intermediates.record("embeddings", x_BTD)
        if self.token_types is not None:
            types_BT = batch.get("token_types", jnp.zeros_like(batch["tokens"]))
            x_BTD = x_BTD + self.token_types(types_BT, x_BTD.dtype)
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        h_BTH, carry = self.recurrent(
            self.recurrent.drop(x_BTD, keys[0]),
            positions_BT=batch["positions"],
            segments_BT=batch["segments"],
            state=carry,
            key=keys[1],
        )
        if self.head is None:  # the classifier applies dropout itself
            return h_BTH, carry
        return self.recurrent.drop(h_BTH, keys[2]), carry

    @staticmethod
    def init_carry(config: RecurrentConfig, *, num_rows: int) -> State:
        """Return the state before the first token, all zeros."""
        shape = (num_rows, config.num_layers, config.hidden_dim)
        return zero_state(config.cell, shape)

    def init_decode_state(
        self, *, num_rows: int, num_slots: int, source: Batch | None
    ) -> RecurrentDecodeState:
        """Return the state before the first token; there are no slots and no source."""
        assert source is None
        return RecurrentDecodeState(
            layers=self.init_carry(self.config, num_rows=num_rows)
        )

    def extend(
        self,
        tokens_RT: Array,
        state: RecurrentDecodeState,
        *,
        positions_RT: Array,
        segments_RT: Array,
    ) -> tuple[Array, RecurrentDecodeState]:
        """Return the hidden states (R, T, H) of new tokens, and the new state.

        Args:
          tokens_RT: int32 ids.
          state: the tokens before them.
          positions_RT: int32, 0 only where a text begins.
          segments_RT: int32; 0 is padding, which changes no state.
        """
        batch = {
            "tokens": tokens_RT,
            "positions": positions_RT,
            "segments": segments_RT,
        }
        h_RTH, layers = self.hidden_with_carry(batch, state.layers)
        return h_RTH, RecurrentDecodeState(layers=layers)

    def output_layer(self, x: Array) -> OutputLayer:
        """Return the output layer of hidden states (..., H).

        Raises:
          ConfigError: the model has no head over the vocabulary.
        """
        if self.head is None:
            obstacle = self.config.generation_obstacle
            raise ConfigError(f"config.model.{obstacle}: there are no logits")
        return self.head(x, self.embed)

    def summary(self, x_BTH: Array, segments_BT: Array) -> Array:
        """Return one vector for each row (B, H): `config.summary` of its states.

        A row holds one text, which begins at its left; padding is ignored.
        """
        real_BT1 = (segments_BT > 0)[..., None]
        if self.config.summary == "mean":
            count_B1 = jnp.maximum(real_BT1.sum(axis=1), 1)
            return jnp.where(real_BT1, x_BTH, 0.0).sum(axis=1) / count_B1
        if self.config.summary == "max":
            return jnp.where(real_BT1, x_BTH, x_BTH[:, :1]).max(axis=1)
        # Padding changes no state, so that the row's last one is the last token's.
        forward_BTH, *backward = jnp.split(x_BTH, 1 + self.config.bidirectional, -1)
        last = [forward_BTH[:, -1], *(part[:, 0] for part in backward)]
        return jnp.concatenate(last, axis=-1)

    @staticmethod
    def resolve(
        config: RecurrentConfig, *, platform: str, mesh: Mesh | None = None
    ) -> RecurrentConfig:
        """Return the config: no leaf but `dtype` depends on the platform."""
        return config

    @staticmethod
    def count_macs(
        config: RecurrentConfig, kernels: flops.KernelSizes, batch: Batch
    ) -> float:
        """Return the multiply-adds of a forward pass over one row."""
        length = batch["tokens"].shape[1]
        return length * kernels("recurrent.") + flops.head_macs(config, kernels, batch)
