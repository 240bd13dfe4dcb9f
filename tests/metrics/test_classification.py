"""Metrics of a confusion matrix against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import tasks
from lmjax.config.task import ClassifyConfig
from lmjax.metrics.classification import (
    compute_confusion,
    confusion_metrics,
    weighted_means,
)

RNG = np.random.default_rng(0)
TRUE = RNG.integers(0, 4, 200)
PREDICTED = np.where(RNG.random(200) < 0.6, TRUE, RNG.integers(0, 4, 200))


def matrix(true, predicted, weights=None, num=4):
    weights = np.ones(len(true)) if weights is None else weights
    arrays = jnp.asarray(predicted), jnp.asarray(true), jnp.float32(weights)
    return np.asarray(compute_confusion(*arrays, num_labels=num))


def test_a_matrix_counts_rows_of_weight():
    weights = RNG.integers(0, 2, 200)
    metrics = matrix(TRUE, PREDICTED, weights)
    for i in range(4):
        for j in range(4):
            assert (
                metrics[i, j] == ((i == TRUE) & (j == PREDICTED) & (weights > 0)).sum()
            )


def test_metrics_are_those_of_all_rows():
    metrics = confusion_metrics(matrix(TRUE, PREDICTED))
    assert metrics["accuracy"] == pytest.approx((TRUE == PREDICTED).mean())
    f1 = []
    for i in range(4):
        precision = (i == TRUE)[i == PREDICTED].mean()
        recall = (i == PREDICTED)[i == TRUE].mean()
        f1.append(2 * precision * recall / (precision + recall))
    assert metrics["macro_f1"] == pytest.approx(np.mean(f1))
    # The correlation of indicators, which is how Gorodkin defines it.
    one_hot = [np.eye(4)[x] - np.eye(4)[x].mean(axis=0) for x in (TRUE, PREDICTED)]
    covariance = (one_hot[0] * one_hot[1]).sum()
    spread = np.prod([np.sqrt((x**2).sum()) for x in one_hot])
    assert metrics["matthews"] == pytest.approx(covariance / spread)


def test_two_labels_are_the_textbook_case():
    metrics = confusion_metrics(np.array([[50, 10], [5, 35]]))
    tn, fp, fn, tp = 50, 10, 5, 35
    expected = (tp * tn - fp * fn) / np.sqrt(
        (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    )
    assert metrics["matthews"] == pytest.approx(expected)


def test_nothing_and_one_label_only():
    assert confusion_metrics(np.zeros((3, 3))) == dict.fromkeys(
        ("accuracy", "macro_f1", "matthews"), 0.0
    )
    one = confusion_metrics(np.diag([7, 0]))
    assert one == {"accuracy": 1.0, "macro_f1": 1.0, "matthews": 0.0}


def test_means_are_sums_over_weights():
    sums = {"loss": (np.array(6.0), np.array(4.0)), "padding": (np.zeros(2)[0], 0.0)}
    assert weighted_means(sums) == {"loss": 1.5, "padding": 0.0}


def test_a_classifier_reports_the_metrics_of_its_confusion_matrix():
    two = np.array([[1, 1], [0, 2]])
    sums = {"loss": (np.array(6.0), np.array(4.0)), "confusion": (two, 4)}
    metrics = tasks.build(ClassifyConfig()).summarize(sums)
    assert metrics["loss"] == 1.5
    assert metrics["accuracy"] == 0.75
    assert "confusion" not in metrics
