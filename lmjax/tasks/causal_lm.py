"""Causal language modelling: predict each token from those before it."""

import dataclasses

from lmjax.config.task import CausalLMConfig
from lmjax.models import Model
from lmjax.nn.recurrent.layers import State
from lmjax.tasks.losses import text_shapes, token_loss, token_metrics
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
        return text_shapes(batch_size, length)

    def loss(
        self, model: Model, params: Params, batch: Batch, key: Array | None
    ) -> tuple[Array, Array, Metrics]:
        """Return the objective's sum, its weight, and {"loss": nats a token}."""
        return token_loss(model.apply(params, batch, key=key), batch, self.config)

    def evaluate(self, model: Model, params: Params, batch: Batch) -> Metrics:
        """Return the plain loss and how often the most likely token is right."""
        return token_metrics(model.apply(params, batch), batch)

    def loss_from(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        key: Array | None,
        carry: State,
    ) -> tuple[Array, Array, Metrics, State]:
        """Return what `loss` does of rows that go on from `carry`, and the next carry.

        No gradient reaches back through it: backpropagation through time is truncated
        to the batch (Williams and Peng 1990).
        """
        logits, carry = model.apply_with_carry(params, batch, carry, key=key)
        return *token_loss(logits, batch, self.config), carry

    def evaluate_from(
        self, model: Model, params: Params, batch: Batch, carry: State
    ) -> tuple[Metrics, State]:
        """Return what `evaluate` does of rows that go on, and the next carry."""
        logits, carry = model.apply_with_carry(params, batch, carry)
        return token_metrics(logits, batch), carry
