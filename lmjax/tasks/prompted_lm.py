"""Prompted language modelling: go on from a prompt, of which nothing is learned."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.config import PromptedLMConfig
from lmjax.models import Model
from lmjax.tasks.losses import padding, token_loss, token_metrics
from lmjax.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True)
class PromptedLM:
    """The loss of `targets` (B, T) where `weights` (B, T) are not 0: after the prompt.

    (InstructGPT, Ouyang et al. 2022; FLAN, Wei et al. 2022.)
    """

    config: PromptedLMConfig
    scores_text = False  # the prompt's tokens are part of it, too

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return what a batch holds; the target is part of the length."""
        row = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        names = ("tokens", "targets", "segments", "positions")
        weights = jax.ShapeDtypeStruct((batch_size, length), jnp.float32)
        return {**dict.fromkeys(names, row), "weights": weights}

    def loss(
        self, model: Model, params: Params, batch: Batch, key: Array | None
    ) -> tuple[Array, Array, Metrics]:
        """Return the objective's sum, its weight, {"loss": nats a token, "padding"}."""
        logits_BTV = model.apply(params, batch, key=key)
        objective, weight, metrics = token_loss(logits_BTV, batch, self.config)
        return objective, weight, metrics | {"padding": padding(batch)}

    def evaluate(self, model: Model, params: Params, batch: Batch) -> Metrics:
        """Return the plain loss and how often the most likely token is right."""
        return token_metrics(model.apply(params, batch), batch)
