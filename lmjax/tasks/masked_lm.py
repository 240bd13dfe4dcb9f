"""Masked language modelling: predict some tokens of a text from all others.

B batch, T length, K places that are predicted, D dim.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.config.task import MaskedLMConfig, num_predictions
from lmjax.models import Model
from lmjax.tasks.losses import cross_entropy, token_loss, token_metrics
from lmjax.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """The loss of `targets` (B, K) at the `predict_positions` (B, K) of a row.

    Only there are logits computed (Devlin et al. 2019). With `sentence_order` each row
    also tells which of its texts came first, `pair_labels` (B,); its loss counts for
    as many tokens as the row predicts, so that the objective is the sum of two means
    (ALBERT, Lan et al. 2020).
    """

    config: MaskedLMConfig
    scores_text = False  # a token is predicted from those after it, too

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return what a batch holds."""
        row = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        count = num_predictions(length, rate=self.config.mask_rate)
        places = jax.ShapeDtypeStruct((batch_size, count), jnp.int32)
        batch = {
            **dict.fromkeys(("tokens", "segments", "positions"), row),
            **dict.fromkeys(("targets", "predict_positions"), places),
            "weights": jax.ShapeDtypeStruct((batch_size, count), jnp.float32),
        }
        if self.config.sentence_order:
            labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
            batch |= {"token_types": row, "pair_labels": labels}
        return batch

    def loss(
        self, model: Model, params: Params, batch: Batch, key: Array | None
    ) -> tuple[Array, Array, Metrics]:
        """Return the objective's sum, its weight, and {"loss": nats a token}.

        With `sentence_order` also "pair_loss", nats a row.
        """
        hidden_BTD = model.hidden(params, batch, key=key)
        logits_BKV = _logits_at_places(model, params, hidden_BTD, batch)
        objective, weight, metrics = token_loss(logits_BKV, batch, self.config)
        if not self.config.sentence_order:
            return objective, weight, metrics
        nll_B, _ = cross_entropy(
            model.pair_logits(params, hidden_BTD), batch["pair_labels"]
        )
        objective += (nll_B * batch["weights"].sum(axis=-1)).sum()
        real_B = _is_real(batch)
        pair = {"pair_loss": ((nll_B * real_B).sum(), real_B.sum())}
        return objective, weight, metrics | pair

    def evaluate(self, model: Model, params: Params, batch: Batch) -> Metrics:
        """Return the plain loss and how often the most likely token is right.

        With `sentence_order` also "pair_loss" and "pair_accuracy".
        """
        hidden_BTD = model.hidden(params, batch)
        logits_BKV = _logits_at_places(model, params, hidden_BTD, batch)
        metrics = token_metrics(logits_BKV, batch)
        if not self.config.sentence_order:
            return metrics
        pair = token_metrics(
            model.pair_logits(params, hidden_BTD),
            {"targets": batch["pair_labels"], "weights": _is_real(batch)},
        )
        return metrics | {f"pair_{name}": value for name, value in pair.items()}


def _logits_at_places(
    model: Model, params: Params, hidden_BTD: Array, batch: Batch
) -> Array:
    """Return float32 logits (B, K, V) where the batch says."""
    places_BK = batch["predict_positions"]
    hidden_BKD = jnp.take_along_axis(hidden_BTD, places_BK[..., None], axis=1)
    return model.token_logits(params, hidden_BKD)


def _is_real(batch: Batch) -> Array:
    """Return 1 for each row, 0 for one of padding, float32 (B,)."""
    return (batch["segments"][:, 0] > 0).astype(jnp.float32)
