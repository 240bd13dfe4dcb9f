"""Extractive question answering: find the span of a text that answers a question.

B batch, T length, D dim, A tokens of the longest answer, 2: its start and its end.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.config.task import SpanQAConfig
from lmjax.models import Model
from lmjax.nn.recurrent.layers import State
from lmjax.tasks.losses import cross_entropy, padding
from lmjax.tasks.task import EvalOutput, LossOutput, Task
from lmjax.types import Array, Batch, Params


@dataclasses.dataclass(frozen=True)
class SpanQA(Task):
    """The loss of `starts` and `ends` (B,) where `weights` (B,) are not 0.

    Both are chosen among the tokens of the `context` (B, T) and the one that stands for
    no answer, at `no_answer` (B,). Exact match and F1 are computed from the predictions
    by `SpanQAFeatures`: of whole questions, whose context may be several rows.
    """

    config: SpanQAConfig

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return the arrays of texts (B, T); starts, ends, no_answer, weights (B,)."""
        row = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        position = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
        names = ("tokens", "segments", "positions", "token_types", "context")
        return {
            **dict.fromkeys(names, row),
            **dict.fromkeys(("starts", "ends", "no_answer"), position),
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
        """Return the mean loss of start and end; its metric is in nats a row.

        Also counts padding.
        """
        logits_B2T = self.logits(model, params, batch, key=key)
        nll_B2, objective_B2 = cross_entropy(
            logits_B2T,
            _targets(batch),
            label_smoothing=self.config.label_smoothing,
            z_loss=self.config.z_loss,
            where=_answer_mask(batch)[:, None],
        )
        weights_B = batch["weights"]
        weight = weights_B.sum()
        metrics = {
            "loss": ((nll_B2.mean(axis=1) * weights_B).sum(), weight),
            "padding": padding(batch),
        }
        loss_sum = (objective_B2.mean(axis=1) * weights_B).sum()
        return LossOutput(loss_sum, weight, metrics)

    def evaluate(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        carry: State | None = None,
    ) -> EvalOutput:
        """Return the plain loss, and the best span of each row."""
        logits_B2T = self.logits(model, params, batch)
        allowed_B1T = _answer_mask(batch)[:, None]
        nll_B2, _ = cross_entropy(logits_B2T, _targets(batch), where=allowed_B1T)
        weights_B = batch["weights"]
        loss = (nll_B2.mean(axis=1) * weights_B).sum(), weights_B.sum()
        return EvalOutput({"loss": loss}, self._predictions(logits_B2T, batch))

    def predict(self, model: Model, params: Params, batch: Batch) -> dict[str, Array]:
        """Return (B,): "start" and "end" of the best span, "score", and "no_answer".

        The last two are sums of two logits: those of the span, and those of the token
        that stands for no answer.
        """
        return self._predictions(self.logits(model, params, batch), batch)

    def logits(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        key: Array | None = None,
    ) -> Array:
        """Return float32 logits (B, 2, T); dropout only with a key."""
        keys = (None, None) if key is None else jax.random.split(key)
        hidden_BTD = model.hidden(params, batch, key=keys[0])
        logits_BT2 = model.label_logits(params, hidden_BTD, key=keys[1])
        return logits_BT2.swapaxes(1, 2)

    def _predictions(self, logits_B2T: Array, batch: Batch) -> dict[str, Array]:
        start_B, end_B, score_B = best_span(
            jnp.where(batch["context"][:, None] > 0, logits_B2T, -jnp.inf),
            max_length=self.config.max_answer_tokens,
        )
        index_B11 = batch["no_answer"][:, None, None]
        none_B = jnp.take_along_axis(logits_B2T, index_B11, axis=2).sum(axis=(1, 2))
        return {"start": start_B, "end": end_B, "score": score_B, "no_answer": none_B}


def best_span(logits_B2T: Array, *, max_length: int) -> tuple[Array, Array, Array]:
    """Return start, end and score (B,) of the spans with the largest sum of logits.

    A span has 1 to `max_length` tokens; none begins or ends at a logit of -inf.
    """
    length = logits_B2T.shape[-1]
    num_ends = min(max_length, length)
    ends_TA = jnp.arange(length)[:, None] + jnp.arange(num_ends)
    beyond = [(0, 0), (0, num_ends)]
    end_BT = jnp.pad(logits_B2T[:, 1], beyond, constant_values=-jnp.inf)
    scores_BTA = logits_B2T[:, 0, :, None] + end_BT[:, ends_TA]
    scores_BN = scores_BTA.reshape(len(scores_BTA), -1)
    best_B = scores_BN.argmax(axis=1)
    start_B = best_B // num_ends
    return start_B, start_B + best_B % num_ends, scores_BN.max(axis=1)


def _targets(batch: Batch) -> Array:
    """Return the positions of the first and last token of each answer (B, 2)."""
    return jnp.stack([batch["starts"], batch["ends"]], axis=1)


def _answer_mask(batch: Batch) -> Array:
    """Return bool (B, T): the tokens of the context, and the one for no answer."""
    index_T = jnp.arange(batch["context"].shape[1])
    return (batch["context"] > 0) | (index_T == batch["no_answer"][:, None])
