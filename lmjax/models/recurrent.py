"""Recurrent language models. B batch, T length, D dim, L layers, H hidden."""

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.model_config import RecurrentConfig
from lmjax.models.heads import Head
from lmjax.nn.linear import Embed
from lmjax.nn.recurrent import Recurrent, State
from lmjax.types import Array, Batch


class RecurrentLM(nnx.Module):
    """Mikolov et al. 2010 and, with LSTMs and dropout, Zaremba et al. 2014.

    Dropout is on all connections but the recurrent ones: embeddings, between layers,
    and what the head reads.
    """

    def __init__(self, key: Array, config: RecurrentConfig) -> None:
        c, keys = config, jax.random.split(key, 3)
        self.config = c
        # Zaremba et al. draw from +- 0.1, whose standard deviation this is.
        table = {"vocab": c.vocab_size, "embed": c.dim}
        self.embed = Embed(keys[0], table, std=0.1 * 3**-0.5)
        self.recurrent = Recurrent(
            keys[1],
            cell=c.cell,
            dim=c.dim,
            hidden_dim=c.hidden_dim,
            num_layers=c.num_layers,
            dropout=c.dropout,
            variational=c.variational_dropout,
        )
        self.head = Head(keys[2], c)

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Array:
        """Return the last hidden states (B, T, H); dropout only with a key."""
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
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        x_BTD = self.embed(tokens_BT, jnp.dtype(self.config.dtype))
        h_BTH, state = self.recurrent(
            self.recurrent.drop(x_BTD, keys[0]),
            positions_BT=positions_BT,
            segments_BT=segments_BT,
            state=cache,
            key=keys[1],
        )
        return self.recurrent.drop(h_BTH, keys[2]), state

    def logits(self, x: Array) -> Array:
        """Return float32 logits (..., V) of hidden states (..., H)."""
        return self.head(x, self.embed)
