"""Masks against sorting with NumPy."""

import jax
import numpy as np
import pytest

from lmjax.compress import masks


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32) for shape in ((2, 6, 8), (1, 5, 4))]


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.97, 0.999])
@pytest.mark.parametrize("scope", ["layer", "model"])
def test_the_lowest_scores_are_left_out(scores, sparsity, scope):
    keep = {"layer": masks.keep_in_layers, "model": masks.keep_in_model}[scope]
    kept = jax.jit(keep)([*map(jax.numpy.asarray, scores)], sparsity)
    if scope == "layer":
        pairs = [
            (layer, mask)
            for score, masks_ in zip(scores, kept, strict=True)
            for layer, mask in zip(score, np.asarray(masks_), strict=True)
        ]
    else:
        join = lambda xs: np.concatenate([np.ravel(x) for x in xs])
        pairs = [(join(scores), join(kept))]
    for score, mask in pairs:
        num = min(round(sparsity * score.size), score.size - 1)
        assert (~mask).sum() == num
        assert score[~mask].max(initial=-np.inf) < score[mask].min()


def test_equal_scores_stay():
    """Else a layer of units that are never active would be left out as a whole."""
    score = np.zeros((1, 4, 5), np.float32)
    score[0, 0, 0] = -1
    (mask,) = masks.keep_in_layers([score], 0.5)
    assert mask.sum() == 19


def test_of_each_group_of_inputs_the_best_stay(scores):
    mask = np.asarray(masks.keep_in_groups(scores[0][:, :4], keep=2, of=4))
    assert (mask.sum(axis=1) == 2).all()
    for layer, column in np.ndindex(2, 8):
        best = np.argsort(scores[0][layer, :4, column])[2:]
        assert {*best} == {*np.flatnonzero(mask[layer, :, column])}


def test_of_each_output_the_lowest_inputs_are_left_out(scores):
    mask = np.asarray(masks.keep_in_columns(scores[0], 0.5))
    assert (mask.sum(axis=1) == 3).all()
    score = np.where(mask, np.inf, scores[0]).min(axis=1)
    assert (score < np.where(mask, scores[0], np.inf).min(axis=1)).all()
