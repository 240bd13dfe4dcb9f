"""Classification of texts. B batch, T length, D dim, C labels."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config.task import ClassifyConfig
from lmjax.metrics.classification import (
    compute_confusion,
    confusion_metrics,
    weighted_means,
)
from lmjax.models import Model
from lmjax.nn.recurrent.layers import State
from lmjax.tasks.losses import padding, token_loss
from lmjax.tasks.task import EvalOutput, LabelTask, LossOutput
from lmjax.types import Array, Batch, Params


@dataclasses.dataclass(frozen=True)
class Classify(LabelTask):
    """The loss of `labels` (B,) where `weights` (B,) are not 0.

    From an encoder's pooler, as in BERT (Devlin et al. 2019), a decoder's last token,
    as in GPT (Radford et al. 2018), or the states of a recurrent network.
    """

    config: ClassifyConfig
    metric_names = ("loss", "accuracy", "macro_f1", "matthews")
    headline_metrics = ("loss", "accuracy", "macro_f1")

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return the arrays of texts (B, T); labels and weights (B,)."""
        row = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        names = ("tokens", "segments", "positions", "token_types")
        return {
            **dict.fromkeys(names, row),
            "labels": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
            "weights": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
        }

    def loss(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        key: Array | None,
        carry: State | None = None,
    ) -> LossOutput:
        """Return the loss; its metric is in nats a row. Also counts padding."""
        hidden_BTD, logits_BC = self._forward(model, params, batch, key=key)
        taught, states = self._ask_teacher(batch, hidden_BTD)
        targets = _with_targets(batch)
        output = token_loss(logits_BC, targets, self.config, teacher_logits=taught)
        output = output.with_hidden_loss(states, batch, self.config.distill)
        return output._replace(metrics=output.metrics | {"padding": padding(batch)})

    def evaluate(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        carry: State | None = None,
    ) -> EvalOutput:
        """Return the plain loss, and the confusion matrix as the metric "confusion"."""
        logits_BC = self.logits(model, params, batch)
        plain = ClassifyConfig(labels=self.config.labels)
        _, weight, metrics, _ = token_loss(logits_BC, _with_targets(batch), plain)
        matrix_CC = compute_confusion(
            jnp.argmax(logits_BC, axis=-1),
            batch["labels"],
            batch["weights"],
            num_labels=logits_BC.shape[-1],
        )
        return EvalOutput(metrics | {"confusion": (matrix_CC, weight)}, {})

    def predict(self, model: Model, params: Params, batch: Batch) -> dict[str, Array]:
        """Return {"probabilities": (B, C)}."""
        logits_BC = self.logits(model, params, batch)
        return {"probabilities": jax.nn.softmax(logits_BC, axis=-1)}

    def summarize(
        self, sums: Mapping[str, tuple[np.ndarray, np.ndarray]]
    ) -> dict[str, float]:
        """Return the loss, and accuracy, macro F1 and Matthews of the confusion."""
        means = {k: v for k, v in sums.items() if k != "confusion"}
        return confusion_metrics(sums["confusion"][0]) | weighted_means(means)

    def logits(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        key: Array | None = None,
    ) -> Array:
        """Return float32 logits (B, C); dropout only with a key."""
        return self._forward(model, params, batch, key=key)[1]

    def _forward(
        self, model: Model, params: Params, batch: Batch, *, key: Array | None
    ) -> tuple[Array, Array]:
        """Return the last hidden states (B, T, D), and the logits (B, C)."""
        keys = (None, None) if key is None else jax.random.split(key)
        hidden_BTD = model.hidden(params, batch, key=keys[0])
        summary_BD = model.summary(params, hidden_BTD, batch["segments"])
        return hidden_BTD, model.label_logits(params, summary_BD, key=keys[1])


def _with_targets(batch: Batch) -> Batch:
    """Return the batch with its labels as the targets of `token_loss`."""
    return {**batch, "targets": batch["labels"]}
