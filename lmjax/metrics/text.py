"""Answers beside the texts that are right, measured by their field's own libraries.

BLEU and chrF are sacrebleu's, of all answers together, from 0 to 100; the rest are
means over the answers, from 0 to 1. ROUGE is rouge-score's: the F-measure, of stems.
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

# An end of a sentence, with the quotes and brackets after it.
_SENTENCE = re.compile(r".+?[.!?…][\"'”’»)\]]*(?=\s)", re.DOTALL)

_log = logging.getLogger(__name__)
_signed: set[str] = set()


def names(metrics: Iterable[Metric]) -> tuple[str, ...]:
    """Return the names of what `measured` returns.

    Raises:
      ConfigError: the package that measures one of them is not installed.
    """
    for metric in metrics:
        _library(metric)
    return tuple(name for metric in metrics for name in METRICS[metric].names)


def compare_answers(metrics: Iterable[Metric]) -> bool:
    """Return whether any of some metrics is of the answers."""
    return not all(METRICS[metric].of_sources for metric in metrics)


def measured(
    metrics: Iterable[Metric],
    *,
    answers: Sequence[str],
    targets: Sequence[str],
    sources: Sequence[str],
) -> dict[str, float]:
    """Return some metrics of the answers to all examples of a split.

    Args:
      metrics: keys of `METRICS`.
      answers: what was written; not read unless they `compare_answers`.
      targets: what is right.
      sources: what both were made from.

    Raises:
      ConfigError: the package that measures one of them is not installed.
    """
    found: dict[str, float] = {}
    for metric in metrics:
        measure, given = METRICS[metric], answers
        if measure.of_sources:
            given = [first_sentence(source) for source in sources]
        values = measure.compute(_library(metric), given, targets)
        found |= dict(zip(measure.names, values, strict=True))
    return found


def first_sentence(text: str) -> str:
    """Return the first line of a text that has several, else its first sentence."""
    first, *more = text.strip().splitlines() or [""]
    if any(map(str.strip, more)):
        return first
    sentence = _SENTENCE.match(first)
    return sentence.group() if sentence else first


def _of_corpus(
    library: Any, answers: Sequence[str], targets: Sequence[str], *, scorer: str
) -> tuple[float, ...]:
    """Return sacrebleu's score (Post 2018), whose signature is logged once."""
    metric = getattr(library, scorer)()
    score = metric.corpus_score([*answers], [[*targets]]).score
    if scorer not in _signed:
        _signed.add(scorer)
        _log.info("sacrebleu %s: %s", scorer, metric.get_signature())
    return (float(score),)


_ROUGE = ("rouge1", "rouge2", "rougeL")


def _rouge(
    library: Any, answers: Sequence[str], targets: Sequence[str]
) -> tuple[float, ...]:
    """Return the mean F-measures (Lin 2004)."""
    scorer = library.RougeScorer([*_ROUGE], use_stemmer=True)
    scores = [scorer.score(t, a) for t, a in zip(targets, answers, strict=True)]
    return tuple(
        sum(score[name].fmeasure for score in scores) / len(scores) for name in _ROUGE
    )


def _exact_match(
    library: None, answers: Sequence[str], targets: Sequence[str]
) -> tuple[float, ...]:
    pairs = zip(answers, targets, strict=True)
    return (sum(a.strip() == t.strip() for a, t in pairs) / len(answers),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Measure:
    """How a metric is measured."""

    names: tuple[str, ...]  # of the values it gives
    compute: Callable[..., tuple[float, ...]]  # of a library, answers, targets
    library: str = ""
    of_sources: bool = False  # their first sentences stand for the answers


METRICS: Mapping[Metric, _Measure] = {
    "bleu": _Measure(
        names=("bleu",),
        compute=functools.partial(_of_corpus, scorer="BLEU"),
        library="sacrebleu.metrics",
    ),
    "chrf": _Measure(
        names=("chrf",),
        compute=functools.partial(_of_corpus, scorer="CHRF"),
        library="sacrebleu.metrics",
    ),
    "rouge": _Measure(names=_ROUGE, compute=_rouge, library="rouge_score.rouge_scorer"),
    "lead1_rouge": _Measure(
        names=tuple(f"lead1_{name}" for name in _ROUGE),
        compute=_rouge,
        library="rouge_score.rouge_scorer",
        of_sources=True,
    ),
    "exact_match": _Measure(names=("exact_match",), compute=_exact_match),
}


def _library(metric: Metric) -> Any:
    """Return the module that a metric needs; None of one that needs none."""
    if not (name := METRICS[metric].library):
        return None
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"config.task.metrics: {metric!r} needs a package that is not installed: "
            "pip install 'lmjax[tasks]'"
        ) from error
