"""Near duplicates by MinHash: signatures, and which documents are of one kind.

Broder 1997, with bands as in Leskovec et al., Mining of Massive Datasets, section 3.4.
Two documents agree in a share of their signatures that is, on the average, the share
of their n-grams that both have (Jaccard).
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

NGRAM = 5  # words of a shingle, as in Penedo et al. 2023 (RefinedWeb)
NUM_HASHES = 128
_MISS = 0.005  # of pairs at the threshold, how many no band may find
_BLOCK = 4096  # shingles, or pairs, at once
_MAX_ROUNDS = 64  # of a band: leaders that one bucket may have
_random = np.random.default_rng(1)
_FACTORS = _random.integers(0, 1 << 63, NUM_HASHES, np.uint64) * np.uint64(2)
_FACTORS += np.uint64(1)
_TERMS = _random.integers(0, 1 << 63, NUM_HASHES, np.uint64)


def sign(shingles: np.ndarray) -> np.ndarray:
    """Return the signature of hashes, uint32 (NUM_HASHES,)."""
    least = np.full(NUM_HASHES, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(shingles), _BLOCK):
        hashed = _FACTORS[:, None] * shingles[start : start + _BLOCK]
        hashed += _TERMS[:, None]
        np.minimum(least, hashed.min(axis=1), out=least)
    return (least >> np.uint64(32)).astype(np.uint32)


def rows_per_band(threshold: float) -> int:
    """Return the most rows of which some band finds almost all pairs at a threshold."""
    rows = 1
    for more in range(1, NUM_HASHES + 1):
        missed = (1 - threshold**more) ** (NUM_HASHES // more)
        if missed <= _MISS:
            rows = more
    return rows


def band_keys(signatures: np.ndarray, *, rows: int) -> np.ndarray:
    """Return a key of each band of signatures (n, NUM_HASHES), uint64 (bands, n)."""
    num_bands = NUM_HASHES // rows
    bands = signatures[:, : num_bands * rows].reshape(len(signatures), num_bands, rows)
    keys = np.zeros((num_bands, len(signatures)), np.uint64)
    for row in range(rows):
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + bands[:, :, row].T
        keys ^= keys >> np.uint64(29)
    return keys


def find_leaders(
    bands: Iterable[np.ndarray],
    signatures: np.ndarray,
    documents: np.ndarray,
    *,
    threshold: float,
) -> np.ndarray:
    """Return for each document the first of its kind: itself, if it is that.

    Documents are of one kind if a chain of near duplicates joins them. Memory grows by
    some 100 bytes a document.

    Args:
      bands: of `band_keys`: a key for each of the documents.
      signatures: (n, NUM_HASHES), also of others.
      documents: their indices among the signatures, in order.
      threshold: the least share of equal rows of near duplicates.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(documents)
    leaders = np.arange(count)
    near = lambda a, b: similarity(signatures, documents[a], documents[b]) >= threshold
    for band in bands:
        pairs = [*_match(band, leaders, near)]
        if not pairs:
            continue
        first, other = np.concatenate(pairs, axis=1)
        first = np.concatenate([first, leaders])
        other = np.concatenate([other, np.arange(count)])
        ones = np.ones(len(first), bool)
        graph = coo_array((ones, (first, other)), shape=(count, count))
        _, kinds = connected_components(graph, directed=False)
        _, index, inverse = np.unique(kinds, return_index=True, return_inverse=True)
        leaders = index[inverse]
    return documents[leaders]


def _match(
    band: np.ndarray,
    leaders: np.ndarray,
    are_near: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Iterator[np.ndarray]:
    """Yield pairs (2, m) of near duplicates that a band finds and were of two kinds.

    All of a bucket are compared with its first; those that differ, among themselves.
    """
    order = np.argsort(band, kind="stable")
    for _ in range(_MAX_ROUNDS):
        if not len(order):
            return
        sorted_band = band[order]
        begins = np.concatenate([[True], sorted_band[1:] != sorted_band[:-1]])
        first = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
        first, order = first[~begins], order[~begins]
        near = leaders[first] == leaders[order]
        unknown = np.flatnonzero(~near)
        for start in range(0, len(unknown), _BLOCK):
            some = unknown[start : start + _BLOCK]
            near[some] = are_near(first[some], order[some])
        joined = unknown[near[unknown]]
        if len(joined):
            yield np.stack([first[joined], order[joined]])
        order = order[~near]


def similarity(
    signatures: np.ndarray, first: np.ndarray, other: np.ndarray
) -> np.ndarray:
    """Return the share of equal rows in signatures of pairs of documents."""
    return np.mean(signatures[first] == signatures[other], axis=1)
