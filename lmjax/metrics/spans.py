"""Spans of tagged words: BIO and its kin, read as seqeval reads them."""

import importlib
import re
from collections.abc import Collection, Sequence
from typing import Any

from lmjax.errors import ConfigError

Span = tuple[str, int, int]  # its type, and its first and last word
OUTSIDE = "O"
NAMES = ("precision", "recall", "f1")
_TAG = re.compile(r"O|[BIES](-.+)?", re.DOTALL)


def repaired(tags: Sequence[str], *, known: Sequence[str]) -> list[str]:
    """Return the tags with each I- that continues nothing turned into the span's B-.

    Only where `known` has such a tag; the spans stay what they are.
    """
    mended, before = [], OUTSIDE
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
    return set(library().get_entities([*tags]))


def are(labels: Sequence[str]) -> bool:
    """Return whether labels tell where spans begin and end, as BIO's do."""
    return all(map(_TAG.fullmatch, labels))


def kinds(labels: Sequence[str]) -> list[str]:
    """Return the types of spans that some labels are of, sorted."""
    found = map(_TAG.fullmatch, labels)
    return sorted({match[1][1:] for match in found if match and match[1]})


def scores(
    given: Sequence[Sequence[str]],
    true: Sequence[Sequence[str]],
    *,
    unscored: Collection[str] = (),
) -> dict[str, float]:
    """Return precision, recall and F1 of the spans of all sentences, each 0..1.

    Args:
      given: the tags of each sentence's words.
      true: those that are right.
      unscored: types of spans that do not count.
    """
    right = num_given = num_true = 0
    for pair in zip(given, true, strict=True):
        a, b = ({s for s in find(tags) if s[0] not in unscored} for tags in pair)
        right += len(a & b)
        num_given, num_true = num_given + len(a), num_true + len(b)
    shares = (right, num_given), (right, num_true), (2 * right, num_given + num_true)
    return {n: a / max(b, 1) for n, (a, b) in zip(NAMES, shares, strict=True)}


def library() -> Any:
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
