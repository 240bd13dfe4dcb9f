"""Windows of equal length, cut from the stream of a token store.

A window covers targets: stream[a : a + length]. Its inputs are the stream one token
earlier, except that a document's first token is predicted from BOS where there is
one. So every token is a target once, BOS is never one, and no length is spent on it.

Shapes: B windows, T = length.
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from lmjax.data import order
from lmjax.data.stores.token_store import TokenStore

if TYPE_CHECKING:
    from lmjax.types import HostBatch


def num_windows(num_tokens: int, *, length: int) -> int:
    """Count the windows that cover a stream."""
    return -(-num_tokens // length)


def train_starts(
    index: np.ndarray, *, num_tokens: int, length: int, seed: int
) -> np.ndarray:
    """Return where the windows of training samples begin in a store's stream.

    The stream is a circle. Each epoch cuts it at other places, and goes through its
    windows in another order.

    Args:
      index: numbers of samples, counted through all epochs.
      num_tokens: length of the stream.
      length: tokens in a window.
      seed: decides the cuts and the order.
    """
    size = num_windows(num_tokens, length=length)
    epoch, position = np.divmod(index, size)
    window = order.permutation(position, size=size, seed=seed, epoch=epoch)
    shift = order.offset(epoch, size=length, seed=seed)
    return (shift + window * length) % num_tokens


def cut_windows(
    store: TokenStore,
    starts: np.ndarray,
    *,
    length: int,
    bos_id: int | None,
    eos_id: int | None,
    isolate: bool,
    circular: bool,
    sizes: np.ndarray | None = None,
    before: np.ndarray | None = None,
) -> "HostBatch":
    """Cut the windows that begin at `starts`.

    Args:
      store: the stream.
      starts: (B,) positions in it; one past the end gives a row of padding.
      length: T, tokens in a window.
      bos_id: the input of a document's first token; None: the token before it.
      eos_id: what padding is filled with; None: id 0.
      isolate: number each window's documents 1, 2, ... in `segments`, and restart
        `positions` with each. Without BOS a document's first token then has nothing
        to be predicted from, and its weight is 0. Otherwise a window is one segment.
      circular: after the stream's last token comes its first, though no window holds
        a token twice. Otherwise what lies past the end is padding.
      sizes: (B,) tokens of each window, the rest of which is padding; None: T.
      before: (B,) the position of each window's first token, unless a document begins
        there that is to be isolated; None: 0.

    Returns:
      int32 tokens, targets, segments, positions and float32 weights, all (B, T).
      Padding has segment, position and weight 0.
    """
    filler = 0 if eos_id is None else eos_id
    sizes = np.full(len(starts), length) if sizes is None else sizes
    before = np.zeros(len(starts), np.int64) if before is None else before
    cut = _cut(store, starts, sizes, length=length, filler=filler, circular=circular)
    tokens_BT = np.where(cut.real_BT, cut.before_BT, filler)
    weights_BT, begins_BT = cut.real_BT, cut.begins_BT
    if bos_id is not None:
        tokens_BT = np.where(begins_BT, bos_id, tokens_BT)
    elif isolate:
        weights_BT = cut.real_BT & ~begins_BT
    segments_BT, positions_BT = _segments(begins_BT & isolate, before)
    return {
        "tokens": tokens_BT.astype(np.int32),
        "targets": cut.targets_BT,
        "weights": weights_BT.astype(np.float32),
        "segments": np.where(cut.real_BT, segments_BT, 0).astype(np.int32),
        "positions": np.where(cut.real_BT, positions_BT, 0).astype(np.int32),
    }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Cut:
    """What windows hold of a stream."""

    targets_BT: np.ndarray
    before_BT: np.ndarray  # the token before each of them
    begins_BT: np.ndarray  # whether it is a document's first
    real_BT: np.ndarray  # whether it is there


def _cut(
    store: TokenStore,
    starts: np.ndarray,
    sizes: np.ndarray,
    *,
    length: int,
    filler: int,
    circular: bool,
) -> _Cut:
    shape = (len(starts), length)
    before_BT, targets_BT = (np.full(shape, filler, np.int32) for _ in range(2))
    begins_BT, real_BT = (np.zeros(shape, bool) for _ in range(2))
    for row, (start, size) in enumerate(zip(map(int, starts), sizes, strict=True)):
        if 0 < start <= store.num_tokens:
            before_BT[row, 0] = store.read(start - 1, start)[0]
        runs = _runs(start, int(size), store.num_tokens, circular=circular)
        for at, low, high in runs:
            targets_BT[row, at : at + high - low] = store.read(low, high)
            begins_BT[row, store.document_starts(low, high) - low + at] = True
            real_BT[row, at : at + high - low] = True
    before_BT[:, 1:] = targets_BT[:, :-1]
    return _Cut(
        targets_BT=targets_BT, before_BT=before_BT, begins_BT=begins_BT, real_BT=real_BT
    )


def _runs(
    start: int, length: int, num_tokens: int, *, circular: bool
) -> Iterator[tuple[int, int, int]]:
    """Yield (place in the window, start, stop) of what a window takes of a stream."""
    stop = min(start + length, num_tokens)
    if start < stop:
        yield 0, start, stop
    taken = max(0, stop - start)
    rest = min(length - taken, start) if circular else 0
    if rest > 0:
        yield taken, 0, rest


def _segments(
    cuts_BT: np.ndarray, before_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Number the stretches between cuts from 1, and the tokens of each from 0.

    Tokens that follow no cut are numbered from `before_B`.
    """
    place_T = np.arange(cuts_BT.shape[1])
    first_BT = np.where(cuts_BT, place_T, -before_B[:, None])
    first_BT = np.maximum.accumulate(first_BT, axis=1)
    inner_BT = cuts_BT & (place_T > 0)  # a cut at the window's start divides nothing
    return inner_BT.cumsum(axis=1) + 1, place_T - first_BT
