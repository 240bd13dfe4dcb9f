"""Exact match and F1 of answers, as SQuAD scores them."""

import collections
import re
import string
from collections.abc import Callable, Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

Scorer = Callable[[str, str], float]


def best_score(scorer: Scorer, answer: str, references: Sequence[str]) -> float:
    """Return the highest score against any reference.

    As in SQuAD 2.0's script, references without words do not count; without any other
    the correct answer is the empty text.
    """
    worded = [text for text in references if normalize(text)] or [""]
    return max(scorer(answer, reference) for reference in worded)


def exact_match(answer: str, reference: str) -> float:
    """Return 1.0 if two texts are the same once normalized, else 0.0."""
    return float(normalize(answer) == normalize(reference))


def token_f1(answer: str, reference: str) -> float:
    """Return the F1 of the words that two texts share (Rajpurkar et al. 2016)."""
    predicted, true = normalize(answer).split(), normalize(reference).split()
    if not (predicted and true):
        return float(predicted == true)
    shared = (collections.Counter(predicted) & collections.Counter(true)).total()
    return 2 * shared / (len(predicted) + len(true))


def normalize(text: str) -> str:
    """Lower a text, and remove punctuation, articles and surplus space."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())
