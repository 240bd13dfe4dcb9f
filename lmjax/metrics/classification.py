"""From sums over a whole split to the metrics that are reported.

C labels; a confusion matrix counts rows of the first label, by truth, that were given
the second.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.types import Array


def confusion(predicted: Array, labels: Array, weights: Array, *, num: int) -> Array:
    """Return the confusion matrix, float32 (C, C), of what has the same shape (...)."""
    true = jax.nn.one_hot(labels.ravel(), num) * weights.ravel()[:, None]
    return jnp.matmul(
        true.T, jax.nn.one_hot(predicted.ravel(), num), precision="highest"
    )


def results(sums: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Return each metric's sum over its weight.

    The sum "confusion" is a matrix instead, and gives accuracy, macro F1 and Matthews.
    """
    means: dict[str, float] = {}
    for name, (total, weight) in sums.items():
        if name == "confusion":
            means |= of_confusion(total)
        else:
            means[name] = float(total) / (float(weight) or 1.0)
    return means


def of_confusion(matrix_CC: np.ndarray) -> dict[str, float]:
    """Return `accuracy`, `macro_f1` and `matthews` of a confusion matrix.

    A label that neither is nor was given counts for nothing in the mean F1, as in
    scikit-learn. Matthews is the correlation of Gorodkin (2004), for any number of
    labels; 0 where all rows are, or were given, one label.
    """
    matrix_CC = np.asarray(matrix_CC, np.float64)
    true_C, given_C = matrix_CC.sum(axis=1), matrix_CC.sum(axis=0)
    right_C, total = np.diag(matrix_CC), matrix_CC.sum()
    seen_C = true_C + given_C > 0
    f1_C = 2 * right_C[seen_C] / (true_C + given_C)[seen_C]
    covariance = right_C.sum() * total - true_C @ given_C
    spread = (total**2 - true_C @ true_C) * (total**2 - given_C @ given_C)
    return {
        "accuracy": float(right_C.sum() / max(total, 1.0)),
        "macro_f1": float(f1_C.mean()) if seen_C.any() else 0.0,
        "matthews": float(covariance / np.sqrt(spread)) if spread > 0 else 0.0,
    }
