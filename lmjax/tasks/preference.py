"""Preferences: a completion that people chose, and one that they rejected.

B pairs or single completions, T length, D dim.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config.preference import PreferenceConfig
from lmjax.errors import UserError
from lmjax.metrics.classification import weighted_means
from lmjax.models import Model
from lmjax.nn.recurrent.layers import State
from lmjax.tasks.losses import padding, text_shapes
from lmjax.tasks.preference_losses import (
    Completions,
    kto_losses,
    pair_losses,
    rewards,
)
from lmjax.tasks.task import EvalOutput, LossOutput, Task
from lmjax.tasks.vocabulary import target_log_probs
from lmjax.types import Array, Batch, Metrics, Params, leaf_name

_REWARDS = ("chosen_reward", "rejected_reward")
_PAIR_METRICS = ("accuracy", "margin", *_REWARDS)
_REJECTED = "rejected_"  # before the names of the arrays of the second completions


@dataclasses.dataclass(frozen=True)
class Preference(Task):
    """The loss of pairs of completions, or of single ones (KTO).

    A pair is a row of `tokens` and one of `rejected_tokens`; each completion counts
    where its weights are not 0. With KTO the second is the completion of another
    prompt, by which the distance from the reference is estimated. A pair has the weight
    1.

    `teacher` is the reference; without one it is the model without its adapters.
    """

    config: PreferenceConfig
    headline_metrics = ("loss", "accuracy", "margin")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Return the names of the metrics."""
        own = ("divergence",) if self.config.loss == "kto" else ()
        log_probs = ("chosen_log_prob", "rejected_log_prob")
        return ("loss", *_PAIR_METRICS, *log_probs, *own)

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return the arrays of both completions, each (B, T); for KTO their labels."""
        shapes = text_shapes(batch_size, length)
        both = shapes | {_REJECTED + name: shape for name, shape in shapes.items()}
        if self.config.loss == "kto":
            labels = jax.ShapeDtypeStruct((batch_size,), jnp.float32)
            both["is_desirable"] = labels
        return both

    def loss(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        key: Array | None,
        carry: State | None = None,
    ) -> LossOutput:
        """Return the loss; its weight is the number of pairs. Also counts padding."""
        chosen, rejected = self._completions(model, params, batch, key=key)
        weights = (batch["weights"].sum(axis=-1) > 0).astype(jnp.float32)
        measure = _measure_kto if self.config.loss == "kto" else _measure_pairs
        losses, metrics = measure(chosen, rejected, batch, weights, self.config)
        loss_sum, weight_sum = (losses * weights).sum(), weights.sum()
        metrics |= {"loss": (loss_sum, weight_sum), "padding": padding(batch)}
        return LossOutput(loss_sum, weight_sum, jax.lax.stop_gradient(metrics))

    def evaluate(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        carry: State | None = None,
    ) -> EvalOutput:
        """Return the same of held-out pairs."""
        metrics = dict(self.loss(model, params, batch, key=None).metrics)
        del metrics["padding"]
        return EvalOutput(metrics, {})

    def predict(self, model: Model, params: Params, batch: Batch) -> dict[str, Array]:
        """Return {"log_probs": (B, 2)} of the completions, in nats."""
        log_probs, _ = _both(model, params, batch, self.config, key=None)
        return {"log_probs": log_probs}

    def summarize(
        self, sums: Mapping[str, tuple[np.ndarray, np.ndarray]]
    ) -> dict[str, float]:
        """Return the means; the margin of single completions is that of the means."""
        means = weighted_means(sums)
        chosen, rejected = (means[name] for name in _REWARDS)
        return means | {"margin": chosen - rejected}

    def _completions(
        self, model: Model, params: Params, batch: Batch, *, key: Array | None
    ) -> tuple[Completions, Completions]:
        """Return the log-probabilities of both completions."""
        log_probs_B2, counts_B2 = _both(model, params, batch, self.config, key=key)
        reference_B2 = jnp.zeros_like(log_probs_B2)
        if self.config.needs_reference:
            which, frozen = self._reference(model, params)
            reference_B2, _ = _both(which, frozen, batch, self.config, key=None)
            reference_B2 = jax.lax.stop_gradient(reference_B2)
        chosen, rejected = (
            Completions(log_probs_B2[:, i], reference_B2[:, i], counts_B2[:, i])
            for i in range(2)
        )
        return chosen, rejected

    def _reference(self, model: Model, params: Params) -> tuple[Model, Params]:
        """Return the reference model.

        Raises:
          UserError: it is not at hand.
        """
        if self.teacher is not None:
            return self.teacher.model, self.teacher.params
        if not model.config.adapter_rank:
            raise UserError(
                f"config.task.loss = {self.config.loss!r}: needs the reference model, "
                "which only training and `lmjax eval` read"
            )
        return model, _without_adapters(params)


def _without_adapters(params: Params) -> Params:
    """Return parameters whose adapters add nothing."""

    def cut(path: Any, leaf: Array) -> Array:
        return jnp.zeros_like(leaf) if leaf_name(path).endswith("lora_b") else leaf

    return jax.tree_util.tree_map_with_path(cut, params)


def _both(
    model: Model,
    params: Params,
    batch: Batch,
    config: PreferenceConfig,
    *,
    key: Array | None,
) -> tuple[Array, Array]:
    """Return the log-probabilities of both completions and their tokens, (B, 2)."""
    names = [name for name in batch if f"{_REJECTED}{name}" in batch]
    # A pair's rows stay together, on the device that holds them.
    rows = {
        name: jnp.stack([batch[name], batch[_REJECTED + name]], 1) for name in names
    }
    joined = {name: x.reshape(-1, x.shape[-1]) for name, x in rows.items()}
    layer = model.output_layer(params, model.hidden(params, joined, key=key))
    weights = joined["weights"]
    log_probs = (target_log_probs(layer, joined, config) * weights).sum(axis=-1)
    counts = jnp.maximum(weights.sum(axis=-1), 1.0)
    return log_probs.reshape(-1, 2), counts.reshape(-1, 2)


def _measure_pairs(
    chosen: Completions,
    rejected: Completions,
    batch: Batch,
    weights: Array,
    config: PreferenceConfig,
) -> tuple[Array, Metrics]:
    """Return the loss (B,), and the metrics of pairs."""
    won, lost = rewards(chosen, config), rewards(rejected, config)
    values = {
        "accuracy": won > lost,
        "margin": won - lost,
        "chosen_reward": won,
        "rejected_reward": lost,
        "chosen_log_prob": chosen.log_probs,
        "rejected_log_prob": rejected.log_probs,
    }
    count = weights.sum()
    metrics: Metrics = {n: ((x * weights).sum(), count) for n, x in values.items()}
    return pair_losses(chosen, rejected, config), metrics


def _measure_kto(
    one: Completions,
    other: Completions,
    batch: Batch,
    weights: Array,
    config: PreferenceConfig,
) -> tuple[Array, Metrics]:
    """Return the loss (B,), and the metrics of those that people like or not."""
    count = weights.sum()
    distance = (jax.lax.stop_gradient(other.log_ratios) * weights).sum()
    divergence = jnp.maximum(distance / jnp.maximum(count, 1.0), 0.0)
    is_desirable = batch["is_desirable"]
    reward = rewards(one, config)
    liked = weights * is_desirable
    disliked = weights - liked
    right = (reward > config.beta * divergence) == (is_desirable > 0)
    metrics: Metrics = {
        "accuracy": ((right * weights).sum(), count),
        "margin": _margin(reward, liked, disliked),  # of all batches: see `summarize`
        "chosen_reward": ((reward * liked).sum(), liked.sum()),
        "rejected_reward": ((reward * disliked).sum(), disliked.sum()),
        "chosen_log_prob": ((one.log_probs * liked).sum(), liked.sum()),
        "rejected_log_prob": ((one.log_probs * disliked).sum(), disliked.sum()),
        "divergence": (divergence * count, count),
    }
    return kto_losses(one, is_desirable, divergence, config), metrics


def _margin(reward: Array, liked: Array, disliked: Array) -> tuple[Array, Array]:
    """Return the difference of the mean rewards, of weight 0 where one is missing."""
    weights = liked.sum(), disliked.sum()
    means = [
        (reward * which).sum() / jnp.maximum(weight, 1.0)
        for which, weight in zip((liked, disliked), weights, strict=True)
    ]
    has_both = ((weights[0] > 0) & (weights[1] > 0)).astype(jnp.float32)
    return (means[0] - means[1]) * has_both, has_both
