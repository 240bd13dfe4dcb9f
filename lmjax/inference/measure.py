"""What a model does on each document or example of a file. N units, C classes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lmjax import tasks
from lmjax.errors import UserError
from lmjax.inference.language_model import LanguageModel
from lmjax.metrics.bootstrap import (
    NUM_SAMPLES,
    NUM_SLOW_SAMPLES,
    Metrics,
    Resampled,
    resample,
)

Sums = Mapping[str, tuple[np.ndarray, np.ndarray]]
# The field of a prediction that is compared with that of another model.
_CHOSEN = ("label", "tags", "answer", "text")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """The metrics of a model, and what it chose in each of N units."""

    metrics: Resampled
    losses: np.ndarray  # float64 (N,), nats a target of each unit
    choices: Sequence[Sequence[Any]]  # the ids, or the parts of the prediction
    predictions: Sequence[Any]  # as JSON; None of texts

    def agreement(self, other: "Measured") -> float:
        """Return the share of choices that are those of another model."""
        pairs = [*zip(self.choices, other.choices, strict=True)]
        same = sum(
            x == y for a, b in pairs for x, y in zip(a, b, strict=len(a) == len(b))
        )
        return same / max(sum(max(len(a), len(b)) for a, b in pairs), 1)


def measure_documents(lm: LanguageModel, documents: Sequence[str]) -> Measured:
    """Measure a language model on documents.

    Raises:
      UserError: it scores no texts, or there is no token to score.
    """
    rows, scores = lm.score_tokens(documents)
    counts = np.array([len(score.log_probs) for score in scores], np.float64)
    if not counts.any():
        raise UserError("no document has a token to score")
    nats = np.array([-score.log_prob for score in scores])
    correct = np.array([score.is_greedy.sum() for score in scores], np.float64)
    # The first token is not scored without a BOS, and its bytes do not count either.
    sizes = np.array(
        [
            len(text.encode())
            - len(lm.tokenizer.decode(ids[: len(ids) - len(score.log_probs)]).encode())
            for text, ids, score in zip(documents, rows, scores, strict=True)
        ],
        np.float64,
    )
    sums = {"loss": (nats, counts), "accuracy": (correct, counts)}

    def compute(chosen: np.ndarray) -> Metrics:
        bits = nats[chosen].sum() / np.log(2) / max(sizes[chosen].sum(), 1.0)
        means = tasks.build(lm.config.task).summarize(_sum(sums, chosen))
        return means | {"bits_per_byte": float(bits)}

    return Measured(
        metrics=resample(compute, num_units=len(rows), num_samples=NUM_SAMPLES),
        losses=nats / np.maximum(counts, 1.0),
        choices=[score.best.tolist() for score in scores],
        predictions=[None] * len(rows),
    )


def measure_examples(lm: LanguageModel, examples: Sequence[Any]) -> Measured:
    """Measure a fine-tuned model on labelled examples, as they were parsed from fields.

    Args:
      lm: the model.
      examples: the fields of each.

    Raises:
      UserError: an example has no label, or another that the model does not know.
    """
    predictor = lm.predictor
    parsed = [predictor.features.parse(example) for example in examples]
    sums = _example_sums(lm, parsed)
    unlabelled = [
        predictor.features.parse(example, labelled=False) for example in examples
    ]
    predictions = predictor.predict(
        lm.params, predictor.encode_examples(unlabelled), mesh=lm.mesh
    )

    def from_sums(chosen: np.ndarray) -> Metrics:
        return tasks.build(lm.config.task).summarize(_sum(sums, chosen))

    def from_predictions(chosen: np.ndarray) -> Metrics:
        return predictor.features.compute_metrics(
            [predictions[i] for i in chosen], [parsed[i] for i in chosen]
        )

    draw: Callable[..., Resampled]
    draw = lambda *args: resample(args[0], num_units=len(parsed), num_samples=args[1])
    metrics = draw(from_sums, NUM_SAMPLES)
    if predictor.features.metric_names:
        compared = draw(from_predictions, NUM_SLOW_SAMPLES)
        metrics = Resampled(
            {**metrics.values, **compared.values},
            {**metrics.samples, **compared.samples},
        )
    total, weight = sums["loss"]
    return Measured(
        metrics=metrics,
        losses=total / np.maximum(weight, 1.0),
        choices=[_choices(prediction) for prediction in predictions],
        predictions=predictions,
    )


def _example_sums(lm: LanguageModel, parsed: Sequence[Any]) -> Sums:
    """Return the sums and weights of the task's metrics, of each example (N, ...)."""
    encoded = lm.predictor.encode_examples(parsed)
    rows = [
        (i, row)
        for i, rows in enumerate(encoded.rows)
        for row in rows
        if row.used_for_training
    ]
    found = lm.predictor.evaluate(lm.params, [row for _, row in rows], mesh=lm.mesh)
    if not found:
        raise UserError("no example has a target")
    zeros = jax.tree.map(lambda x: np.zeros((len(parsed), *np.shape(x))), found[0])
    for (i, _), metrics in zip(rows, found, strict=True):
        for name, (total, weight) in metrics.items():
            zeros[name][0][i] += total
            zeros[name][1][i] += weight
    return zeros


def _sum(sums: Sums, chosen: np.ndarray) -> Sums:
    """Return the sums over some units, each as often as it was chosen."""
    times_N = np.bincount(chosen, minlength=len(sums["loss"][0])).astype(np.float64)
    add = lambda x: np.tensordot(times_N, x, 1)
    return {name: (add(total), add(weight)) for name, (total, weight) in sums.items()}


def _choices(prediction: Mapping[str, Any]) -> Sequence[Any]:
    value = chosen(prediction)
    return value if isinstance(value, list) else [value]


def chosen(prediction: Mapping[str, Any]) -> Any:
    """Return what a prediction says: the label, the tags, the answer or the text."""
    return next(prediction[name] for name in _CHOSEN if name in prediction)
