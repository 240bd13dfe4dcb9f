"""Batches of token ids that callers pass in. B batch, T length."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from lmjax.config.model import ModelConfig
from lmjax.errors import UserError
from lmjax.types import Array, Batch, HostBatch


def make_batch(name: str, ids: Any, segments: Any, *, config: ModelConfig) -> HostBatch:
    """Return ids, segments, and positions that restart where the segment changes.

    Args:
      name: of the ids, for errors.
      ids: integers (B, T).
      segments: (B, T), 0 for padding; None: each row is one text.
      config: of the model.

    Raises:
      UserError: the shapes disagree, or the model has no such id or position.
    """
    ids_BT = np.asarray(ids)
    if ids_BT.ndim != 2 or not np.issubdtype(ids_BT.dtype, np.integer):
        raise UserError(
            f"{name}: must be integers of shape (B, T), not {ids_BT.dtype} "
            f"{ids_BT.shape}"
        )
    if ids_BT.size and not 0 <= ids_BT.min() <= ids_BT.max() < config.vocab_size:
        raise UserError(
            f"{name}: ids from {ids_BT.min()} to {ids_BT.max()}; "
            f"config.model.vocab_size = {config.vocab_size}"
        )
    segments_BT = np.ones_like(ids_BT) if segments is None else np.asarray(segments)
    if segments_BT.shape != ids_BT.shape:
        raise UserError(
            f"{name}: shape {ids_BT.shape}, but its segments {segments_BT.shape}"
        )
    index = np.arange(ids_BT.shape[1])
    changes = np.diff(segments_BT, axis=1, prepend=segments_BT[:, :1] - 1) != 0
    positions_BT = index - np.maximum.accumulate(np.where(changes, index, 0), axis=1)
    longest = int(positions_BT.max(initial=-1)) + 1
    if longest > config.max_positions:
        raise UserError(
            f"{name}: a text of {longest} tokens; config.model.max_length = "
            f"{config.max_length}"
        )
    return {"tokens": ids_BT, "segments": segments_BT, "positions": positions_BT}


def map_segments(compute: Callable[[Batch], Array], batch: Batch) -> Array:
    """Apply a function that takes one text per row to rows of several texts.

    Args:
      compute: from a batch whose texts have segment 1 to an array (B, T, ...).
      batch: with segments and source_segments.

    Returns:
      Each text's part of the result, where the text is in its row.
    """
    segments_BT = batch["segments"]
    result: Array | None = None
    for segment in np.unique(segments_BT[segments_BT > 0]).tolist() or [1]:
        names = ("segments", "source_segments")
        one = {name: jnp.int32(batch[name] == segment) for name in names}
        computed = compute({**batch, **one})
        mask_BT1 = (segments_BT == segment)[..., None]
        result = computed if result is None else jnp.where(mask_BT1, computed, result)
    assert result is not None
    return result


def pad_lengths(batch: Batch, padded: Callable[[int], int]) -> Batch:
    """Return arrays (B, T) padded on the right with 0, of segment 0.

    Args:
      batch: with segments, and of an encoder-decoder source_segments.
      padded: from a length to the padded one.
    """
    widths = {name: max(padded(x.shape[1]), x.shape[1]) for name, x in batch.items()}
    return {
        name: jnp.pad(x, ((0, 0), (0, widths[name] - x.shape[1])))
        for name, x in batch.items()
    }
