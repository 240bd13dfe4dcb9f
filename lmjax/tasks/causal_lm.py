"""Causal language modelling: predict each token from those before it."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.config import CausalLMConfig
from lmjax.models import Model
from lmjax.tasks.losses import token_loss, token_metrics
from lmjax.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """The loss of `targets` (B, T) where `weights` (B, T) are not 0."""

    config: CausalLMConfig
    scores_text = True

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return what a batch holds."""
        integers = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        names = ("tokens", "targets", "segments", "positions")
        weights = jax.ShapeDtypeStruct((batch_size, length), jnp.float32)
        return {**dict.fromkeys(names, integers), "weights": weights}

    def loss(
        self, model: Model, params: Params, batch: Batch, key: Array | None
    ) -> tuple[Array, Array, Metrics]:
        """Return the objective's sum, its weight, and {"loss": nats a token}."""
        return token_loss(model.apply(params, batch, key=key), batch, self.config)

    def evaluate(self, model: Model, params: Params, batch: Batch) -> Metrics:
        """Return the plain loss and how often the most likely token is right."""
        return token_metrics(model.apply(params, batch), batch)
