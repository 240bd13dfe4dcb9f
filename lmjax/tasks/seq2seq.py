"""Sequence to sequence: write a target, each token from a source and those before."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.models import Model
from lmjax.task_config import Seq2SeqConfig, WindowPairConfig
from lmjax.tasks.losses import padding, token_loss, token_metrics
from lmjax.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True)
class Seq2Seq:
    """The loss of `targets` (B, T) given `source` (B, S), however they were made."""

    config: WindowPairConfig | Seq2SeqConfig
    scores_text = False  # the source tells part of the text, or all

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return what a batch holds."""
        source = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        target = jax.ShapeDtypeStruct((batch_size, target_length), jnp.int32)
        names = ("source", "source_segments", "source_positions")
        target_names = ("tokens", "targets", "segments", "positions")
        weights = jax.ShapeDtypeStruct((batch_size, target_length), jnp.float32)
        return {
            **dict.fromkeys(names, source),
            **dict.fromkeys(target_names, target),
            "weights": weights,
        }

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
