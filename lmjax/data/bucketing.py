"""Length buckets: rows of about one length together, so that little is padding.

The lengths are chosen from the histogram of all, and there are a few of them: each is a
shape, and for each a step is compiled. All batches hold about as many tokens. The order
is a pure function of the seed and the epoch, in which each row comes once.

N rows of a store, of an epoch or a split: an example may have several.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np

from lmjax.data import order

MULTIPLE = 8  # of which lengths are, and row counts where the batch size is
_MAX_CANDIDATES = 256
PADDING = -1  # in place of a row's number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buckets:
    """Lengths, ascending, and how many rows a batch of each has."""

    lengths: tuple[int, ...]
    num_rows: tuple[int, ...]

    def place(self, lengths_N: np.ndarray) -> np.ndarray:
        """Return the bucket of each row, by its length."""
        return np.searchsorted(self.lengths, lengths_N)

    def rows_per_epoch(self, lengths_N: np.ndarray) -> np.ndarray:
        """Return how many rows the batches of each length have, those empty too."""
        counts = np.bincount(self.place(lengths_N), minlength=len(self.lengths))
        return -(-counts // np.array(self.num_rows)) * self.num_rows

    def __str__(self) -> str:
        pairs = zip(self.num_rows, self.lengths, strict=True)
        return ", ".join(f"{rows} x {length}" for rows, length in pairs)


def choose(
    lengths_N: np.ndarray, *, num_buckets: int, batch_size: int, data_shards: int
) -> Buckets:
    """Return buckets with the least padding.

    A batch holds `batch_size` rows on average, so that an epoch has as many batches as
    without buckets; with one bucket it is just that many. Row counts are multiples of 8
    where `batch_size` is one, for all `data_shards` that divide 8: the batches are then
    the same on another number of devices.

    Args:
      lengths_N: of the rows, in tokens.
      num_buckets: the most there may be.
      batch_size: rows.
      data_shards: what row counts must be a multiple of.
    """
    lengths = choose_lengths(lengths_N, num_buckets=num_buckets)
    padded_N = np.array(lengths)[np.searchsorted(lengths, lengths_N)]
    unit = math.lcm(math.gcd(batch_size, MULTIPLE), data_shards)
    budget = batch_size * float(padded_N.mean())
    rows = (max(1, round(budget / (length * unit))) * unit for length in lengths)
    return Buckets(lengths=lengths, num_rows=tuple(rows))


def choose_lengths(lengths_N: np.ndarray, *, num_buckets: int) -> tuple[int, ...]:
    """Return at most `num_buckets` lengths that leave the least padding.

    They are multiples of 8, the last one the longest row's but for that; found by
    dynamic programming over the histogram.
    """
    longest = int(lengths_N.max())
    width = MULTIPLE * -(-longest // (MULTIPLE * _MAX_CANDIDATES))
    step_N = -(-np.maximum(lengths_N, 1) // width)  # rounded up to candidates
    count_C = np.bincount(step_N)  # C candidates; none is of 0 tokens
    below_C = np.cumsum(count_C)
    size_C = np.arange(len(count_C)) * width
    # cost_CC[i, j]: what rows longer than i and no longer than j take in a bucket of j.
    cost_CC = (below_C[None, :] - below_C[:, None]) * size_C[None, :].astype(float)
    cost_CC[np.tril_indices(len(count_C))] = np.inf
    best_C, came_from = cost_CC[0], []
    for _ in range(num_buckets - 1):
        through_CC = best_C[:, None] + cost_CC
        previous_C = through_CC.argmin(axis=0)
        shorter_C = through_CC.min(axis=0)
        previous_C[shorter_C >= best_C] = 0  # one bucket more is of no use
        came_from.append(previous_C)
        best_C = np.minimum(shorter_C, best_C)
    chosen = [len(count_C) - 1]
    for previous_C in reversed(came_from):
        if previous := int(previous_C[chosen[-1]]):
            chosen.append(previous)
    return tuple(int(size_C[c]) for c in reversed(chosen))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Epoch:
    """The batches of an epoch: each a bucket, and the rows in it."""

    buckets: Buckets
    bucket_K: np.ndarray  # of each of K batches
    first_K: np.ndarray  # where in `members_N` each begins
    stop_K: np.ndarray
    members_N: np.ndarray  # rows, by their buckets

    def __len__(self) -> int:
        return len(self.bucket_K)

    def batch(self, number: int) -> tuple[int, np.ndarray]:
        """Return a batch's length and its rows; at its end may be PADDING."""
        bucket = int(self.bucket_K[number])
        members = self.members_N[self.first_K[number] : self.stop_K[number]]
        missing = self.buckets.num_rows[bucket] - len(members)
        padded = np.pad(members, (0, missing), constant_values=PADDING)
        return self.buckets.lengths[bucket], padded


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """The training batches of some rows, to be found at any time."""

    lengths_N: np.ndarray
    buckets: Buckets
    seed: int

    @functools.cached_property
    def _bucket_N(self) -> np.ndarray:
        return self.buckets.place(self.lengths_N)

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        """Count the batches of an epoch: in each as many."""
        return len(in_order(self.lengths_N, self.buckets))

    def batch(self, step: int) -> tuple[int, np.ndarray]:
        """Return the length and the rows of the batch of a step, from 0."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch).batch(number)

    def __getstate__(self) -> dict[str, object]:
        names = [field.name for field in dataclasses.fields(self)]
        return {name: self.__dict__[name] for name in names}

    def _epoch(self, epoch: int) -> Epoch:
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != epoch:
            kept = epoch, self._shuffled(epoch)
            self.__dict__["_kept"] = kept
        return kept[1]

    def _shuffled(self, epoch: int) -> Epoch:
        shuffled = lambda size, seed: order.permutation(
            np.arange(size), size=size, seed=seed, epoch=epoch
        )
        index_N = shuffled(len(self.lengths_N), self.seed)
        plain = _batches(index_N, self._bucket_N[index_N], self.buckets)
        order_K = shuffled(len(plain), order.part_seed(self.seed, 0))
        return dataclasses.replace(
            plain,
            bucket_K=plain.bucket_K[order_K],
            first_K=plain.first_K[order_K],
            stop_K=plain.stop_K[order_K],
        )


def in_order(lengths_N: np.ndarray, buckets: Buckets) -> Epoch:
    """Return batches that hold each row once, the shortest first."""
    return _batches(np.arange(len(lengths_N)), buckets.place(lengths_N), buckets)


def _batches(index_N: np.ndarray, bucket_N: np.ndarray, buckets: Buckets) -> Epoch:
    """Cut the rows of each bucket, in their order, into batches."""
    by_bucket = np.argsort(bucket_N, kind="stable")
    ends = np.cumsum(np.bincount(bucket_N, minlength=len(buckets.lengths)))
    cuts = [
        (bucket, first, min(first + rows, int(end)))
        for bucket, (rows, end) in enumerate(zip(buckets.num_rows, ends, strict=True))
        for first in range(int(ends[bucket - 1]) if bucket else 0, int(end), rows)
    ]
    bucket_K, first_K, stop_K = np.array(cuts).reshape(-1, 3).T
    return Epoch(
        buckets=buckets,
        bucket_K=bucket_K,
        first_K=first_K,
        stop_K=stop_K,
        members_N=index_N[by_bucket],
    )


def ladder(longest: int) -> tuple[int, ...]:
    """Return lengths for rows that are not known before: 16, 32, ... and `longest`."""
    return (*_doubles(longest), longest)


def _doubles(longest: int) -> Iterator[int]:
    length = 2 * MULTIPLE
    while length < longest:
        yield length
        length *= 2
