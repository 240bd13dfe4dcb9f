"""Packing: windows of equal length, cut from the stream of a token store.

A window covers targets: stream[a : a + length]. Its inputs are the stream one token
earlier, except that a document's first token is predicted from BOS where there is
one. So every token is a target once, BOS is never one, and no length is spent on it.

Shapes: B windows, T = length.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmjax.data.lm.windows import Windows
from lmjax.data.padding import segment_positions
from lmjax.data.stores.token_store import TokenStore

if TYPE_CHECKING:
    from lmjax.types import HostBatch


def cut_windows(
    stores: Sequence[TokenStore],
    windows: Windows,
    *,
    length: int,
    bos_id: int | None,
    eos_id: int | None,
    isolate: bool,
    circular: bool,
) -> "HostBatch":
    """Return the tokens of windows as rows of a batch.

    Args:
      stores: the streams that `windows` index.
      windows: where each row lies, and how many tokens of it there are.
      length: T, tokens in a row.
      bos_id: the input of a document's first token; None: the token before it.
      eos_id: the token of padding; None: id 0.
      isolate: number each window's documents 1, 2, ... in `segments`, and restart
        `positions` with each. Without BOS a document's first token then has nothing
        to be predicted from, and its weight is 0. Otherwise a window is one segment.
      circular: after the stream's last token comes its first, though no window holds
        a token twice. Otherwise tokens past the end are padding.

    Returns:
      int32 tokens, targets, segments, positions and float32 weights, all (B, T).
      Padding has segment, position and weight 0.
    """
    fill = 0 if eos_id is None else eos_id
    shape = (len(windows), length)
    previous_BT, targets_BT = (np.full(shape, fill, np.int32) for _ in range(2))
    begins_BT, real_BT = (np.zeros(shape, bool) for _ in range(2))
    rows = zip(windows.stores, windows.starts, windows.sizes, strict=True)
    for b, (store_index, start, size) in enumerate(rows):
        store = stores[store_index]
        if 0 < start <= store.num_tokens:
            previous_BT[b, 0] = store.read(start - 1, start)[0]
        runs = _find_runs(int(start), int(size), store.num_tokens, circular=circular)
        for at, low, high in runs:
            targets_BT[b, at : at + high - low] = store.read(low, high)
            begins_BT[b, store.document_starts(low, high) - low + at] = True
            real_BT[b, at : at + high - low] = True
    previous_BT[:, 1:] = targets_BT[:, :-1]

    tokens_BT = np.where(real_BT, previous_BT, fill)
    weights_BT = real_BT
    if bos_id is not None:
        tokens_BT = np.where(begins_BT, bos_id, tokens_BT)
    elif isolate:
        weights_BT = real_BT & ~begins_BT

    # A document that begins with the window does not divide it.
    segments_BT = np.ones(shape, np.int32)
    segments_BT[:, 1:] += (begins_BT & isolate)[:, 1:].cumsum(axis=1)
    continues_BT = (segments_BT == 1) & ~(begins_BT & isolate)[:, :1]
    positions_BT = segment_positions(segments_BT)
    positions_BT = positions_BT + continues_BT * windows.first_positions[:, None]
    return {
        "tokens": tokens_BT.astype(np.int32),
        "targets": targets_BT,
        "weights": weights_BT.astype(np.float32),
        "segments": np.where(real_BT, segments_BT, 0).astype(np.int32),
        "positions": np.where(real_BT, positions_BT, 0).astype(np.int32),
    }


def _find_runs(
    start: int, length: int, num_tokens: int, *, circular: bool
) -> Iterator[tuple[int, int, int]]:
    """Yield (place in the window, start, stop) of the runs of a stream in a window."""
    stop = min(start + length, num_tokens)
    if start < stop:
        yield 0, start, stop
    taken = max(0, stop - start)
    rest = min(length - taken, start) if circular else 0
    if rest > 0:
        yield taken, 0, rest
