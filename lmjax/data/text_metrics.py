"""Answers beside the texts that are right, measured by their field's own libraries.

BLEU and chrF are sacrebleu's, of all answers together, from 0 to 100; the rest are
means over the answers, from 0 to 1. ROUGE is rouge-score's: the F-measure, of stems.
"""

import importlib
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lmjax.config import ConfigError

_ROUGE = ("rouge1", "rouge2", "rougeL")
# The names of what each of `config.task.metrics` gives.
NAMES: dict[str, tuple[str, ...]] = {
    "bleu": ("bleu",),
    "chrf": ("chrf",),
    "rouge": _ROUGE,
    "lead1_rouge": tuple(f"lead1_{name}" for name in _ROUGE),
    "exact_match": ("exact_match",),
}
_NEEDS = {
    "bleu": "sacrebleu.metrics",
    "chrf": "sacrebleu.metrics",
    "rouge": "rouge_score.rouge_scorer",
    "lead1_rouge": "rouge_score.rouge_scorer",
}
# An end of a sentence, with the quotes and brackets after it.
_SENTENCE = re.compile(r".+?[.!?…][\"'”’»)\]]*(?=\s)", re.DOTALL)

_log = logging.getLogger(__name__)
_signed: set[str] = set()


def names(metrics: Iterable[str]) -> tuple[str, ...]:
    """Return the names of what `measured` returns.

    Raises:
      ConfigError: the package that measures one of them is not installed.
    """
    for metric in metrics:
        _library(metric)
    return tuple(name for metric in metrics for name in NAMES[metric])


def measured(
    metrics: Iterable[str],
    *,
    answers: Sequence[str],
    targets: Sequence[str],
    sources: Sequence[str],
) -> dict[str, float]:
    """Return some metrics of the answers to all examples of a split.

    Args:
      metrics: keys of `NAMES`.
      answers: what was written.
      targets: what is right.
      sources: what both were made from; lead-1 takes the first sentence of each.

    Raises:
      ConfigError: the package that measures one of them is not installed.
    """
    found: dict[str, float] = {}
    for metric in metrics:
        given = answers
        if metric == "lead1_rouge":
            given = [first_sentence(source) for source in sources]
        values = _MEASURE[metric](metric, given, targets)
        found |= dict(zip(NAMES[metric], values, strict=True))
    return found


def first_sentence(text: str) -> str:
    """Return the first line of a text that has several, else its first sentence."""
    first, *more = text.strip().splitlines() or [""]
    if any(map(str.strip, more)):
        return first
    sentence = _SENTENCE.match(first)
    return sentence.group() if sentence else first


def _of_corpus(
    metric: str, answers: Sequence[str], targets: Sequence[str]
) -> tuple[float, ...]:
    """Return sacrebleu's score (Post 2018), whose signature is logged once."""
    library = _library(metric)
    scorer = library.BLEU() if metric == "bleu" else library.CHRF()
    score = scorer.corpus_score([*answers], [[*targets]]).score
    if metric not in _signed:
        _signed.add(metric)
        _log.info("sacrebleu %s: %s", metric, scorer.get_signature())
    return (float(score),)


def _rouge(
    metric: str, answers: Sequence[str], targets: Sequence[str]
) -> tuple[float, ...]:
    """Return the mean F-measures (Lin 2004)."""
    scorer = _library(metric).RougeScorer([*_ROUGE], use_stemmer=True)
    scores = [scorer.score(t, a) for t, a in zip(targets, answers, strict=True)]
    return tuple(
        sum(score[name].fmeasure for score in scores) / len(scores) for name in _ROUGE
    )


def _exact_match(
    metric: str, answers: Sequence[str], targets: Sequence[str]
) -> tuple[float, ...]:
    pairs = zip(answers, targets, strict=True)
    return (sum(a.strip() == t.strip() for a, t in pairs) / len(answers),)


_MEASURE: dict[str, Callable[..., tuple[float, ...]]] = {
    "bleu": _of_corpus,
    "chrf": _of_corpus,
    "rouge": _rouge,
    "lead1_rouge": _rouge,
    "exact_match": _exact_match,
}


def _library(metric: str) -> Any:
    """Return the module that a metric needs; None of one that needs none."""
    if metric not in _NEEDS:
        return None
    try:
        return importlib.import_module(_NEEDS[metric])
    except ImportError as error:
        raise ConfigError(
            f"config.task.metrics: {metric!r} needs a package that is not installed: "
            "pip install 'lmjax[tasks]'"
        ) from error
