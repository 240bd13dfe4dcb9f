"""What a task is to the rest of lmjax, and the table of tasks."""

from collections.abc import Callable
from typing import Any, Protocol

from lmjax.config.task import TaskConfig
from lmjax.models import Model
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.classify import Classify
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.tasks.span_qa import SpanQA
from lmjax.tasks.tag import Tag
from lmjax.types import Array, Batch, Metrics, Params


class Task(Protocol):
    """A loss to train on and metrics to evaluate, both as (sum, weight)."""

    @property
    def scores_text(self) -> bool:
        """Return whether the losses of held-out tokens add up to that of the text."""

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return a batch of `jax.ShapeDtypeStruct`, as the data room makes it.

        Args:
          batch_size: rows.
          length: `config.data.length`.
          target_length: `config.data.target_length`, 0 where there is no target.
        """

    def loss(
        self, model: Model, params: Params, batch: Batch, key: Array | None
    ) -> tuple[Array, Array, Metrics]:
        """Return the sum of the objective, its weight, and metrics; with dropout."""

    def evaluate(self, model: Model, params: Params, batch: Batch) -> Metrics:
        """Return the metrics of held-out data; without dropout."""


TASKS: dict[str, Callable[[Any], Task]] = {
    "causal_lm": CausalLM,
    "masked_lm": MaskedLM,
    "span_corruption": Seq2Seq,
    "prefix_lm": Seq2Seq,
    "infilling": Seq2Seq,
    "seq2seq": Seq2Seq,
    "prompted_lm": Seq2Seq,
    "classify": Classify,
    "tag": Tag,
    "span_qa": SpanQA,
}


def build(config: TaskConfig) -> Task:
    """Return the task of a config."""
    return TASKS[config.kind](config)
