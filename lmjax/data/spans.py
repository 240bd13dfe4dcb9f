"""Spans of tagged words: BIO and its kin, read as seqeval reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmjax.config import ConfigError, TagConfig

Span = tuple[str, int, int]  # its type, and its first and last word
Sums = dict[str, tuple[Any, Any]]


def repaired(tags: Sequence[str], *, known: Sequence[str]) -> list[str]:
    """Return the tags with each I- that continues nothing turned into the span's B-.

    Only where `known` has such a tag; the spans stay what they are.
    """
    mended, before = [], "O"
    for tag in tags:
        kind = tag[2:]
        begins = tag.startswith("I-") and before not in (f"B-{kind}", f"I-{kind}")
        before = f"B-{kind}" if begins and f"B-{kind}" in known else tag
        mended.append(before)
    return mended


def find(tags: Sequence[str]) -> set[Span]:
    """Return the spans of a sentence, as CoNLL's and seqeval's scoring finds them.

    Raises:
      ConfigError: seqeval is not installed.
    """
    try:
        from seqeval.metrics.sequence_labeling import get_entities
    except ImportError as error:
        raise ConfigError(
            "config.task.kind = 'tag': needs a package that is not installed: "
            "pip install 'lmjax[tasks]'"
        ) from error
    return set(get_entities([*tags]))


def kinds(labels: Sequence[str]) -> list[str]:
    """Return the types of spans that some labels are of, sorted."""
    return sorted({label[2:] for label in labels if label[1:2] == "-"})


def counted(metrics: Mapping[str, tuple[Any, Any]], config: TagConfig) -> Sums:
    """Return a batch's metrics, with "tags" turned into counts of spans.

    `precision`, `recall` and `f1` as (sum, weight), which add up: F1 is twice the
    spans that are right over all that were given and all there are.

    Args:
      metrics: of a batch; "tags" are those given and the true, -1 where no word begins.
      config: the labels, whether what is given is repaired, and what is not scored.
    """
    right = num_given = num_true = 0
    given_BT, true_BT = map(np.asarray, metrics["tags"])
    for given_T, true_T in zip(given_BT, true_BT, strict=True):
        given, true = (
            [config.labels[i] for i in tags_T[true_T >= 0]]
            for tags_T in (given_T, true_T)
        )
        if config.repair:
            given = repaired(given, known=config.labels)
        if given:
            a, b = (_scored(find(tags), config) for tags in (given, true))
            right += len(a & b)
            num_given, num_true = num_given + len(a), num_true + len(b)
    rest = {name: value for name, value in metrics.items() if name != "tags"}
    return rest | {
        "precision": (right, num_given),
        "recall": (right, num_true),
        "f1": (2 * right, num_given + num_true),
    }


def _scored(found: set[Span], config: TagConfig) -> set[Span]:
    return {span for span in found if span[0] not in config.unscored}
