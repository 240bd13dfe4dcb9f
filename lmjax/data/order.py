"""The order of the data: a pure function of the seed and the sample's number.

Nothing is shuffled in memory. A keyed bijection takes a position of an epoch to the
window that is seen there, and a fixed pattern deals samples out to the parts of a
mixture, so any sample can be found at any time at the same small cost.
"""

import functools

import numpy as np

PATTERN = 4096  # samples after which the dealing to a mixture's parts repeats

_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15


def permutation(
    index: np.ndarray, *, size: int, seed: int, epoch: np.ndarray | int
) -> np.ndarray:
    """Map positions to a shuffled order of [0, size), one to one in each epoch.

    A Feistel network permutes the next power of four; a result that is not below
    `size` is sent through again until it is (Black and Rogaway, 2002).

    Args:
      index: int64 positions in [0, size), of any shape.
      size: length of an epoch.
      seed: with the epoch, the key.
      epoch: one for all, or one for each position.

    Returns:
      int64, the shape of `index`.
    """
    shape = np.shape(index)
    value, keys = np.broadcast_arrays(
        np.ravel(index), key(seed, "order", np.ravel(epoch))
    )
    value = value.astype(np.uint64)
    half = max(1, -(-(size - 1).bit_length() // 2))
    outside = np.ones(len(value), bool)
    while outside.any():
        value[outside] = _feistel(value[outside], keys[outside], half=half)
        outside = value >= size
    return value.astype(np.int64).reshape(shape)


def offset(epoch: np.ndarray, *, size: int, seed: int) -> np.ndarray:
    """Return a number in [0, size) for each epoch."""
    return (key(seed, "offset", epoch) % np.uint64(size)).astype(np.int64)


def deal(
    index: np.ndarray, *, weights: tuple[float, ...], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Deal samples to the parts of a mixture in proportion to their weights.

    Every `PATTERN` samples in a row hold the same number of each part, which is
    within one of its exact share, and at least one.

    Returns:
      For each sample its part, and its number among the samples of that part.
    """
    pattern, rank = _pattern(weights, seed)
    counts = np.bincount(pattern, minlength=len(weights))
    block, slot = np.divmod(index, PATTERN)
    part = pattern[slot]
    return part, block * counts[part] + rank[slot]


def key(seed: int, purpose: str, number: np.ndarray | int = 0) -> np.ndarray:
    """Return uint64 keys, one for each number, that differ between purposes."""
    tag = int.from_bytes(purpose.encode()[:8], "little")
    start = _mix(_words(seed) ^ _mix(_words(tag)))
    return _mix(start + _words(number) * np.uint64(_GOLDEN))


def part_seed(seed: int, part: int) -> int:
    """Return the seed of one part of a mixture."""
    return int(key(seed, "part", part)[0])


@functools.lru_cache(maxsize=16)
def _pattern(weights: tuple[float, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the part of each slot, and the slot's rank among those of its part."""
    parts = np.repeat(np.arange(len(weights)), _counts(weights))
    slots = np.arange(PATTERN)
    pattern = parts[permutation(slots, size=PATTERN, seed=seed, epoch=0)]
    rank = np.zeros(PATTERN, np.int64)
    for part in range(len(weights)):
        here = pattern == part
        rank[here] = np.arange(here.sum())
    return pattern, rank


def _counts(weights: tuple[float, ...]) -> np.ndarray:
    """Divide PATTERN slots by largest remainder; nobody goes without."""
    free = PATTERN - len(weights)
    exact = np.array(weights) / sum(weights) * PATTERN
    exact = np.maximum(exact - 1, 0)
    exact *= free / exact.sum() if exact.sum() else 0
    counts = exact.astype(np.int64)
    most_owed = np.argsort(counts - exact, kind="stable")
    counts[most_owed[: free - counts.sum()]] += 1
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
    """Scramble 64 bits (the finalizer of SplitMix64; Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _words(number: np.ndarray | int) -> np.ndarray:
    """Return numbers as a 1-D array, whose products wrap round without a warning."""
    return np.atleast_1d(np.asarray(number)).astype(np.uint64)
