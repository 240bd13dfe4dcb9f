"""The data types that flow between rooms."""

import dataclasses
from typing import Any

import jax
import numpy as np

Array = jax.Array
# Nested dicts of arrays, and the same tree with tuples of logical axis names.
Params = dict[str, Any]
Axes = dict[str, Any]
# One schema for every task. A decoder's batch holds, each (B, T):
#   tokens, targets  int32
#   weights          float32, 0 where a target carries no loss
#   segments         int32, which document of its row a token belongs to; 0 = padding
#   positions        int32, restarting at each document; in contiguous order they go
#                    on from window to window
# An encoder-decoder's holds source, source_segments and source_positions (B, S) beside.
# Masked language modelling predicts at K places of a row: targets, weights and
# predict_positions are (B, K). With pairs of texts it has token_types (B, T), which of
# the two a token is of, and pair_labels (B,), 1 where they are swapped. Of words to tag
# token_types may tell the capitals.
# Where answers are found in texts, context (B, T) is 1 where one may begin and end, and
# starts and ends (B,) are where the right one does: at 0, the first token, if nowhere.
Batch = dict[str, Any]  # NumPy before `device.put_batch`, jax after
HostBatch = dict[str, np.ndarray]
# A metric is (sum, weight); they add up over microbatches, devices and hosts.
Metrics = dict[str, tuple[Any, Any]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a training step reads and writes."""

    step: Array  # int32, updates done
    params: Params
    opt_state: Any
    key: Array  # never advances: step keys are folded from it
    num_skipped: Array  # int32, updates left out because they were not finite
    ema_params: Params | None = None
    # What a recurrent network remembers of each row, where its next window goes on
    # from there; the batch dimension comes first.
    carry: dict[str, Array] | None = None
