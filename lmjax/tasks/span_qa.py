"""Extractive question answering: where in a text an answer begins and ends.

B batch, T length, A tokens of the longest answer, 2: the start and the end.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.config.task import SpanQAConfig
from lmjax.models import Model
from lmjax.tasks.losses import cross_entropy, padding
from lmjax.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True)
class SpanQA:
    """The loss of `starts` and `ends` (B,) where `weights` (B,) are not 0.

    They are chosen among the tokens of the `context` (B, T) and the one of the row, at
    `no_answer` (B,), that stands for none.
    """

    config: SpanQAConfig
    scores_text = False

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return what a batch holds."""
        row = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        place = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
        names = ("tokens", "segments", "positions", "token_types", "context")
        return {
            **dict.fromkeys(names, row),
            **dict.fromkeys(("starts", "ends", "no_answer"), place),
            "weights": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
        }

    def loss(
        self, model: Model, params: Params, batch: Batch, key: Array | None
    ) -> tuple[Array, Array, Metrics]:
        """Return the objective's sum, its weight, {"loss": nats a place, "padding"}."""
        logits_B2T = self.logits(model, params, batch, key)
        nll_B2, objective_B2 = cross_entropy(
            logits_B2T,
            _places(batch),
            label_smoothing=self.config.label_smoothing,
            z_loss=self.config.z_loss,
            where=_choices(batch)[:, None],
        )
        weights_B = batch["weights"]
        weight = weights_B.sum()
        metrics = {
            "loss": ((nll_B2.mean(axis=1) * weights_B).sum(), weight),
            "padding": padding(batch),
        }
        return (objective_B2.mean(axis=1) * weights_B).sum(), weight, metrics

    def evaluate(self, model: Model, params: Params, batch: Batch) -> Metrics:
        """Return the plain loss; answers are judged by question, not by window."""
        logits_B2T = self.logits(model, params, batch)
        choices_B1T = _choices(batch)[:, None]
        nll_B2, _ = cross_entropy(logits_B2T, _places(batch), where=choices_B1T)
        weights_B = batch["weights"]
        return {"loss": ((nll_B2.mean(axis=1) * weights_B).sum(), weights_B.sum())}

    def predict(self, model: Model, params: Params, batch: Batch) -> dict[str, Array]:
        """Return (B,): "start" and "end" of the best span, "score", and "no_answer".

        The last two are sums of two logits, the one of what stands for no answer.
        """
        logits_B2T = self.logits(model, params, batch)
        start_B, end_B, score_B = best_span(
            jnp.where(batch["context"][:, None] > 0, logits_B2T, -jnp.inf),
            max_length=self.config.max_answer_tokens,
        )
        none_B11 = batch["no_answer"][:, None, None]
        none_B = jnp.take_along_axis(logits_B2T, none_B11, axis=2).sum(axis=(1, 2))
        return {"start": start_B, "end": end_B, "score": score_B, "no_answer": none_B}

    def logits(
        self, model: Model, params: Params, batch: Batch, key: Array | None = None
    ) -> Array:
        """Return float32 logits (B, 2, T); dropout only with a key."""
        keys = (None, None) if key is None else jax.random.split(key)
        hidden_BTD = model.hidden(params, batch, key=keys[0])
        logits_BT2 = model.label_logits(params, hidden_BTD, key=keys[1])
        return logits_BT2.swapaxes(1, 2)


def best_span(logits_B2T: Array, *, max_length: int) -> tuple[Array, Array, Array]:
    """Return start, end and score (B,) of the spans with the largest sum of logits.

    A span has 1 to `max_length` tokens; -inf is where none begins or ends.
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


def _places(batch: Batch) -> Array:
    """Return where the answers begin and end (B, 2)."""
    return jnp.stack([batch["starts"], batch["ends"]], axis=1)


def _choices(batch: Batch) -> Array:
    """Return what a place may be, bool (B, T): in the context, or what is no answer."""
    place_T = jnp.arange(batch["context"].shape[1])
    return (batch["context"] > 0) | (place_T == batch["no_answer"][:, None])
