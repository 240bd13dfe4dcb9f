"""Intervals of metrics by resampling."""

import numpy as np
import pytest

from lmjax.metrics.bootstrap import difference, interval, resample

RNG = np.random.default_rng(1)
HARD = RNG.normal(size=400)  # what is hard for every model
A, B = HARD + 1, HARD + 1.1 + RNG.normal(scale=0.05, size=400)


def means(values):
    compute = lambda chosen: {"mean": values[chosen].mean()}
    return resample(compute, num_units=len(values), num_samples=500)


def test_intervals_are_those_of_the_normal_distribution_for_means():
    for values in (A, B):
        found, error = interval(means(values), "mean"), values.std() / 20
        assert found.value == values.mean()
        assert found.low == pytest.approx(found.value - 1.96 * error, abs=error / 3)
        assert found.high == pytest.approx(found.value + 1.96 * error, abs=error / 3)


def test_differences_are_paired():
    found, error = difference(means(B), means(A), "mean"), (B - A).std() / 20
    assert found.value == pytest.approx((B - A).mean())
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=error / 3)
    assert 0 < found.low < found.high < interval(means(A), "mean").high


def test_resamples_are_the_same_at_each_call():
    np.testing.assert_array_equal(means(A).samples["mean"], means(A).samples["mean"])
    alike = difference(means(A), means(A), "mean")
    assert alike == (0, 0, 0)


def test_one_unit_has_no_interval():
    assert interval(means(A[:1]), "mean") == (A[0], None, None)
