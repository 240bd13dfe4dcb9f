"""Which ids may come next."""

import numpy as np
import pytest

from lmjax.config import ConfigError
from lmjax.generate.constraints import Constraints, repeating

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
    found = np.asarray(repeating(text, lengths, n=n, vocab_size=SIZE))
    for row, length, banned in zip(text, lengths, found, strict=True):
        assert np.flatnonzero(banned).tolist() == by_hand(row[:length].tolist(), n)


def apply(constraints, text, num_steps=0):
    return np.asarray(
        constraints.apply(
            np.zeros((1, SIZE), np.float32),
            text_BS=np.array([[*text, 0, 0]]),
            lengths_B=np.array([len(text)]),
            ends_V=np.arange(SIZE) == 2,
            num_steps=num_steps,
        )
    )[0]


def test_a_text_ends_no_sooner_than_it_may():
    constraints = Constraints(min_tokens=2)
    for num_steps, allowed in ((0, False), (1, False), (2, True)):
        scores = apply(constraints, [1, 3], num_steps)
        assert np.isfinite(scores[2]) == allowed
        assert np.isfinite(np.delete(scores, 2)).all()


def test_where_nothing_may_come_all_may():
    assert np.isfinite(apply(Constraints(no_repeat_ngram=1), range(SIZE))).all()
    scores = apply(Constraints(no_repeat_ngram=1), range(1, SIZE))
    assert np.isfinite(scores).tolist() == [True] + [False] * (SIZE - 1)


@pytest.mark.parametrize("name", ["min_tokens", "no_repeat_ngram"])
def test_mistakes(name):
    with pytest.raises(ConfigError, match=f"{name} = -1: must be >= 0"):
        Constraints(**{name: -1})
    with pytest.raises(ConfigError, match="min_tokens = 5: must be at most max_tokens"):
        Constraints(min_tokens=5).check(max_tokens=4)
