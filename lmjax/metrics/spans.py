"""Spans of tagged words, in the schemes of tags that the field has.

A tag is O, or a letter with the type of its span: B-PER, also B_PER and b-PER. By
default spans are read as in the scoring of CoNLL-2000 and by seqeval, whatever the
letters: a span also begins where its type changes. Read strictly, as by seqeval's
mode="strict", only spans count that are tagged as the scheme has it.
"""

import importlib
import logging
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from lmjax.config.task import Scheme
from lmjax.errors import ConfigError, nearest

Span = tuple[str, int, int]  # type, first word, last word
OUTSIDE = "O"
METRICS = ("precision", "recall", "f1")

# Those that mark a span in the same way, the more usual first.
LETTERS: dict[Scheme, str] = {
    "IOB2": "IOB",
    "IOB1": "IOB",
    "IOE2": "IOE",
    "IOE1": "IOE",
    "IOBES": "IOBES",
    "BILOU": "BILOU",
    "BMES": "BMESWO",
}
# In which a span may begin with I.
_BEGIN_INSIDE = ("IOB1", "IOE1", "IOE2")
# The same letter in IOBES: first, inside, last, single.
_IOBES = {"L": "E", "U": "S", "M": "I", "W": "S"}
_TAG = re.compile("([BIESLUMWO])|([BIESLUMW])[-_](.+)", re.DOTALL | re.IGNORECASE)
_NO_TYPE = "_"
_USUAL = re.compile("[BIES]-.+", re.DOTALL)
# The letter after the type, or another sign between them.
_UNUSUAL = re.compile(".+[-_:.|/][BIESLUMW]|[BIESLUMW][:.|/].+", re.DOTALL)

_log = logging.getLogger(__name__)
_warned = set[str]()


class Tag(NamedTuple):
    """A tag: its letter, a capital, and the type of its span."""

    letter: str
    type: str


def parse_tag(text: str) -> Tag | None:
    """Return a tag; None if the text is none."""
    match = _TAG.fullmatch(text)
    if match is None:
        return None
    alone, letter, name = match.groups()
    return Tag((alone or letter).upper(), name or _NO_TYPE)


def is_outside(label: str) -> bool:
    """Return whether a label is that of the words outside of all spans."""
    return label.upper() == OUTSIDE


def guess_scheme(labels: Iterable[str]) -> Scheme | None:
    """Return the scheme that has all labels as tags; None if there is none.

    Letters alone are tags only with one that begins or continues a span: sizes (S, M,
    L) are not.
    """
    tags = [*map(parse_tag, labels)]
    letters = {tag.letter if tag else "" for tag in tags}
    typed = any(tag and tag.type != _NO_TYPE for tag in tags)
    if not typed and not letters & {"B", "I"}:
        return None
    if letters <= {"I", "O"}:
        return "IOB1"
    fitting = (name for name, known in LETTERS.items() if letters <= {*known})
    return next(fitting, None)


def find_scheme(
    labels: Iterable[str], sentences: Iterable[Sequence[str]]
) -> Scheme | None:
    """Return the scheme of some labels, as the tags of sentences use them.

    The same letters have another meaning in IOB1 and IOE1: B and E only stand between
    two spans of a type.
    """
    scheme = guess_scheme(labels)
    if scheme == "IOB2":
        marked, unmarked = _count_begins(sentences, mark="B")
        return "IOB1" if unmarked > marked else scheme
    if scheme == "IOE2":
        backwards = ([*reversed(tags)] for tags in sentences)
        marked, unmarked = _count_begins(backwards, mark="E")
        return "IOE1" if unmarked > marked else scheme
    return scheme


def _count_begins(sentences: Iterable[Sequence[str]], *, mark: str) -> tuple[int, int]:
    """Count spans after a word of no or another type, with and without a mark."""
    counts = [0, 0]
    for sentence in sentences:
        previous = None
        for tag in map(parse_tag, sentence):
            if tag is None or tag.letter == OUTSIDE:
                previous = None
                continue
            if tag.type != previous:
                counts[tag.letter != mark] += 1
            previous = tag.type
    return counts[0], counts[1]


def repair_tags(
    tags: Sequence[str], *, labels: Sequence[str], scheme: Scheme | None = "IOB2"
) -> list[str]:
    """Replace each I- that continues no span by the B- of its type, if that is a label.

    The spans do not change. Where the scheme has spans that begin with I-, nor do the
    tags.
    """
    if scheme in _BEGIN_INSIDE:
        return [*tags]
    spelled = {parse_tag(label): label for label in labels}
    repaired: list[str] = []
    previous = None
    for text in tags:
        tag = parse_tag(text)
        if tag and _letter(tag) == "I" and not _continues(tag, previous):
            begin = Tag("B", tag.type)
            tag, text = (begin, spelled[begin]) if begin in spelled else (tag, text)
        repaired.append(text)
        previous = tag
    return repaired


def _continues(tag: Tag, previous: Tag | None) -> bool:
    """Return whether a tag of a letter I is of the same span as the one before it."""
    if previous is None or previous.type != tag.type:
        return False
    return _letter(previous) in ("B", "I")


def _letter(tag: Tag) -> str:
    """Return the letter of a tag in IOBES."""
    return _IOBES.get(tag.letter, tag.letter)


def find_spans(
    tags: Sequence[str], *, scheme: Scheme | None = None, strict: bool = False
) -> set[Span]:
    """Return the spans of a sentence; a text that is no tag is outside of them.

    Args:
      tags: of the words.
      scheme: of the tags, where they are read strictly.
      strict: read them as seqeval's mode="strict".

    Raises:
      ConfigError: seqeval is not installed.
    """
    parsed = [parse_tag(text) or Tag(OUTSIDE, _NO_TYPE) for text in tags]
    if strict:
        assert scheme is not None
        return _find_strictly(parsed, scheme)
    plain = [
        OUTSIDE if tag.letter == OUTSIDE else f"{_letter(tag)}-{tag.type}"
        for tag in parsed
    ]
    return set(import_seqeval().get_entities(plain))


def _find_strictly(tags: Sequence[Tag], scheme: Scheme) -> set[Span]:
    name = "IOBES" if scheme == "BMES" else scheme
    reader = getattr(importlib.import_module("seqeval.scheme"), name)
    letters = [tag.letter if name == "BILOU" else _letter(tag) for tag in tags]
    plain = [
        letter if letter == OUTSIDE else f"{letter}-{tag.type}"
        for letter, tag in zip(letters, tags, strict=True)
    ]
    tokens = importlib.import_module("seqeval.scheme").Tokens(plain, reader)
    return {(span.tag, span.start, span.end - 1) for span in tokens.entities}


def span_types(labels: Iterable[str]) -> list[str]:
    """Return the types of the spans that some labels mark, sorted."""
    tags = filter(None, map(parse_tag, labels))
    return sorted({tag.type for tag in tags if tag.type != _NO_TYPE})


def score_spans(
    predicted: Sequence[Sequence[str]],
    true: Sequence[Sequence[str]],
    *,
    unscored: Collection[str] = (),
    scheme: Scheme | None = None,
    strict: bool = False,
) -> dict[str, float]:
    """Return precision, recall and F1 of the spans of all sentences, each 0..1.

    Args:
      predicted: the tags of each sentence's words.
      true: the correct ones.
      unscored: types of spans that do not count.
      scheme: as for `find_spans`.
      strict: as for `find_spans`.
    """
    num_correct = num_predicted = num_true = 0
    for pair in zip(predicted, true, strict=True):
        found = (find_spans(tags, scheme=scheme, strict=strict) for tags in pair)
        a, b = ({span for span in spans if span[0] not in unscored} for spans in found)
        num_correct += len(a & b)
        num_predicted, num_true = num_predicted + len(a), num_true + len(b)
    if not num_true:
        _warn_once(f"{', '.join(METRICS)}: the true tags have no spans: all are 0")
    return {
        "precision": num_correct / max(num_predicted, 1),
        "recall": num_correct / max(num_true, 1),
        "f1": 2 * num_correct / max(num_predicted + num_true, 1),
    }


def check_labels(labels: Sequence[str], *, scheme: Scheme, strict: bool) -> None:
    """Check that all labels are tags of one scheme, or none is a tag.

    Warns of labels that look like tags, but have no spans.

    Args:
      labels: of a task.
      scheme: that they must have; "auto": any.
      strict: whether spans are to be read strictly, which needs a scheme.

    Raises:
      ConfigError: some are tags and others not, or are those of another scheme.
    """
    tags = [label for label in labels if parse_tag(label)]
    if scheme != "auto" or any(map(_USUAL.fullmatch, labels)):
        for label in labels:
            if label not in tags:
                raise ConfigError(
                    f"config.task.labels: {label!r} is neither O nor B-, I-, E- or S- "
                    f"with a type, as others are{nearest(label, tags)}"
                )
        if guess_scheme(labels) is None:
            raise ConfigError(
                f"config.task.labels: {', '.join(labels[:20])} are tags of no one "
                f"scheme; there are {_list_schemes()}"
            )
    if scheme != "auto":
        for label in labels:
            if parse_letter(label) not in LETTERS[scheme]:
                raise ConfigError(
                    f"config.task.scheme = {scheme!r}: has no {label!r}; its letters "
                    f"are {', '.join(LETTERS[scheme])}"
                )
    if guess_scheme(labels) is not None:
        return
    if strict:
        raise ConfigError(
            "config.task.strict = True: config.task.labels are no tags of spans"
        )
    if any(map(is_outside, labels)) or 2 * sum(
        map(bool, map(_UNUSUAL.fullmatch, labels))
    ) > len(labels):
        _warn_once(
            f"config.task.labels: no spans are found in tags such as "
            f"{', '.join(labels[:5])}: {', '.join(METRICS)} are left out (tags of "
            "spans are O, and B- or I- with a type, as in B-PER)"
        )


def parse_letter(label: str) -> str:
    """Return the letter of a tag."""
    tag = parse_tag(label)
    assert tag is not None
    return tag.letter


def _list_schemes() -> str:
    schemes = sorted(LETTERS.items())
    return ", ".join(f"{name} ({', '.join(known)})" for name, known in schemes)


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


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        _log.warning("warning: %s", text)
