"""The contract of a task: how a batch becomes a loss, metrics and predictions."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lmjax.config.distill import DistillConfig
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.metrics.classification import weighted_means
from lmjax.models import Model
from lmjax.nn.recurrent.layers import State
from lmjax.tasks.distill import HiddenStates, Teacher, hidden_loss
from lmjax.types import Array, Batch, Metrics, Params


class LossOutput(NamedTuple):
    """The loss of a batch, as sums: those of microbatches and devices add up."""

    loss_sum: Array
    weight_sum: Array
    metrics: Metrics
    carry: State | None = None  # after the batch, where its rows continue in the next

    def with_hidden_loss(
        self, states: HiddenStates | None, batch: Batch, config: DistillConfig
    ) -> "LossOutput":
        """Add what the hidden states of a teacher teach, if there is one."""
        if states is None or not (config.hidden or config.relations):
            return self
        loss_sum = hidden_loss(states, batch, config)
        metrics = self.metrics | {"hidden_loss": (loss_sum, self.weight_sum)}
        return self._replace(loss_sum=self.loss_sum + loss_sum, metrics=metrics)


class EvalOutput(NamedTuple):
    """The metrics of a held-out batch, and the predictions that others compare."""

    metrics: Metrics
    # Of each row, arrays (B, ...), as of `Task.predict`; {} where none are evaluated.
    predictions: Mapping[str, Array]
    carry: State | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """A training objective and how it is evaluated; pure functions of a batch.

    A recurrent network may continue rows from the batch before: `carry` is its state
    there. Gradients do not flow into it: backpropagation through time is truncated to
    the batch (Williams and Peng 1990).
    """

    config: Any
    teacher: Teacher | None = None  # of `config.distill`, while a step is traced
    # The metrics that are printed when training ends.
    headline_metrics: ClassVar[tuple[str, ...]] = ("loss",)
    # Whether the losses of held-out tokens add up to that of the text.
    scores_text: ClassVar[bool] = False

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Return the names of the metrics that `summarize` returns."""
        return ("loss",)

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return a batch of `jax.ShapeDtypeStruct`, as `lmjax.data` makes it.

        Args:
          batch_size: rows.
          length: `config.data.length`.
          target_length: `config.data.target_length`, 0 where there is no target.
        """
        raise NotImplementedError

    def loss(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        key: Array | None,
        carry: State | None = None,
    ) -> LossOutput:
        """Return the training loss; dropout only with a key.

        `metrics` has at least "loss", without label smoothing and the like.
        """
        raise NotImplementedError

    def evaluate(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        carry: State | None = None,
    ) -> EvalOutput:
        """Return the metrics of held-out data, and predictions; without dropout."""
        raise NotImplementedError

    def predict(self, model: Model, params: Params, batch: Batch) -> dict[str, Array]:
        """Return the predictions of each row, arrays (B, ...).

        The task's features turn them into JSON. A task that learns from a stream of
        text, or whose predictions are decoded token by token, has none.
        """
        raise NotImplementedError

    def check_measures(self, tokenizer: Tokenizer) -> None:
        """Check before training that `measure` can be computed.

        Raises:
          UserError: a file cannot be used.
        """

    def measure(
        self, model: Model, params: Params, *, tokenizer: Tokenizer
    ) -> dict[str, float]:
        """Return the metrics of the parameters themselves, whatever the data."""
        return {}

    def summarize(
        self, sums: Mapping[str, tuple[np.ndarray, np.ndarray]]
    ) -> dict[str, float]:
        """Return the metrics of a split from the sums and weights of its batches."""
        return weighted_means(sums)


TOKEN_METRICS = ("loss", "accuracy", "perplexity")


@dataclasses.dataclass(frozen=True)
class TokenTask(Task):
    """A task whose loss is in nats a token, so that it has a perplexity."""

    headline_metrics = ("loss", "perplexity", "accuracy")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Return the names of the metrics that all such tasks have."""
        return TOKEN_METRICS

    def summarize(
        self, sums: Mapping[str, tuple[np.ndarray, np.ndarray]]
    ) -> dict[str, float]:
        """Return the means, and exp(loss); infinite where a float cannot hold it."""
        means = weighted_means(sums)
        loss = means["loss"]
        return means | {"perplexity": math.exp(loss) if loss < 700 else math.inf}


@dataclasses.dataclass(frozen=True)
class LabelTask(Task):
    """A task whose logits are over labels, which a teacher may have too."""

    def _forward(
        self, model: Model, params: Params, batch: Batch, *, key: Array | None
    ) -> tuple[Array, Array]:
        """Return the last hidden states (B, T, D), and the logits (..., C)."""
        raise NotImplementedError

    def _ask_teacher(
        self, batch: Batch, hidden_BTD: Array
    ) -> tuple[Array | None, HiddenStates | None]:
        """Return the logits (..., C) of the teacher, and the states of both models."""
        if (teacher := self.teacher) is None:
            return None, None
        taught_BTD, logits = self._forward(
            teacher.model, teacher.params, batch, key=None
        )
        return teacher.in_order(logits), HiddenStates(hidden_BTD, taught_BTD)
