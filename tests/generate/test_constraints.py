"""Banned ids against a count by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.decoding import ConstraintConfig
from lmjax.generate.constraints import (
    apply_constraints,
    find_repeats,
    penalize_repetition,
)

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


def apply(text, num_steps=0, *, max_tokens=9, scores=None, **constraints):
    """Return the scores of a text with ids below SIZE, of which 2 ends it."""
    return np.asarray(
        apply_constraints(
            jnp.zeros((1, SIZE)) if scores is None else jnp.asarray([scores]),
            constraints=ConstraintConfig(**constraints),
            text_BS=jnp.array([[*text, 0, 0]]),
            lengths_B=jnp.array([len(text)]),
            is_stop_V=np.arange(SIZE) == 2,
            num_steps=num_steps,
            max_tokens=max_tokens,
        )
    )[0]


def allowed(*args, **options):
    return np.flatnonzero(np.isfinite(apply(*args, **options))).tolist()


def test_stop_ids_are_banned_before_min_tokens():
    for num_steps, may_end in ((0, False), (1, False), (2, True)):
        assert (2 in allowed([1, 3], num_steps, min_tokens=2)) == may_end
    assert allowed([1, 3], min_length=3) == [0, 1, 3, 4, 5]
    assert allowed([1, 3, 3], 1, min_length=3) == [*range(SIZE)]


def test_a_row_with_all_ids_banned_is_unconstrained():
    assert np.isfinite(apply(range(SIZE), no_repeat_ngram=1)).all()
    assert allowed(range(1, SIZE), no_repeat_ngram=1) == [0]
    assert allowed([1], suppress=range(SIZE)) == [*range(SIZE)]


@pytest.mark.parametrize(
    ("text", "words", "banned"),
    [
        ([1, 3], ((4,), (5,)), [4, 5]),
        ([1, 3], ((2,), (4,)), [4]),  # the end may come
        ([1, 3], ((3, 2),), [2]),  # but not as the last of several
        ([1, 3], ((3, 4), (1, 5), (1, 3, 0)), [0, 4]),
        ([3], ((1, 3, 0), (3, 5)), [5]),
        ([3, 3], ((3, 3), (3, 3, 3, 1)), [3]),
    ],
)
def test_bad_words(text, words, banned):
    left = allowed(text, bad_words=words)
    assert left == [i for i in range(SIZE) if i not in banned]


def test_forced_and_suppressed_ids():
    assert allowed([1], force_first=4) == [4]
    assert allowed([1, 3], 1, force_first=4) == [*range(SIZE)]
    assert allowed([1, 3], 1, max_tokens=2, force_last=(0, 2)) == [0, 2]
    assert allowed([1, 3], 0, max_tokens=2, force_last=(2,)) == [*range(SIZE)]
    assert allowed([1, 3], 1, suppress=(0, 5), suppress_first=(1,)) == [1, 2, 3, 4]
    assert allowed([1, 3], 0, suppress_first=(1, 2)) == [0, 3, 4, 5]
    # After a forced id, the second is the first.
    first = {"force_first": 4, "suppress_first": (1, 2)}
    assert allowed([3], 0, **first) == [4]
    assert allowed([3, 4], 1, **first) == [0, 3, 4, 5]
    assert allowed([3, 4, 0], 2, **first) == [*range(SIZE)]
    assert apply([1], force_first=4, scores=[-3.0] * SIZE)[4] == 0


def test_repetition_makes_scores_worse():
    scores = jnp.array([[2.0, -2.0, 3.0, -3.0, 0.5, 0.0]])
    text, lengths = jnp.array([[0, 1, 1, 5, 2]]), jnp.array([4])
    found = penalize_repetition(scores, text, lengths, penalty=2.0)
    assert found.tolist() == [[1.0, -4.0, 3.0, -3.0, 0.5, 0.0]]
