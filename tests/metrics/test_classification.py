"""Metrics of a confusion matrix against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.metrics.classification import confusion, of_confusion, results

RNG = np.random.default_rng(0)
TRUE = RNG.integers(0, 4, 200)
GIVEN = np.where(RNG.random(200) < 0.6, TRUE, RNG.integers(0, 4, 200))


def matrix(true, given, weights=None, num=4):
    weights = np.ones(len(true)) if weights is None else weights
    arrays = jnp.asarray(given), jnp.asarray(true), jnp.float32(weights)
    return np.asarray(confusion(*arrays, num=num))


def test_a_matrix_counts_rows_of_weight():
    weights = RNG.integers(0, 2, 200)
    found = matrix(TRUE, GIVEN, weights)
    for i in range(4):
        for j in range(4):
            assert found[i, j] == ((i == TRUE) & (j == GIVEN) & (weights > 0)).sum()


def test_metrics_are_those_of_all_rows():
    found = of_confusion(matrix(TRUE, GIVEN))
    assert found["accuracy"] == pytest.approx((TRUE == GIVEN).mean())
    f1 = []
    for i in range(4):
        precision = (i == TRUE)[i == GIVEN].mean()
        recall = (i == GIVEN)[i == TRUE].mean()
        f1.append(2 * precision * recall / (precision + recall))
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    # The correlation of indicators, which is how Gorodkin defines it.
    one_hot = [np.eye(4)[x] - np.eye(4)[x].mean(axis=0) for x in (TRUE, GIVEN)]
    covariance = (one_hot[0] * one_hot[1]).sum()
    spread = np.prod([np.sqrt((x**2).sum()) for x in one_hot])
    assert found["matthews"] == pytest.approx(covariance / spread)


def test_two_labels_are_the_textbook_case():
    found = of_confusion(np.array([[50, 10], [5, 35]]))
    tn, fp, fn, tp = 50, 10, 5, 35
    expected = (tp * tn - fp * fn) / np.sqrt(
        (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    )
    assert found["matthews"] == pytest.approx(expected)


def test_nothing_and_one_label_only():
    assert of_confusion(np.zeros((3, 3))) == dict.fromkeys(
        ("accuracy", "macro_f1", "matthews"), 0.0
    )
    one = of_confusion(np.diag([7, 0]))
    assert one == {"accuracy": 1.0, "macro_f1": 1.0, "matthews": 0.0}


def test_results_are_means_but_for_the_matrix():
    two = np.array([[1, 1], [0, 2]])
    found = results({"loss": (np.array(6.0), np.array(4.0)), "confusion": (two, 4)})
    assert found["loss"] == 1.5
    assert found["accuracy"] == 0.75
    assert "confusion" not in found
