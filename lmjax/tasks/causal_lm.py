"""Causal language modelling: predict each token from those before it."""

import dataclasses

from lmjax.config.experiment import WHOLE_TEXT_METRICS
from lmjax.config.text_task import CausalLMConfig
from lmjax.models import Model
from lmjax.nn.recurrent.layers import State
from lmjax.tasks.losses import text_shapes
from lmjax.tasks.task import TOKEN_METRICS, EvalOutput, LossOutput
from lmjax.tasks.vocabulary import VocabularyTask, vocabulary_metrics
from lmjax.types import Array, Batch, Params


@dataclasses.dataclass(frozen=True)
class CausalLM(VocabularyTask):
    """The loss of `targets` (B, T) where `weights` (B, T) are not 0."""

    config: CausalLMConfig
    metric_names = (*TOKEN_METRICS, *WHOLE_TEXT_METRICS)
    headline_metrics = ("loss", "perplexity", "bits_per_byte")
    scores_text = True

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return tokens, targets, segments, positions and weights, each (B, T)."""
        return text_shapes(batch_size, length)

    def loss(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        key: Array | None,
        carry: State | None = None,
    ) -> LossOutput:
        """Return the loss of the next tokens; its metric "loss" is in nats a token."""
        hidden_BTD, carry = _hidden(model, params, batch, key=key, carry=carry)
        layer = model.output_layer(params, hidden_BTD)
        return self._loss(layer, hidden_BTD, batch)._replace(carry=carry)

    def evaluate(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        carry: State | None = None,
    ) -> EvalOutput:
        """Return the plain loss and the accuracy of the most likely token."""
        hidden_BTD, carry = _hidden(model, params, batch, key=None, carry=carry)
        layer = model.output_layer(params, hidden_BTD)
        return EvalOutput(vocabulary_metrics(layer, batch, self.config), {}, carry)


def _hidden(
    model: Model,
    params: Params,
    batch: Batch,
    *,
    key: Array | None,
    carry: State | None,
) -> tuple[Array, State | None]:
    """Return hidden states (B, T, D), and the state after them if rows continue."""
    if carry is None:
        return model.hidden(params, batch, key=key), None
    return model.hidden_with_carry(params, batch, carry, key=key)
