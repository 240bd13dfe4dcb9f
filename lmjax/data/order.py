"""The order of the data: a pure function of the seed and the number of a sample.

Nothing is shuffled in memory. A keyed bijection maps a position in an epoch to the
window that is seen there, and a fixed pattern assigns samples to the sources of a
mixture. So any sample of any epoch can be computed at the same small cost.
"""

import functools

import numpy as np

MIXTURE_PERIOD = 4096  # samples after which the assignment to sources repeats

_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15


def permutation(
    index: np.ndarray, *, size: int, seed: int, epoch: np.ndarray | int
) -> np.ndarray:
    """Map positions to a shuffled order of [0, size), one to one in each epoch.

    A Feistel network permutes the next power of four; a result that is not below
    `size` is permuted again until it is (cycle walking; Black and Rogaway, 2002).

    Args:
      index: int64 positions in [0, size), of any shape.
      size: length of an epoch.
      seed: the key, together with the epoch.
      epoch: one for all, or one for each position.

    Returns:
      int64, the shape of `index`.
    """
    shape = np.shape(index)
    value, keys = np.broadcast_arrays(
        np.ravel(index), hash_keys(seed, "order", np.ravel(epoch))
    )
    value = value.astype(np.uint64)
    half = max(1, -(-(size - 1).bit_length() // 2))
    outside = np.ones(len(value), bool)
    while outside.any():
        value[outside] = _feistel(value[outside], keys[outside], half=half)
        outside = value >= size
    return value.astype(np.int64).reshape(shape)


def offset(epoch: np.ndarray, *, size: int, seed: int) -> np.ndarray:
    """Return a pseudorandom number in [0, size) for each epoch."""
    return (hash_keys(seed, "offset", epoch) % np.uint64(size)).astype(np.int64)


def assign_sources(
    index: np.ndarray, *, weights: tuple[float, ...], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Assign samples to the sources of a mixture in proportion to their weights.

    Every `MIXTURE_PERIOD` consecutive samples hold the same number from each source:
    within one of its exact share, and at least one.

    Returns:
      For each sample its source, and its number among the samples of that source.
    """
    pattern, rank = _mixture_pattern(weights, seed)
    counts = np.bincount(pattern, minlength=len(weights))
    block, slot = np.divmod(index, MIXTURE_PERIOD)
    source = pattern[slot]
    return source, block * counts[source] + rank[slot]


def hash_keys(seed: int, purpose: str, number: np.ndarray | int = 0) -> np.ndarray:
    """Return a uint64 key for each number; keys of different purposes differ."""
    tag = int.from_bytes(purpose.encode()[:8], "little")
    start = _mix(_as_uint64(seed) ^ _mix(_as_uint64(tag)))
    return _mix(start + _as_uint64(number) * np.uint64(_GOLDEN))


def source_seed(seed: int, source: int) -> int:
    """Return the seed of one source of a mixture."""
    return int(hash_keys(seed, "part", source)[0])


@functools.lru_cache(maxsize=16)
def _mixture_pattern(
    weights: tuple[float, ...], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the source of each slot, and the slot's rank among those of its source."""
    sources = np.repeat(np.arange(len(weights)), _source_counts(weights))
    slots = np.arange(MIXTURE_PERIOD)
    pattern = sources[permutation(slots, size=MIXTURE_PERIOD, seed=seed, epoch=0)]
    rank = np.zeros(MIXTURE_PERIOD, np.int64)
    for source in range(len(weights)):
        here = pattern == source
        rank[here] = np.arange(here.sum())
    return pattern, rank


def _source_counts(weights: tuple[float, ...]) -> np.ndarray:
    """Divide MIXTURE_PERIOD slots by largest remainder, at least one to each source."""
    free = MIXTURE_PERIOD - len(weights)
    exact = np.array(weights) / sum(weights) * MIXTURE_PERIOD
    exact = np.maximum(exact - 1, 0)
    exact *= free / exact.sum() if exact.sum() else 0
    counts = exact.astype(np.int64)
    largest_remainder = np.argsort(counts - exact, kind="stable")
    counts[largest_remainder[: free - counts.sum()]] += 1
    return counts + 1


def _feistel(value: np.ndarray, keys: np.ndarray, *, half: int) -> np.ndarray:
    """Permute 2 * half bits."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = value >> shift, value & mask
    for i in range(_ROUNDS):
        round_key = keys + np.uint64(i * _GOLDEN % 2**64)
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return left << shift | right


def _mix(x: np.ndarray) -> np.ndarray:
    """Mix 64 bits (the finalizer of SplitMix64; Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _as_uint64(number: np.ndarray | int) -> np.ndarray:
    """Return numbers as a 1-D array: scalars would warn when a product overflows."""
    return np.atleast_1d(np.asarray(number)).astype(np.uint64)
