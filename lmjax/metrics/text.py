"""Metrics of generated texts, computed by the libraries of the field.

BLEU and chrF are sacrebleu's, of the corpus of predictions, from 0 to 100; the others
are means over the predictions, from 0 to 1. ROUGE is rouge-score's F-measure, with
stemming.
"""

import dataclasses
import functools
import importlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lmjax.config.decoding import Metric
from lmjax.errors import ConfigError

# A sentence, with the quotes and brackets after its end.
_SENTENCE = re.compile(r".+?[.!?…][\"'”’»)\]]*(?=\s)", re.DOTALL)

_log = logging.getLogger(__name__)
_logged_signatures: set[str] = set()


def metric_names(metrics: Iterable[Metric]) -> tuple[str, ...]:
    """Return the names of the values that `compute_metrics` returns.

    Raises:
      ConfigError: a package that computes one of them is not installed.
    """
    for metric in metrics:
        _import_library(metric)
    return tuple(name for metric in metrics for name in METRICS[metric].names)


def need_predictions(metrics: Iterable[Metric]) -> bool:
    """Return True if any of some metrics reads the predictions."""
    return not all(METRICS[metric].of_sources for metric in metrics)


def compute_metrics(
    metrics: Iterable[Metric],
    *,
    predictions: Sequence[str],
    targets: Sequence[str],
    sources: Sequence[str],
) -> dict[str, float]:
    """Compare the predictions for all examples of a split with their targets.

    Args:
      metrics: keys of `METRICS`.
      predictions: generated texts; may be empty unless the metrics `need_predictions`.
      targets: the reference texts.
      sources: the inputs of both.

    Raises:
      ConfigError: a package that computes one of them is not installed.
    """
    values: dict[str, float] = {}
    for name in metrics:
        metric, texts = METRICS[name], predictions
        if metric.of_sources:
            texts = [first_sentence(source) for source in sources]
        computed = metric.compute(_import_library(name), texts, targets)
        values |= dict(zip(metric.names, computed, strict=True))
    return values


def first_sentence(text: str) -> str:
    """Return the first line of a text of several lines, else its first sentence."""
    first, *more = text.strip().splitlines() or [""]
    if any(map(str.strip, more)):
        return first
    sentence = _SENTENCE.match(first)
    return sentence.group() if sentence else first


def _corpus_score(
    library: Any, predictions: Sequence[str], targets: Sequence[str], *, scorer: str
) -> tuple[float, ...]:
    """Return sacrebleu's score (Post 2018); its signature is logged once."""
    metric = getattr(library, scorer)()
    score = metric.corpus_score([*predictions], [[*targets]]).score
    if scorer not in _logged_signatures:
        _logged_signatures.add(scorer)
        _log.info("sacrebleu %s: %s", scorer, metric.get_signature())
    return (float(score),)


_ROUGE = ("rouge1", "rouge2", "rougeL")


def _rouge(
    library: Any, predictions: Sequence[str], targets: Sequence[str]
) -> tuple[float, ...]:
    """Return the mean F-measures (Lin 2004)."""
    scorer = library.RougeScorer([*_ROUGE], use_stemmer=True)
    scores = [scorer.score(t, p) for t, p in zip(targets, predictions, strict=True)]
    return tuple(
        sum(score[name].fmeasure for score in scores) / len(scores) for name in _ROUGE
    )


def _exact_match(
    library: None, predictions: Sequence[str], targets: Sequence[str]
) -> tuple[float, ...]:
    pairs = zip(predictions, targets, strict=True)
    return (sum(p.strip() == t.strip() for p, t in pairs) / len(predictions),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextMetric:
    """A metric of generated texts: the names of its values, and how to compute them."""

    names: tuple[str, ...]
    compute: Callable[..., tuple[float, ...]]  # of a library, predictions, targets
    library: str = ""
    of_sources: bool = False  # a baseline: their first sentences are the predictions


METRICS: Mapping[Metric, TextMetric] = {
    "bleu": TextMetric(
        names=("bleu",),
        compute=functools.partial(_corpus_score, scorer="BLEU"),
        library="sacrebleu.metrics",
    ),
    "chrf": TextMetric(
        names=("chrf",),
        compute=functools.partial(_corpus_score, scorer="CHRF"),
        library="sacrebleu.metrics",
    ),
    "rouge": TextMetric(
        names=_ROUGE, compute=_rouge, library="rouge_score.rouge_scorer"
    ),
    "lead1_rouge": TextMetric(
        names=tuple(f"lead1_{name}" for name in _ROUGE),
        compute=_rouge,
        library="rouge_score.rouge_scorer",
        of_sources=True,
    ),
    "exact_match": TextMetric(names=("exact_match",), compute=_exact_match),
}


def _import_library(metric: Metric) -> Any:
    """Return the module that a metric needs; None if it needs none."""
    if not (name := METRICS[metric].library):
        return None
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"config.task.metrics: {metric!r} needs a package that is not installed: "
            "pip install 'lmjax[tasks]'"
        ) from error
