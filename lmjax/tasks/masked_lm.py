"""Masked language modelling: predict some tokens of a text from all others.

B batch, T length, K predicted positions, D dim, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.config.text_task import MaskedLMConfig, num_predictions
from lmjax.models import Model
from lmjax.models.heads import OutputLayer
from lmjax.nn.recurrent.layers import State
from lmjax.tasks.losses import cross_entropy, token_metrics
from lmjax.tasks.task import EvalOutput, LossOutput
from lmjax.tasks.vocabulary import VocabularyTask, vocabulary_metrics
from lmjax.types import Array, Batch, Params


@dataclasses.dataclass(frozen=True)
class MaskedLM(VocabularyTask):
    """The loss of `targets` (B, K) at the `predict_positions` (B, K) of a row.

    Only there are logits computed (Devlin et al. 2019). With `sentence_order` the model
    also predicts whether the two texts of a row are swapped, `pair_labels` (B,). That
    loss is weighted by the number of tokens which the row predicts, so that the
    objective is the sum of two means (ALBERT, Lan et al. 2020).
    """

    config: MaskedLMConfig

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Return the names of the metrics, with those of the order of sentences."""
        pair = ("pair_loss", "pair_accuracy") if self.config.sentence_order else ()
        return (*super().metric_names, *pair)

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return inputs (B, T); targets, their positions and weights (B, K).

        With `sentence_order` also token_types (B, T) and pair_labels (B,).
        """
        row = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        count = num_predictions(length, rate=self.config.mask_rate)
        predicted = jax.ShapeDtypeStruct((batch_size, count), jnp.int32)
        batch = {
            **dict.fromkeys(("tokens", "segments", "positions"), row),
            **dict.fromkeys(("targets", "predict_positions"), predicted),
            "weights": jax.ShapeDtypeStruct((batch_size, count), jnp.float32),
        }
        if self.config.sentence_order:
            labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
            batch |= {"token_types": row, "pair_labels": labels}
        return batch

    def loss(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        key: Array | None,
        carry: State | None = None,
    ) -> LossOutput:
        """Return the loss; with `sentence_order` also the metric "pair_loss"."""
        hidden_BTD = model.hidden(params, batch, key=key)
        layer = self._output_layer(model, params, hidden_BTD, batch)
        output = self._loss(layer, hidden_BTD, batch)
        if not self.config.sentence_order:
            return output
        nll_B, _ = cross_entropy(
            model.pair_logits(params, hidden_BTD), batch["pair_labels"]
        )
        pair_sum = (nll_B * batch["weights"].sum(axis=-1)).sum()
        real_B = _row_weights(batch)
        pair_loss = (nll_B * real_B).sum(), real_B.sum()
        return output._replace(
            loss_sum=output.loss_sum + pair_sum,
            metrics=output.metrics | {"pair_loss": pair_loss},
        )

    def evaluate(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        carry: State | None = None,
    ) -> EvalOutput:
        """Return the plain loss and the accuracy of the most likely token.

        With `sentence_order` also "pair_loss" and "pair_accuracy".
        """
        hidden_BTD = model.hidden(params, batch)
        layer = self._output_layer(model, params, hidden_BTD, batch)
        metrics = vocabulary_metrics(layer, batch, self.config)
        if self.config.sentence_order:
            pair = token_metrics(
                model.pair_logits(params, hidden_BTD),
                {"targets": batch["pair_labels"], "weights": _row_weights(batch)},
            )
            metrics |= {f"pair_{name}": value for name, value in pair.items()}
        return EvalOutput(metrics, {})

    def _output_layer(
        self, model: Model, params: Params, hidden_BTD: Array, batch: Batch
    ) -> OutputLayer:
        """Return what gives logits (B, K, V) at the predicted positions."""
        positions_BK = batch["predict_positions"]
        hidden_BKD = jnp.take_along_axis(hidden_BTD, positions_BK[..., None], axis=1)
        return model.output_layer(params, hidden_BKD)


def _row_weights(batch: Batch) -> Array:
    """Return 1 for each row, 0 for one of padding, float32 (B,)."""
    return (batch["segments"][:, 0] > 0).astype(jnp.float32)
