"""Length buckets: rows of similar lengths share a batch, so that little is padding.

A few bucket lengths are chosen from the histogram of all lengths: each is one shape,
for which a step is compiled. All batches hold about equally many tokens. The order is a
pure function of the seed and the epoch, and an epoch holds each row once.

N rows of a store, K batches of an epoch, C candidate lengths. An example may have
several rows.
"""

import dataclasses
import functools
import math

import numpy as np

from lmjax.data import order

MULTIPLE = 8  # divides all lengths, and row counts where it divides the batch size
PADDING = -1  # the number of a row of padding
_MAX_CANDIDATES = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buckets:
    """Lengths, ascending, and the number of rows in a batch of each length."""

    lengths: tuple[int, ...]
    num_rows: tuple[int, ...]

    def assign(self, lengths_N: np.ndarray) -> np.ndarray:
        """Return the index of each row's bucket: the shortest that holds it."""
        return np.searchsorted(self.lengths, lengths_N)

    def rows_per_epoch(self, lengths_N: np.ndarray) -> np.ndarray:
        """Return the rows of each bucket's batches in an epoch, padding included."""
        counts = np.bincount(self.assign(lengths_N), minlength=len(self.lengths))
        return -(-counts // np.array(self.num_rows)) * self.num_rows

    def __str__(self) -> str:
        pairs = zip(self.num_rows, self.lengths, strict=True)
        return ", ".join(f"{rows} x {length}" for rows, length in pairs)


def choose_buckets(
    lengths_N: np.ndarray, *, num_buckets: int, batch_size: int, data_shards: int
) -> Buckets:
    """Choose the buckets with the least padding.

    A batch holds `batch_size` rows on average, so that an epoch has as many batches as
    without buckets; with one bucket it holds exactly that many. Where `batch_size` is
    a multiple of 8, so are row counts, for all `data_shards` that divide 8: then the
    batches are the same on another number of devices.

    Args:
      lengths_N: of the rows, in tokens.
      num_buckets: the maximum.
      batch_size: rows.
      data_shards: divides each row count. A run keeps those that it began with.
    """
    lengths = choose_lengths(lengths_N, num_buckets=num_buckets)
    padded_N = np.array(lengths)[np.searchsorted(lengths, lengths_N)]
    unit = math.lcm(math.gcd(batch_size, MULTIPLE), data_shards)
    budget = batch_size * float(padded_N.mean())
    rows = (max(1, round(budget / (length * unit))) * unit for length in lengths)
    return Buckets(lengths=lengths, num_rows=tuple(rows))


def choose_lengths(lengths_N: np.ndarray, *, num_buckets: int) -> tuple[int, ...]:
    """Choose at most `num_buckets` lengths that leave the least padding.

    They are multiples of 8; the last one is the length of the longest row, rounded up.
    Found by dynamic programming over the histogram.
    """
    longest = int(lengths_N.max())
    width = MULTIPLE * -(-longest // (MULTIPLE * _MAX_CANDIDATES))
    step_N = -(-np.maximum(lengths_N, 1) // width)  # rounded up to candidates
    count_C = np.bincount(step_N)  # no row has 0 tokens
    below_C = np.cumsum(count_C)
    size_C = np.arange(len(count_C)) * width
    # cost_CC[i, j]: tokens that rows longer than i, up to j, take in a bucket of j.
    cost_CC = (below_C[None, :] - below_C[:, None]) * size_C[None, :].astype(float)
    cost_CC[np.tril_indices(len(count_C))] = np.inf
    best_C, came_from = cost_CC[0], []
    for _ in range(num_buckets - 1):
        through_CC = best_C[:, None] + cost_CC
        previous_C = through_CC.argmin(axis=0)
        shorter_C = through_CC.min(axis=0)
        previous_C[shorter_C >= best_C] = 0  # another bucket saves nothing
        came_from.append(previous_C)
        best_C = np.minimum(shorter_C, best_C)
    chosen = [len(count_C) - 1]
    for previous_C in reversed(came_from):
        if previous := int(previous_C[chosen[-1]]):
            chosen.append(previous)
    return tuple(int(size_C[c]) for c in reversed(chosen))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Epoch:
    """The batches of an epoch: each has a bucket, and some of its rows."""

    buckets: Buckets
    bucket_K: np.ndarray
    first_K: np.ndarray  # the rows of a batch are members_N[first : stop]
    stop_K: np.ndarray
    members_N: np.ndarray  # rows, sorted by bucket

    def __len__(self) -> int:
        return len(self.bucket_K)

    def batch(self, number: int) -> tuple[int, np.ndarray]:
        """Return the length of a batch and its rows; the last ones may be PADDING."""
        bucket = int(self.bucket_K[number])
        members = self.members_N[self.first_K[number] : self.stop_K[number]]
        missing = self.buckets.num_rows[bucket] - len(members)
        padded = np.pad(members, (0, missing), constant_values=PADDING)
        return self.buckets.lengths[bucket], padded


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """The training batches of all steps, to read at random."""

    lengths_N: np.ndarray
    buckets: Buckets
    seed: int

    @functools.cached_property
    def _bucket_N(self) -> np.ndarray:
        return self.buckets.assign(self.lengths_N)

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        """Count the batches of an epoch, the same in every epoch."""
        return len(sorted_epoch(self.lengths_N, self.buckets))

    def batch(self, step: int) -> tuple[int, np.ndarray]:
        """Return the length and the rows of the batch of a step, counted from 0."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch).batch(number)

    def __getstate__(self) -> dict[str, object]:
        # Cached properties and epochs are computed again rather than pickled.
        names = [field.name for field in dataclasses.fields(self)]
        return {name: self.__dict__[name] for name in names}

    def _epoch(self, epoch: int) -> Epoch:
        latest = self.__dict__.get("_latest")
        if latest is None or latest[0] != epoch:
            latest = epoch, self._shuffle(epoch)
            self.__dict__["_latest"] = latest
        return latest[1]

    def _shuffle(self, epoch: int) -> Epoch:
        """Shuffle the rows, cut them into batches, and shuffle the batches."""
        permutation = lambda size, seed: order.permutation(
            np.arange(size), size=size, seed=seed, epoch=epoch
        )
        index_N = permutation(len(self.lengths_N), self.seed)
        batches = _cut_batches(index_N, self._bucket_N[index_N], self.buckets)
        order_K = permutation(len(batches), order.source_seed(self.seed, 0))
        return dataclasses.replace(
            batches,
            bucket_K=batches.bucket_K[order_K],
            first_K=batches.first_K[order_K],
            stop_K=batches.stop_K[order_K],
        )


def sorted_epoch(lengths_N: np.ndarray, buckets: Buckets) -> Epoch:
    """Return batches that hold each row once, the shortest buckets first."""
    index_N = np.arange(len(lengths_N))
    return _cut_batches(index_N, buckets.assign(lengths_N), buckets)


def _cut_batches(index_N: np.ndarray, bucket_N: np.ndarray, buckets: Buckets) -> Epoch:
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


def pad_rows(index_B: np.ndarray, *, multiple: int) -> np.ndarray:
    """Return rows of a batch with rows of padding, up to a multiple."""
    padding = (0, -len(index_B) % multiple)
    return np.pad(index_B, padding, constant_values=PADDING)


def doubling_lengths(longest: int) -> tuple[int, ...]:
    """Return lengths for rows not known in advance: 16, 32, ... and `longest`."""
    lengths = [2 * MULTIPLE]
    while lengths[-1] < longest:
        lengths.append(2 * lengths[-1])
    return (*lengths[:-1], longest)
