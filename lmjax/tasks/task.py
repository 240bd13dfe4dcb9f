"""What a task is to the rest of lmjax, and the table of tasks."""

from typing import Protocol

from lmjax.config import TaskConfig
from lmjax.models import Model
from lmjax.tasks.causal_lm import CausalLM
from lmjax.types import Array, Batch, Metrics, Params


class Task(Protocol):
    """A loss to train on and metrics to evaluate, both as (sum, weight)."""

    def batch_shapes(self, batch_size: int, length: int) -> Batch:
        """Return a batch of `jax.ShapeDtypeStruct`."""

    def loss(
        self, model: Model, params: Params, batch: Batch, key: Array | None
    ) -> tuple[Array, Array, Metrics]:
        """Return the sum of the objective, its weight, and metrics; with dropout."""

    def evaluate(self, model: Model, params: Params, batch: Batch) -> Metrics:
        """Return the metrics of held-out data; without dropout."""


TASKS = {"causal_lm": CausalLM}


def build(config: TaskConfig) -> Task:
    """Return the task of a config."""
    return TASKS[config.kind](config)
