"""FLOPs of a training step: the common parts of the models' `count_macs`.

The FLOPs of training are 6 for each multiply-add of the forward pass (2 forward, 4
backward). Counted are matrix products (lookups are free, a tied table counts for the
logits) and the scores and weighted sums of attention; work repeated by
rematerialization is not (Chowdhery et al. 2022, PaLM, appendix B).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from lmjax.config.model import ModelBaseConfig, TransformerConfig
from lmjax.types import Batch, named_leaves

_MATRICES = (".kernel", ".codes", ".factor_a", ".factor_b")
# From prefixes of names to the number of weights in the kernels of that name.
KernelSizes = Callable[..., int]


def num_tokens(batch: Batch) -> int:
    """Return the tokens of a batch, those of its sources included."""
    names = ("tokens", "source", "rejected_tokens")
    return sum(batch[name].size for name in names if name in batch)


def kernel_sizes(shapes: Any) -> KernelSizes:
    """Return a function that counts the weights of kernels by their names' prefixes."""
    sizes = {
        name: leaf.size * 2 if leaf.dtype == jnp.uint8 else leaf.size  # two a byte
        for name, leaf in named_leaves(shapes).items()
        if name.endswith(_MATRICES)
    }
    return lambda *prefixes: sum(
        size for name, size in sizes.items() if name.startswith(prefixes)
    )


def head_macs(config: ModelBaseConfig, kernels: KernelSizes, batch: Batch) -> float:
    """Return the multiply-adds of the head that a batch trains, for one row.

    That is the classifier over labels or answer starts, else the logits over the
    vocabulary, at all positions or at those with targets.
    """
    rows, length = batch["tokens"].shape
    if "labels" in batch:  # one a row, or one a token
        return kernels("classifier.") * batch["labels"].size / rows
    if "starts" in batch:
        return kernels("classifier.") * length
    num_logits = batch["targets"].shape[1] if "targets" in batch else length
    return num_logits * (kernels("head.") + config.vocab_size * config.width)


def attention_macs(config: TransformerConfig, pairs: float) -> float:
    """Return the multiply-adds of scores and weighted sums of (query, key) pairs."""
    return 2 * config.num_heads * config.head_dim * pairs


def causal_pairs(config: TransformerConfig, length: int) -> float:
    """Return the (query, key) pairs of a causal row, on average over the layers.

    A query sees half of the row on average, and in layers with a window at most that.
    """
    everything = length**2 / 2
    if not config.window or config.window >= length:
        return everything
    within = length * config.window * (1 - config.window / (2 * length))
    is_global = config.global_flags(config.num_layers)
    share = sum(is_global) / len(is_global)
    return share * everything + (1 - share) * within
