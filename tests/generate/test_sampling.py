"""Frequencies of sampled tokens against their probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.generate.sampling import Sampling, sample

# Probabilities 0.4, 0.3, 0.2, 0.1, not in order.
PROBABILITIES = np.array([0.1, 0.4, 0.2, 0.3])
NUM = 4000


def draw(sampling, logits=None):
    logits = jnp.log(PROBABILITIES) if logits is None else jnp.asarray(logits)
    keys = jax.random.split(jax.random.key(0), NUM)
    rows = jnp.broadcast_to(logits, (NUM, len(logits)))
    tokens = np.asarray(sample(rows, keys, sampling=sampling))
    return np.bincount(tokens, minlength=len(logits)) / NUM


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 3}, [1, 2, 3]),
        ({"top_k": 99}, [0, 1, 2, 3]),
        ({"top_p": 1e-6}, [1]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 3]),
        ({"top_p": 0.69}, [1, 3]),
        ({"top_p": 0.71}, [1, 2, 3]),
        ({"top_p": 0.91}, [0, 1, 2, 3]),
        ({"top_k": 3, "top_p": 0.5}, [1, 3]),  # 4/9 of what top_k leaves, then 7/9
        ({"top_k": 3, "top_p": 0.44}, [1]),
        ({"min_p": 0.49}, [1, 2, 3]),
        ({"min_p": 0.51}, [1, 3]),
        ({"min_p": 0.49, "top_k": 2}, [1, 3]),
        ({"min_p": 0.6, "top_p": 0.71}, [1, 3]),
    ],
)
def test_exactly_the_right_tokens_are_kept(options, kept):
    expected = np.zeros(4)
    expected[kept] = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    drawn = draw(Sampling(**options))
    assert set(np.flatnonzero(drawn)) == set(kept)
    np.testing.assert_allclose(drawn, expected, atol=0.03)


def test_temperature_sharpens():
    squared = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    np.testing.assert_allclose(draw(Sampling(temperature=0.5)), squared, atol=0.03)
    np.testing.assert_array_equal(draw(Sampling(temperature=0.0)), [0, 1, 0, 0])


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-8, 1e-6])
def test_a_temperature_near_zero_is_greedy(temperature):
    logits = np.array([3e4, 3e4 - 0.01, -3e4, -3e38], np.float32)
    for more in ({}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}):
        drawn = draw(Sampling(temperature=temperature, **more), logits)
        np.testing.assert_array_equal(drawn, [1, 0, 0, 0])
    low = draw(Sampling(temperature=1e-4), logits)
    np.testing.assert_array_equal(low, [1, 0, 0, 0])


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.5}])
def test_ties_do_not_let_more_in(options):
    drawn = draw(Sampling(**options), logits=np.zeros(4, np.float32))
    np.testing.assert_allclose(drawn, [0.5, 0.5, 0, 0], atol=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"top_k": -2}, "top_k = -2"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"min_tokens": -1}, "min_tokens = -1: must be >= 0"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram = -1: must be >= 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        Sampling(**options)
