"""Causal language modelling: predict each token from those before it."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.config import TaskConfig
from lmjax.models import Model
from lmjax.tasks.losses import cross_entropy
from lmjax.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """The loss of `targets` (B, T) where `weights` (B, T) are not 0."""

    config: TaskConfig

    def batch_shapes(self, batch_size: int, length: int) -> Batch:
        """Return what a batch holds."""
        integers = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        names = ("tokens", "targets", "segments", "positions")
        weights = jax.ShapeDtypeStruct((batch_size, length), jnp.float32)
        return {**dict.fromkeys(names, integers), "weights": weights}

    def loss(
        self, model: Model, params: Params, batch: Batch, key: Array | None
    ) -> tuple[Array, Array, Metrics]:
        """Return the objective's sum, its weight, and {"loss": nats a token}."""
        nll, objective = cross_entropy(
            model.apply(params, batch, key=key),
            batch["targets"],
            label_smoothing=self.config.label_smoothing,
            z_loss=self.config.z_loss,
        )
        weights = batch["weights"]
        weight = weights.sum()
        metrics = {"loss": ((nll * weights).sum(), weight)}
        return (objective * weights).sum(), weight, metrics

    def evaluate(self, model: Model, params: Params, batch: Batch) -> Metrics:
        """Return the plain loss and how often the most likely token is right."""
        logits = model.apply(params, batch)
        nll, _ = cross_entropy(logits, batch["targets"])
        right = jnp.argmax(logits, axis=-1) == batch["targets"]
        weights = batch["weights"]
        weight = weights.sum()
        return {
            "loss": ((nll * weights).sum(), weight),
            "accuracy": ((right * weights).sum(), weight),
        }
