"""Exact match and F1 of answers: as SQuAD scores them, in other languages as MLQA.

English, and texts in the Latin script whose language is not given, are split into words
as by the scripts of SQuAD; others as by that of MLQA (Lewis et al. 2020), which removes
all of Unicode's punctuation, and takes Han characters as words.
"""

import collections
import re
import string
import unicodedata
from collections.abc import Callable, Sequence

from lmjax.metrics import words
from lmjax.metrics.words import find_language

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = {
    "en": re.compile(r"\b(a|an|the)\b"),
    "de": re.compile(r"\b(ein(e[nmsr]?)?|der|die|das|de[nms])\b"),
    "es": re.compile(r"\b(un|una|unos|unas|el|la|los|las)\b"),
    "vi": re.compile(r"\b(của|là|cái|chiếc|những)\b"),
    "ar": re.compile("ال"),
}

Splitter = Callable[[str], list[str]]
Scorer = Callable[..., float]  # of an answer and a reference; split=


def score_answers(
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    language: str = "",
) -> dict[str, float]:
    """Return `exact_match` and `f1`, means over the questions in 0..1.

    Args:
      answers: of the questions.
      references: the correct answers to each question; () if it has none.
      language: of all answers, such as "en" or "zh-CN"; "": found by their script.
    """
    if language:
        splitters = [choose_splitter(language)] * len(answers)
    else:
        splitters = [*map(_split_by_script, words.are_latin(references))]
    rows = [*zip(answers, references, splitters, strict=True)]
    scorers: dict[str, Scorer] = {"exact_match": exact_match, "f1": token_f1}
    return {
        name: sum(best_score(scorer, *row[:2], split=row[2]) for row in rows)
        / len(rows)
        for name, scorer in scorers.items()
    }


def best_score(
    scorer: Scorer,
    answer: str,
    references: Sequence[str],
    *,
    split: Splitter | None = None,
) -> float:
    """Return the highest score against any reference.

    As in SQuAD 2.0's script, references without words do not count; without any other
    the correct answer is the empty text.

    Args:
      scorer: `exact_match` or `token_f1`.
      answer: to score.
      references: the correct answers.
      split: how texts become words; None: by the script of the references.
    """
    split = split or _split_by_script(*words.are_latin([references]))
    worded = [text for text in references if split(text)] or [""]
    return max(scorer(answer, reference, split=split) for reference in worded)


def exact_match(answer: str, reference: str, *, split: Splitter | None = None) -> float:
    """Return 1.0 if the words of two texts are the same, else 0.0."""
    split = split or _split_by_script(*words.are_latin([[reference]]))
    return float(split(answer) == split(reference))


def token_f1(answer: str, reference: str, *, split: Splitter | None = None) -> float:
    """Return the F1 of the words that two texts share (Rajpurkar et al. 2016)."""
    split = split or _split_by_script(*words.are_latin([[reference]]))
    predicted, true = split(answer), split(reference)
    if not (predicted and true):
        return float(predicted == true)
    shared = (collections.Counter(predicted) & collections.Counter(true)).total()
    return 2 * shared / (len(predicted) + len(true))


def choose_splitter(language: str) -> Splitter:
    """Return how answers in a language are split into words."""
    language = find_language(language)
    if language == "en":
        return split_english
    articles = _ARTICLES.get(language)
    return lambda text: split_unicode(text, articles=articles)


def _split_by_script(latin: bool) -> Splitter:
    """Return how texts are split whose language is not known."""
    return split_english if latin else split_unicode


def split_english(text: str) -> list[str]:
    """Return the words of a text in small letters, without punctuation and articles."""
    bare = text.lower().translate(_PUNCTUATION)
    return _ARTICLES["en"].sub(" ", bare).split()


def split_unicode(text: str, *, articles: re.Pattern[str] | None = None) -> list[str]:
    """Return the words of a text in any script, without punctuation and articles."""
    bare = text.lower().translate(_BARE)
    return (articles.sub(" ", bare) if articles else bare).split()


class _BareTable(dict[int, str]):
    """For `str.translate`: removes punctuation, and separates characters as words."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        is_sign = unicodedata.category(character)[0] == "P"
        is_sign |= character in string.punctuation
        self[code] = "" if is_sign else words.separate(character)
        return self[code]


_BARE = _BareTable()
