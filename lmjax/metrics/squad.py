"""How near an answer is to those that are right, as SQuAD scores it."""

import collections
import re
import string
from collections.abc import Callable, Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

Score = Callable[[str, str], float]


def best(score: Score, answer: str, references: Sequence[str]) -> float:
    """Return the score against the reference that is nearest.

    As in SQuAD 2.0's script: without a reference that has words none is right, and an
    answer of none is the empty text.
    """
    worded = [text for text in references if normalized(text)] or [""]
    return max(score(answer, reference) for reference in worded)


def exact_match(answer: str, reference: str) -> float:
    """Return 1.0 where two texts are the same once normalized, else 0.0."""
    return float(normalized(answer) == normalized(reference))


def f1(answer: str, reference: str) -> float:
    """Return the F1 of the words that two texts share (Rajpurkar et al. 2016)."""
    given, true = normalized(answer).split(), normalized(reference).split()
    if not (given and true):
        return float(given == true)
    shared = (collections.Counter(given) & collections.Counter(true)).total()
    return 2 * shared / (len(given) + len(true))


def normalized(text: str) -> str:
    """Return a text in lower case without punctuation, articles and surplus space."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())
