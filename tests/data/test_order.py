import numpy as np
import pytest

from lmjax.data import order

GOLDEN = [708, 540, 285, 584, 557, 314, 296, 762]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1023, 4096, 10_007])
def test_each_epoch_is_a_permutation(size):
    index = np.arange(size)
    for epoch in (0, 1):
        seen = order.permutation(index, size=size, seed=3, epoch=epoch)
        np.testing.assert_array_equal(np.sort(seen), index)


def test_the_order_never_changes():
    index = np.arange(8)
    epochs = np.array([0] * 4 + [1] * 4)
    seen = order.permutation(index, size=1000, seed=7, epoch=epochs)
    assert seen.tolist() == GOLDEN
    one_by_one = [
        order.permutation(np.array(i), size=1000, seed=7, epoch=int(e)).item()
        for i, e in zip(index, epochs, strict=True)
    ]
    assert one_by_one == GOLDEN


def test_seeds_and_epochs_differ():
    index = np.arange(1000)
    orders = [
        order.permutation(index, size=1000, seed=seed, epoch=epoch)
        for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]
    ]
    for i, a in enumerate(orders):
        for b in [*orders[:i], index]:
            assert (a == b).mean() < 0.02


def test_neighbours_are_scattered():
    seen = order.permutation(np.arange(100_000), size=100_000, seed=0, epoch=0)
    assert abs(np.corrcoef(seen[:-1], seen[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(seen, np.arange(100_000))[0, 1]) < 0.02


def test_offsets_stay_inside_and_vary():
    offsets = order.offset(np.arange(1000), size=64, seed=0)
    assert offsets.min() == 0 and offsets.max() == 63
    assert np.bincount(offsets, minlength=64).min() > 3


def test_a_mixture_keeps_its_shares_and_numbers_the_samples_of_each_source():
    weights = (0.5, 0.3, 0.2, 1e-6)
    source, rank = order.assign_sources(
        np.arange(10 * order.MIXTURE_PERIOD), weights=weights, seed=0
    )
    shares = np.bincount(source) / len(source)
    np.testing.assert_allclose(shares, weights, atol=1 / order.MIXTURE_PERIOD)
    assert (source == 3).sum() == 10  # at least one in each period
    for i in range(len(weights)):
        here = source == i
        np.testing.assert_array_equal(rank[here], np.arange(here.sum()))


def test_a_mixture_is_mixed():
    source, _ = order.assign_sources(
        np.arange(order.MIXTURE_PERIOD), weights=(1.0, 1.0), seed=0
    )
    halves = source.reshape(-1, 64).mean(axis=1)
    assert halves.min() > 0.2 and halves.max() < 0.8


def test_a_single_source_gets_every_sample():
    index = np.arange(5000, 15_000)
    source, rank = order.assign_sources(index, weights=(0.3,), seed=5)
    assert not source.any()
    np.testing.assert_array_equal(rank, index)
