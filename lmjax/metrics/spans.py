"""Spans of tagged words: BIO and similar schemes, as seqeval reads them."""

import importlib
import re
from collections.abc import Collection, Sequence
from typing import Any

from lmjax.errors import ConfigError

Span = tuple[str, int, int]  # type, first word, last word
OUTSIDE = "O"
METRICS = ("precision", "recall", "f1")
_TAG = re.compile(r"O|[BIES](-.+)?", re.DOTALL)


def repair_tags(tags: Sequence[str], *, labels: Sequence[str]) -> list[str]:
    """Replace each I- that continues no span by the B- of its type, if that is a label.

    The spans do not change.
    """
    repaired, previous = [], OUTSIDE
    for tag in tags:
        b_tag = f"B-{tag[2:]}"
        begins = tag.startswith("I-") and previous not in (b_tag, f"I-{tag[2:]}")
        previous = b_tag if begins and b_tag in labels else tag
        repaired.append(previous)
    return repaired


def find_spans(tags: Sequence[str]) -> set[Span]:
    """Return the spans of a sentence, as in the scoring of CoNLL and seqeval.

    Raises:
      ConfigError: seqeval is not installed.
    """
    return set(import_seqeval().get_entities([*tags]))


def is_bio_scheme(labels: Sequence[str]) -> bool:
    """Return True if all labels mark the ends of spans: O, B-, I-, E- or S-."""
    return all(map(_TAG.fullmatch, labels))


def span_types(labels: Sequence[str]) -> list[str]:
    """Return the types of the spans that some labels mark, sorted."""
    matches = map(_TAG.fullmatch, labels)
    return sorted({match[1][1:] for match in matches if match and match[1]})


def score_spans(
    predicted: Sequence[Sequence[str]],
    true: Sequence[Sequence[str]],
    *,
    unscored: Collection[str] = (),
) -> dict[str, float]:
    """Return precision, recall and F1 of the spans of all sentences, each 0..1.

    Args:
      predicted: the tags of each sentence's words.
      true: the correct ones.
      unscored: types of spans that do not count.
    """
    num_correct = num_predicted = num_true = 0
    for pair in zip(predicted, true, strict=True):
        a, b = ({s for s in find_spans(tags) if s[0] not in unscored} for tags in pair)
        num_correct += len(a & b)
        num_predicted, num_true = num_predicted + len(a), num_true + len(b)
    return {
        "precision": num_correct / max(num_predicted, 1),
        "recall": num_correct / max(num_true, 1),
        "f1": 2 * num_correct / max(num_predicted + num_true, 1),
    }


def import_seqeval() -> Any:
    """Return the module of seqeval that finds spans.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("seqeval.metrics.sequence_labeling")
    except ImportError as error:
        raise ConfigError(
            "config.task.kind = 'tag': needs a package that is not installed: "
            "pip install 'lmjax[tasks]'"
        ) from error
