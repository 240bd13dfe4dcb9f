"""Ids that people hand in, as part of a batch. B batch, T length."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from lmjax.config.model import ModelConfig, TransformerConfig
from lmjax.errors import ConfigError
from lmjax.types import Array, Batch, HostBatch


def stretch(name: str, ids: Any, segments: Any, *, config: ModelConfig) -> HostBatch:
    """Return ids, segments, and positions that restart where the segment changes.

    Raises:
      ConfigError: the shapes disagree, or the model has no such id or position.
    """
    ids_BT = np.asarray(ids)
    if ids_BT.ndim != 2 or not np.issubdtype(ids_BT.dtype, np.integer):
        raise ConfigError(
            f"{name}: must be integers of shape (B, T), not {ids_BT.dtype} "
            f"{ids_BT.shape}"
        )
    if ids_BT.size and not 0 <= ids_BT.min() <= ids_BT.max() < config.vocab_size:
        raise ConfigError(
            f"{name}: ids from {ids_BT.min()} to {ids_BT.max()}; "
            f"config.model.vocab_size = {config.vocab_size}"
        )
    segments_BT = np.ones_like(ids_BT) if segments is None else np.asarray(segments)
    if segments_BT.shape != ids_BT.shape:
        raise ConfigError(
            f"{name}: shape {ids_BT.shape}, but its segments {segments_BT.shape}"
        )
    index = np.arange(ids_BT.shape[1])
    changes = np.diff(segments_BT, axis=1, prepend=segments_BT[:, :1] - 1) != 0
    positions_BT = index - np.maximum.accumulate(np.where(changes, index, 0), axis=1)
    longest = int(positions_BT.max(initial=-1)) + 1
    tables = ("learned", "sinusoidal")
    limited = isinstance(config, TransformerConfig) and config.position in tables
    if limited and longest > config.max_length:
        raise ConfigError(
            f"{name}: a text of {longest} tokens; config.model.max_length = "
            f"{config.max_length}"
        )
    return {"tokens": ids_BT, "segments": segments_BT, "positions": positions_BT}


def one_by_one(compute: Callable[[Batch], Array], batch: Batch) -> Array:
    """Return what is computed (B, T, ...) of each text of rows that hold several.

    Args:
      compute: reads of each row one text, that of segment 1.
      batch: segments and source_segments, and what else it reads.
    """
    segments_BT = batch["segments"]
    found: Array | None = None
    for number in np.unique(segments_BT[segments_BT > 0]).tolist() or [1]:
        names = ("segments", "source_segments")
        alone = {name: jnp.int32(batch[name] == number) for name in names}
        new = compute({**batch, **alone})
        here_BT1 = (segments_BT == number)[..., None]
        found = new if found is None else jnp.where(here_BT1, new, found)
    assert found is not None
    return found
