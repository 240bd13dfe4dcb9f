"""Banned ids against a count by hand."""

import numpy as np
import pytest

from lmjax.generate.constraints import apply_constraints, find_repeats

SIZE = 6


def by_hand(text, n):
    """Return the ids that would make n tokens come twice."""
    seen = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
    tail = text[len(text) - n + 1 :] if n > 1 else []
    return [i for i in range(SIZE) if len(tail) == n - 1 and (*tail, i) in seen]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 20, 21, 10**12])
def test_repeating(n):
    rng = np.random.default_rng(n)
    lengths = np.array([1, 2, 3, 5, 9, 17, 20, 20])
    text = rng.integers(0, SIZE if n < 3 else 2, (len(lengths), 20))
    found = np.asarray(find_repeats(text, lengths, n=n, vocab_size=SIZE))
    for row, length, banned in zip(text, lengths, found, strict=True):
        assert np.flatnonzero(banned).tolist() == by_hand(row[:length].tolist(), n)


def apply(text, num_steps=0, *, min_tokens=0, no_repeat_ngram=0):
    return np.asarray(
        apply_constraints(
            np.zeros((1, SIZE), np.float32),
            min_tokens=min_tokens,
            no_repeat_ngram=no_repeat_ngram,
            text_BS=np.array([[*text, 0, 0]]),
            lengths_B=np.array([len(text)]),
            is_stop_V=np.arange(SIZE) == 2,
            num_steps=num_steps,
        )
    )[0]


def test_stop_ids_are_banned_before_min_tokens():
    for num_steps, allowed in ((0, False), (1, False), (2, True)):
        scores = apply([1, 3], num_steps, min_tokens=2)
        assert np.isfinite(scores[2]) == allowed
        assert np.isfinite(np.delete(scores, 2)).all()


def test_a_row_with_all_ids_banned_is_unconstrained():
    assert np.isfinite(apply(range(SIZE), no_repeat_ngram=1)).all()
    scores = apply(range(1, SIZE), no_repeat_ngram=1)
    assert np.isfinite(scores).tolist() == [True] + [False] * (SIZE - 1)
