"""Which of the documents that the rules keep are copies of earlier ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmjax.data.clean.minhash import (
    NUM_HASHES,
    band_keys,
    find_leaders,
    rows_per_band,
    similarity,
)


class Copies(NamedTuple):
    """For each document the first that it is a copy of: itself, if it is none."""

    exact: np.ndarray
    near: np.ndarray
    signatures: np.ndarray

    def similarity(self, document: int) -> float:
        """Return how similar a near duplicate is to the document that stays."""
        pair = np.array([document]), self.near[[document]]
        return float(similarity(self.signatures, *pair)[0])


def find_copies(
    files: Sequence[Path], directory: Path, *, near: bool, threshold: float
) -> Copies:
    """Find exact and near duplicates among the documents of chunks.

    Signatures are kept in files; memory grows by some 100 bytes a document.

    Args:
      files: the arrays of the chunks, in order.
      directory: for files.
      near: also look for near duplicates.
      threshold: of their similarity.
    """
    parts = [load_array(file, "hashes").reshape(-1, 2) for file in files]
    hashes = np.concatenate(parts)
    exact = _find_exact(hashes)
    nobody = np.arange(len(exact))
    if not near or not len(exact):
        return Copies(exact, nobody, np.zeros((0, NUM_HASHES), np.uint32))
    first = np.flatnonzero(exact == nobody)
    rows = rows_per_band(threshold)
    keys, signatures = _merge_signatures(files, directory, len(exact), rows=rows)
    bands = (np.asarray(band)[first] for band in keys)
    leaders = find_leaders(bands, signatures, first, threshold=threshold)
    near_of = nobody.copy()
    near_of[first] = leaders
    return Copies(exact, near_of, signatures)


def _find_exact(hashes: np.ndarray) -> np.ndarray:
    """Return for each row of hashes (n, 2) the first that is equal."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable
    ordered = hashes[order]
    begins = np.ones(len(order), bool)
    begins[1:] = np.any(ordered[1:] != ordered[:-1], axis=1)
    leaders = np.empty(len(order), np.int64)
    leaders[order] = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    return leaders


def _merge_signatures(
    files: Sequence[Path], directory: Path, count: int, *, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the band keys (bands, n) and the signatures (n, hashes), mapped."""
    new = np.lib.format.open_memmap
    shape = (NUM_HASHES // rows, count)
    keys = new(directory / "keys.npy", mode="w+", dtype=np.uint64, shape=shape)
    shape = (count, NUM_HASHES)
    signatures = new(
        directory / "signatures.npy", mode="w+", dtype=np.uint32, shape=shape
    )
    start = 0
    for file in files:
        some = load_array(file, "signatures").reshape(-1, NUM_HASHES)
        stop = start + len(some)
        keys[:, start:stop] = band_keys(some, rows=rows)
        signatures[start:stop] = some
        start = stop
    return keys, signatures


def load_array(file: Path, name: str) -> np.ndarray:
    """Return an array of a chunk."""
    with np.load(file) as arrays:
        return np.asarray(arrays[name])
