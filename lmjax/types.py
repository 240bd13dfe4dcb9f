"""The types of data that packages pass to each other, and the names of their leaves."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Array = jax.Array
# Nested dicts of arrays, and the same tree with a tuple of logical axis names per leaf.
Params = dict[str, Any]
Axes = dict[str, Any]

# One schema for every task. A decoder's batch holds, each (B, T):
#   tokens, targets  int32
#   weights          float32, 0 where a target has no loss
#   segments         int32, the number of a token's document within its row; 0: padding
#   positions        int32, from 0 in each document; with contiguous windows they
#                    continue from one window of a row to the next
# An encoder-decoder's also has source, source_segments and source_positions, (B, S).
# Masked language modelling predicts K positions of a row: targets, weights and
# predict_positions are (B, K). With pairs of sentences there are token_types (B, T),
# 0 in the first and 1 in the second, and pair_labels (B,), 1 where they were swapped.
# Preferences have a second completion for each row, whose arrays are named rejected_*;
# with single completions there is is_desirable (B,), 1 where people like it.
# Word vectors are learned from tokens, segments, reach (B, T), how many words on each
# side are neighbours of a word, and noise (B, K), words drawn at random.
# A tagger's token_types encode the capitalization of words.
# Span extraction has context (B, T), 1 where an answer may begin and end, and the first
# and last position of the right one, starts and ends (B,); both are 0, the position of
# the first token, where there is no answer.
Batch = dict[str, Any]  # NumPy before `put_batch`, jax after
HostBatch = dict[str, np.ndarray]

# A metric is (sum, weight); both add up over microbatches, devices and processes.
Metrics = dict[str, tuple[Any, Any]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a training step reads and writes."""

    step: Array  # int32, updates done
    params: Params
    opt_state: Any
    key: Array  # never advances: the key of each step is folded from it
    num_skipped: Array  # int32, updates left out because they were not finite
    ema_params: Params | None = None
    # With contiguous windows, the recurrent state of each row; batch dimension first.
    carry: dict[str, Array] | None = None

    @property
    def eval_params(self) -> Params:
        """The parameters to evaluate: their moving average where the run keeps one."""
        return self.params if self.ema_params is None else self.ema_params


def leaf_name(path: Any) -> str:
    """Return the dotted name of a leaf, such as "decoder.layers.attention.query"."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def named_leaves(
    tree: Any, *, is_leaf: Callable[[Any], bool] | None = None
) -> dict[str, Any]:
    """Return the leaves of a tree by their dotted names, in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {leaf_name(path): leaf for path, leaf in leaves}


def named_axes(axes: Axes) -> dict[str, tuple[str, ...]]:
    """Return the logical axes of parameters by their dotted names."""
    return named_leaves(axes, is_leaf=lambda x: isinstance(x, tuple))


def combine(a: Params, b: Params) -> Params:
    """Return one tree of two that each have None where the other has a leaf."""
    is_none = lambda x: x is None
    return jax.tree.map(lambda x, y: y if x is None else x, a, b, is_leaf=is_none)
