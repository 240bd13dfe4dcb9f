"""Recurrent networks. B batch, T length, D dim, L layers, H hidden.

Of a bidirectional network the hidden states are those of both directions, (B, T, 2 H).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.model import RecurrentConfig
from lmjax.errors import ConfigError
from lmjax.models.heads import Classifier, Head
from lmjax.nn.linear import Embed
from lmjax.nn.recurrent.layers import Recurrent, State
from lmjax.types import Array, Batch


class RecurrentNetwork(nnx.Module):
    """A language model, or what gives labels to texts or to their tokens.

    Mikolov et al. 2010 and, with LSTMs and dropout, Zaremba et al. 2014; in both
    directions Graves and Schmidhuber 2005, as a tagger Huang et al. 2015.

    Dropout is on all connections but the recurrent ones: embeddings, between layers,
    and what the head or the classifier reads.
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

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Array:
        """Return the last hidden states (B, T, H); dropout only with a key.

        `token_types` (B, T) may be left out of the batch: all are then of type 0.
        """
        x_BTD = self.embed(batch["tokens"], jnp.dtype(self.config.dtype))
        if self.token_types is not None:
            types_BT = batch.get("token_types", jnp.zeros_like(batch["tokens"]))
            x_BTD = x_BTD + self.token_types(types_BT, x_BTD.dtype)
        return self._read(x_BTD, batch["positions"], batch["segments"], key=key)[0]

    def extend(
        self,
        tokens_BT: Array,
        positions_BT: Array,
        segments_BT: Array,
        *,
        key: Array | None = None,
        cache: State | None = None,
    ) -> tuple[Array, State]:
        """Return the hidden states of tokens that follow a state, and the new state.

        Args:
          tokens_BT: int32 ids.
          positions_BT: int32; a document begins at each 0, and remembers nothing.
          segments_BT: int32; 0 is padding, which is not remembered.
          key: for dropout; none without it.
          cache: what earlier tokens left, (B, L, H).
        """
        x_BTD = self.embed(tokens_BT, jnp.dtype(self.config.dtype))
        return self._read(x_BTD, positions_BT, segments_BT, key=key, cache=cache)

    def _read(
        self,
        x_BTD: Array,
        positions_BT: Array,
        segments_BT: Array,
        *,
        key: Array | None,
        cache: State | None = None,
    ) -> tuple[Array, State]:
        """Return what `extend` does, of embedded tokens."""
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        h_BTH, state = self.recurrent(
            self.recurrent.drop(x_BTD, keys[0]),
            positions_BT=positions_BT,
            segments_BT=segments_BT,
            state=cache,
            key=keys[1],
        )
        if self.head is None:  # the classifier drops what it reads itself
            return h_BTH, state
        return self.recurrent.drop(h_BTH, keys[2]), state

    def logits(self, x: Array) -> Array:
        """Return float32 logits (..., V) of hidden states (..., H).

        Raises:
          ConfigError: the model has no head that predicts tokens.
        """
        if self.head is None:
            raise ConfigError(f"config.model.{self.config.mute}: there are no logits")
        return self.head(x, self.embed)

    def summary(self, x_BTH: Array, segments_BT: Array) -> Array:
        """Return one vector for each row (B, H), as `config.summary` has it.

        A row is one text, from its beginning on; padding changes nothing.
        """
        real_BT1 = (segments_BT > 0)[..., None]
        if self.config.summary == "mean":
            count_B1 = jnp.maximum(real_BT1.sum(axis=1), 1)
            return jnp.where(real_BT1, x_BTH, 0.0).sum(axis=1) / count_B1
        if self.config.summary == "max":
            return jnp.where(real_BT1, x_BTH, x_BTH[:, :1]).max(axis=1)
        # Padding leaves a state as it is: the last step's is the last token's.
        forward_BTH, *backward = jnp.split(x_BTH, 1 + self.config.bidirectional, -1)
        last = [forward_BTH[:, -1], *(part[:, 0] for part in backward)]
        return jnp.concatenate(last, axis=-1)
