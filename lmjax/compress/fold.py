"""Inputs of linear layers scaled, and their matrices the other way: nothing changes.

The scales are folded into what the layers read: a norm, or the outputs of another
linear layer. L layers, I inputs.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from lmjax.config.model import TransformerConfig
from lmjax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Fold:
    """Linear layers of a block that read the same, and what writes it.

    Attributes:
      readers: the layers, such as "attention.query".
      writer: a norm, or a linear layer whose outputs they are, or are multiplied by.
    """

    readers: tuple[str, ...]
    writer: str

    @property
    def follows_norm(self) -> bool:
        """Whether the layers read the output of a norm."""
        return self.writer.endswith("norm")


def find_folds(config: TransformerConfig) -> list[Fold]:
    """Return the scales that blocks of a model can fold.

    A norm is read by nothing else if it comes before its sublayer. The outputs of
    values reach `out` as they are, if as many heads have values as queries, and those
    of `up` reach `down` in gated layers.
    """
    c, folds = config, []
    if c.norm_place in ("pre", "both"):
        projections = ("attention.query", "attention.key", "attention.value")
        if c.first_norm:
            folds.append(Fold(projections, "attention_norm"))
        folds.append(Fold(("cross_attention.query",), "cross_attention_norm"))
        folds.append(Fold(("mlp.up", "mlp.gate"), "mlp_norm"))
    if c.num_kv_heads == c.num_heads:
        folds.append(Fold(("attention.out",), "attention.value"))
        folds.append(Fold(("cross_attention.out",), "cross_attention.value"))
    if c.gated:
        folds.append(Fold(("mlp.down",), "mlp.up"))
    return folds


def readers_of(fold: Fold, blocks: Params) -> list[str]:
    """Return the readers that the blocks have, if they have the writer."""
    has = lambda name: get(blocks, name) is not None
    return [name for name in fold.readers if has(name)] if has(fold.writer) else []


def get(blocks: Params, name: str) -> Any:
    """Return the parameters of a layer, by its dotted name; None if it has none."""
    tree: Any = blocks
    for part in name.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def fold(
    blocks: Params, fold: Fold, scale_LI: Array, *, config: TransformerConfig
) -> Params:
    """Return blocks in which the readers' inputs are divided by scales.

    Args:
      blocks: parameters with a leading axis of layers.
      fold: one of `find_folds`.
      scale_LI: for each layer and input.
      config: of the model.
    """
    for name in readers_of(fold, blocks):
        kernel = get(blocks, name)["kernel"]
        inputs = kernel.shape[1:3] if name.endswith(".out") else kernel.shape[1:2]
        ones = [1] * (kernel.ndim - 1 - len(inputs))
        scaled = kernel * scale_LI.reshape(len(kernel), *inputs, *ones)
        blocks = _replace(blocks, name, {"kernel": scaled})
    writer = get(blocks, fold.writer)
    if not fold.follows_norm:
        return _replace(blocks, fold.writer, _divide_outputs(writer, scale_LI))
    changed = {"bias": writer["bias"] / scale_LI} if "bias" in writer else {}
    plus = 1.0 if config.norm == "rmsnorm1p" else 0.0
    changed["scale"] = (writer["scale"] + plus) / scale_LI - plus
    return _replace(blocks, fold.writer, changed)


def _divide_outputs(writer: Params, scale_LI: Array) -> Params:
    kernel = writer["kernel"]  # (L, D, *outputs)
    outputs = scale_LI.reshape(len(kernel), 1, *kernel.shape[2:])
    changed = {"kernel": kernel / outputs}
    if "bias" in writer:
        changed["bias"] = writer["bias"] / outputs[:, 0]
    return changed


def _replace(blocks: Params, name: str, changed: Params) -> Params:
    """Return blocks with some parameters of a layer replaced."""
    first, _, rest = name.partition(".")
    new = _replace(blocks[first], rest, changed) if rest else blocks[first] | changed
    return {**blocks, first: new}


def safe(scale_LI: Array) -> Array:
    """Return scales between 1e-4 and 1e4: others would lose precision elsewhere."""
    return jnp.clip(jnp.where(jnp.isfinite(scale_LI), scale_LI, 1.0), 1e-4, 1e4)
