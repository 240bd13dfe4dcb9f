"""Attention weights and hidden states of all layers of a model.

L layers, B batch, N heads, T length, S source length, D dim.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.errors import UserError
from lmjax.models import Model
from lmjax.types import Array, Batch, Params


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionWeights:
    """The weights of every layer and head; those of a query add up to 1.

    Attributes:
      own: of the tokens to each other, (L, B, N, T, T); None if they have none.
      cross: of the tokens to the source, (L, B, N, T, S).
      source: of the source's tokens to each other, (L, B, N, S, S).
    """

    own: Array | None = None
    cross: Array | None = None
    source: Array | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Internals:
    """Reads what is within a model; compiled once for each padded length.

    The model is one of `explain.make_observable`.
    """

    model: Model

    def attention(self, params: Params, batch: Batch, length: int) -> AttentionWeights:
        """Return the weights of the first `length` tokens of a padded batch.

        Raises:
          UserError: the model has no attention.
        """
        found = self._attention(params, batch)
        if not found:
            kind = self.model.config.kind
            raise UserError(f"attention: config.model.kind = {kind!r} has none")
        cross = found.get("cross_attention")
        if cross is not None:
            cross = cross[..., :length, :]
        own = found.get("attention")
        if own is not None:
            own = own[..., :length, :length]
        return AttentionWeights(own, cross, found.get("source_attention"))

    def hidden_states(self, params: Params, batch: Batch, length: int) -> Array:
        """Return the hidden states before the first layer and after each.

        Those after the last are what `Model.hidden` returns.

        Raises:
          UserError: the layers of the model are no blocks.
        """
        states = self._states(params, batch)
        if states is None:
            kind = self.model.config.kind
            raise UserError(
                f"hidden_states: config.model.kind = {kind!r} has no blocks"
            )
        return states[:, :, :length]

    @functools.cached_property
    def _attention(self) -> Any:
        def attention(params: Params, batch: Batch) -> dict[str, Array]:
            _, captured = self.model.hidden_with_intermediates(params, batch)
            names = ("attention", "cross_attention", "source_attention")
            return {n: by_layer(captured[n]) for n in names if n in captured}

        return jax.jit(attention)

    @functools.cached_property
    def _states(self) -> Any:
        def states(params: Params, batch: Batch) -> Array | None:
            last_BTD, captured = self.model.hidden_with_intermediates(params, batch)
            if "embedded" not in captured:
                return None
            parts = captured["embedded"][None], captured["hidden"][:-1], last_BTD[None]
            return jnp.concatenate(parts)

        return jax.jit(states)


def by_layer(weights: Array) -> Array:
    """Return weights (L, B, N, T, S), also those of a recurrent decoder."""
    if weights.ndim == 5:
        return weights
    B, T, S = weights.shape[0], weights.shape[1], weights.shape[-1]
    return weights.reshape(1, B, 1, T, S)
