"""Nearest words, similarity and analogies. N words, D dim, Q questions."""

import functools
from collections.abc import Sequence

import numpy as np

from lmjax.errors import UserError, nearest

_BLOCK = 1024  # questions that are answered at once


class VectorSpace:
    """Words and their vectors, compared by the cosine of their angle.

    Args:
      words: each once.
      vectors_ND: float32.
    """

    def __init__(self, words: Sequence[str], vectors_ND: np.ndarray) -> None:
        self.words = list(words)
        self.vectors_ND = vectors_ND
        length_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        self._unit_ND = vectors_ND / np.maximum(length_N1, 1e-12)

    @functools.cached_property
    def _index(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def find(self, word: str) -> int | None:
        """Return the index of a word as it is, or of it in small letters."""
        return self._index.get(word, self._index.get(word.lower()))

    def index(self, word: str) -> int:
        """Return the index of a word.

        Raises:
          UserError: it is not known.
        """
        found = self.find(word)
        if found is None:
            hint = nearest(word, self.words[:20_000])
            raise UserError(f"{word!r}: is not in the vocabulary{hint}")
        return found

    def nearest(
        self, plus: Sequence[str], *, minus: Sequence[str] = (), count: int = 10
    ) -> list[tuple[str, float]]:
        """Return the words nearest to a sum of unit vectors, and their cosines.

        Args:
          plus: the words whose vectors are added.
          minus: those whose vectors are subtracted; all are left out of the answer.
          count: of the answer.

        Raises:
          UserError: a word is not known, or none is given.
        """
        if not (plus or minus):
            raise UserError("nearest: needs a word")
        given = [self.index(word) for word in (*plus, *minus)]
        signs = np.repeat(np.array([1.0, -1.0], np.float32), [len(plus), len(minus)])
        total_D = signs @ self._unit_ND[given]
        unit_D = total_D / max(float(np.linalg.norm(total_D)), 1e-12)
        cosines_N = self._unit_ND @ unit_D
        cosines_N[given] = -np.inf
        count = min(max(count, 0), len(self.words) - len({*given}))
        best = np.argsort(-cosines_N, kind="stable")[:count]
        return [(self.words[i], float(cosines_N[i])) for i in best]

    def rank_correlation(self, pairs: Sequence[tuple[str, str, float]]) -> float:
        """Return Spearman's correlation of cosines and scores, over the known pairs.

        Raises:
          UserError: fewer than two pairs are known.
        """
        known = [(self.find(a), self.find(b), score) for a, b, score in pairs]
        rows = [(a, b, s) for a, b, s in known if a is not None and b is not None]
        if len(rows) < 2:
            raise UserError(f"{len(rows)} of {len(pairs)} pairs of words are known")
        first, second = (self._unit_ND[[row[i] for row in rows]] for i in (0, 1))
        cosines = (first * second).sum(axis=1)
        ranks_2N = np.stack([_rank(cosines), _rank(np.array([r[2] for r in rows]))])
        if not np.ptp(ranks_2N, axis=1).all():
            return 0.0
        return float(np.corrcoef(ranks_2N)[0, 1])

    def solve_analogies(self, questions: Sequence[tuple[str, str, str, str]]) -> float:
        """Return the share of "a is to b as c is to d" whose d is nearest to b - a + c.

        Of the questions whose words are all known (Mikolov et al. 2013).

        Raises:
          UserError: there is none.
        """
        found = [[self.find(word) for word in question] for question in questions]
        known_Q4 = np.array([q for q in found if None not in q], np.int64)
        if not len(known_Q4):
            raise UserError(f"none of {len(questions)} analogies has known words")
        num_right = 0
        for first in range(0, len(known_Q4), _BLOCK):
            a, b, c, d = known_Q4[first : first + _BLOCK].T
            unit = self._unit_ND
            cosines_QN = (unit[b] - unit[a] + unit[c]) @ unit.T
            for given in (a, b, c):
                cosines_QN[np.arange(len(a)), given] = -np.inf
            num_right += int((cosines_QN.argmax(axis=1) == d).sum())
        return num_right / len(known_Q4)


def _rank(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value; equal ones share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]
