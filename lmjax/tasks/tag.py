"""Tagging: a label for each word. B batch, T length, D dim, C labels."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.config.task import TagConfig
from lmjax.models import Model
from lmjax.nn.recurrent.layers import State
from lmjax.tasks.losses import padding, token_loss
from lmjax.tasks.task import EvalOutput, LabelTask, LossOutput
from lmjax.types import Array, Batch, Params


@dataclasses.dataclass(frozen=True)
class Tag(LabelTask):
    """The loss of `labels` (B, T) where `weights` (B, T) are not 0.

    That is at one token of each word: the first, as in BERT (Devlin et al. 2019), or
    the last, for a model that reads from left to right. Accuracy and F1 are computed
    from the predictions by `TagFeatures`: of whole sentences, which may be several
    rows.
    """

    config: TagConfig

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return the arrays of sentences, labels and weights, each (B, T)."""
        row = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        names = ("tokens", "segments", "positions", "token_types", "labels")
        weights = jax.ShapeDtypeStruct((batch_size, length), jnp.float32)
        return {**dict.fromkeys(names, row), "weights": weights}

    def loss(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        key: Array | None,
        carry: State | None = None,
    ) -> LossOutput:
        """Return the loss; its metric is in nats a word. Also counts padding."""
        hidden_BTD, logits_BTC = self._forward(model, params, batch, key=key)
        taught, states = self._ask_teacher(batch, hidden_BTD)
        targets = {**batch, "targets": batch["labels"]}
        output = token_loss(logits_BTC, targets, self.config, teacher_logits=taught)
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
        """Return the plain loss, and the predicted tags."""
        logits_BTC = self.logits(model, params, batch)
        targets = {**batch, "targets": batch["labels"]}
        output = token_loss(logits_BTC, targets, TagConfig())
        return EvalOutput(output.metrics, _predictions(logits_BTC))

    def predict(self, model: Model, params: Params, batch: Batch) -> dict[str, Array]:
        """Return {"tags": (B, T)}; only those at the labelled tokens count."""
        return _predictions(self.logits(model, params, batch))

    def logits(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        key: Array | None = None,
    ) -> Array:
        """Return float32 logits (B, T, C); dropout only with a key."""
        return self._forward(model, params, batch, key=key)[1]

    def _forward(
        self, model: Model, params: Params, batch: Batch, *, key: Array | None
    ) -> tuple[Array, Array]:
        """Return the last hidden states (B, T, D), and the logits (B, T, C)."""
        keys = (None, None) if key is None else jax.random.split(key)
        hidden_BTD = model.hidden(params, batch, key=keys[0])
        return hidden_BTD, model.label_logits(params, hidden_BTD, key=keys[1])


def _predictions(logits_BTC: Array) -> dict[str, Array]:
    return {"tags": jnp.argmax(logits_BTC, axis=-1)}
