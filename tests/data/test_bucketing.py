"""Length buckets: the least padding, each row once, and an order that never changes."""

import itertools
import pickle

import numpy as np
import pytest

from lmjax.data import bucketing

RNG = np.random.default_rng(0)
LENGTHS = np.clip(RNG.lognormal(3.5, 0.8, 500).astype(np.int64), 1, 120)


def padded(lengths_N, chosen):
    return int(np.array(chosen)[np.searchsorted(chosen, lengths_N)].sum())


@pytest.mark.parametrize("num_buckets", [1, 2, 3, 40])
def test_no_other_lengths_leave_less_padding(num_buckets):
    lengths_N = LENGTHS[:60]
    chosen = bucketing.choose_lengths(lengths_N, num_buckets=num_buckets)
    longest = -(-int(lengths_N.max()) // 8) * 8
    shorter = range(8, longest, 8)
    assert chosen[-1] == longest
    assert len(chosen) <= num_buckets
    assert [*chosen] == sorted(set(chosen))
    if num_buckets < 4:
        all_choices = itertools.combinations(shorter, num_buckets - 1)
        best = min(padded(lengths_N, (*c, longest)) for c in all_choices)
        assert padded(lengths_N, chosen) == best
    else:
        assert padded(lengths_N, chosen) == (-(-lengths_N // 8) * 8).sum()


def test_very_long_rows_are_chosen_from_coarser_lengths():
    lengths_N = np.array([1, 50, 70_000, 100_000])
    chosen = bucketing.choose_lengths(lengths_N, num_buckets=3)
    assert chosen[-1] >= 100_000
    assert all(length % 8 == 0 for length in chosen)


@pytest.mark.parametrize("parts", [1, 2, 6])
def test_batches_hold_equally_many_tokens_and_divide(parts):
    options = {"batch_size": 32, "data_shards": parts}
    one = bucketing.choose_buckets(LENGTHS, num_buckets=1, **options)
    four = bucketing.choose_buckets(LENGTHS, num_buckets=4, **options)
    if 32 % parts == 0:
        assert one.num_rows == (32,)
    assert all(rows % parts == 0 for rows in four.num_rows)
    tokens = np.array(four.num_rows) * four.lengths
    assert tokens.max() <= 2 * tokens.min()
    whole = [(b.rows_per_epoch(LENGTHS) * b.lengths).sum() for b in (one, four)]
    assert whole[1] - LENGTHS.sum() < (whole[0] - LENGTHS.sum()) / 2
    steps = [bucketing.Schedule(LENGTHS, b, 0).steps_per_epoch for b in (one, four)]
    assert steps[1] == pytest.approx(steps[0], rel=0.35)


def test_the_mesh_does_not_change_what_a_batch_holds():
    options = {"num_buckets": 4, "batch_size": 32}
    one, eight = (
        bucketing.choose_buckets(LENGTHS, data_shards=p, **options) for p in (1, 8)
    )
    assert one == eight


@pytest.fixture
def schedule():
    buckets = bucketing.choose_buckets(
        LENGTHS, num_buckets=4, batch_size=16, data_shards=2
    )
    return bucketing.Schedule(LENGTHS, buckets, 3)


def test_each_row_comes_once_an_epoch(schedule):
    for epoch in (0, 1):
        first = epoch * schedule.steps_per_epoch
        batches = [schedule.batch(first + i) for i in range(schedule.steps_per_epoch)]
        seen = np.concatenate([examples for _, examples in batches])
        assert sorted(seen[seen >= 0]) == [*range(len(LENGTHS))]
        shapes = {(len(examples), length) for length, examples in batches}
        buckets = schedule.buckets
        assert shapes <= {*zip(buckets.num_rows, buckets.lengths, strict=True)}
        for length, examples in batches:
            assert LENGTHS[examples[examples >= 0]].max() <= length
        rows = [
            sum(len(e) for n, e in batches if n == size) for size in buckets.lengths
        ]
        assert rows == buckets.rows_per_epoch(LENGTHS).tolist()


def test_the_order_is_a_function_of_seed_and_epoch(schedule):
    again = pickle.loads(pickle.dumps(schedule))
    steps = [0, 5, 2 * schedule.steps_per_epoch, 1]
    for step in steps:
        for a, b in zip(schedule.batch(step), again.batch(step), strict=True):
            np.testing.assert_array_equal(a, b)
    epochs = [schedule.batch(e * schedule.steps_per_epoch)[1] for e in range(3)]
    other = bucketing.Schedule(LENGTHS, schedule.buckets, 4).batch(0)[1]
    kinds = {tuple(sorted(e.tolist())) for e in (*epochs, other)}
    assert len(kinds) == 4


def test_a_sorted_epoch_has_each_row_once(schedule):
    epoch = bucketing.sorted_epoch(LENGTHS, schedule.buckets)
    seen = np.concatenate([epoch.batch(i)[1] for i in range(len(epoch))])
    assert sorted(seen[seen >= 0]) == [*range(len(LENGTHS))]
    lengths = [epoch.batch(i)[0] for i in range(len(epoch))]
    assert lengths == sorted(lengths)


def test_doubling_lengths():
    assert bucketing.doubling_lengths(100) == (16, 32, 64, 100)
    assert bucketing.doubling_lengths(16) == (16,)
    assert bucketing.doubling_lengths(9) == (9,)
