"""Metrics of classification, and the means of sums over a split.

C labels; a confusion matrix counts rows by their true label, then the predicted one.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.types import Array


def weighted_means(
    sums: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> dict[str, float]:
    """Return each metric's sum over its weight; 0 where nothing was weighed."""
    return {
        name: float(total) / (float(weight) or 1.0)
        for name, (total, weight) in sums.items()
    }


def compute_confusion(
    predicted: Array, labels: Array, weights: Array, *, num_labels: int
) -> Array:
    """Return the confusion matrix, float32 (C, C), of arrays of one shape (...)."""
    true = jax.nn.one_hot(labels.ravel(), num_labels) * weights.ravel()[:, None]
    return jnp.matmul(
        true.T, jax.nn.one_hot(predicted.ravel(), num_labels), precision="highest"
    )


def confusion_metrics(matrix_CC: np.ndarray) -> dict[str, float]:
    """Return `accuracy`, `macro_f1` and `matthews` of a confusion matrix.

    A label that is neither in the truth nor in the predictions does not count in the
    mean F1, as in scikit-learn. Matthews is the correlation of Gorodkin (2004), for any
    number of labels; 0 where the truth or the predictions are all one label.
    """
    matrix_CC = np.asarray(matrix_CC, np.float64)
    true_C, predicted_C = matrix_CC.sum(axis=1), matrix_CC.sum(axis=0)
    correct_C, total = np.diag(matrix_CC), matrix_CC.sum()
    seen_C = true_C + predicted_C > 0
    f1_C = 2 * correct_C[seen_C] / (true_C + predicted_C)[seen_C]
    covariance = correct_C.sum() * total - true_C @ predicted_C
    spread = (total**2 - true_C @ true_C) * (total**2 - predicted_C @ predicted_C)
    return {
        "accuracy": float(correct_C.sum() / max(total, 1.0)),
        "macro_f1": float(f1_C.mean()) if seen_C.any() else 0.0,
        "matthews": float(covariance / np.sqrt(spread)) if spread > 0 else 0.0,
    }
