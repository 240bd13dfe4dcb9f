"""Low-rank adapters (Hu et al. 2021): told apart from their model, or merged into it.

The adapters themselves are part of `nn.linear.Linear`: beside `kernel` there are
`lora_a` (*inputs, rank) and `lora_b` (rank, *outputs), in a trunk with a leading axis
of layers each.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from lmjax.config.model import (
    AnyTransformer,
    LoraConfig,
    ModelConfig,
    TransformerConfig,
)
from lmjax.types import Array, Params

NAMES = ("lora_a", "lora_b")


def merged(params: Params, config: ModelConfig) -> tuple[Params, ModelConfig]:
    """Return parameters and config of the same model without adapters.

    Each kernel becomes kernel + alpha / rank * lora_a @ lora_b, in float32.
    """
    if not isinstance(config, TransformerConfig):
        return params, config
    scale = config.lora.alpha / max(config.lora.rank, 1)

    def merge(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        kept = {name: merge(leaf) for name, leaf in tree.items() if name not in NAMES}
        if "lora_a" in tree:
            kept["kernel"] = tree["kernel"] + scale * product(**_adapter(tree))
        return kept

    return merge(params), without(config)


def rank(config: ModelConfig) -> int:
    """Return the rank of a model's adapters, 0 where it has none."""
    return config.lora.rank if isinstance(config, TransformerConfig) else 0


def without(config: AnyTransformer) -> AnyTransformer:
    """Return the config of the same model without adapters."""
    return dataclasses.replace(config, lora=LoraConfig())


def product(lora_a: Array, lora_b: Array, shape: tuple[int, ...]) -> Array:
    """Return lora_a @ lora_b in the shape of the kernel, layer by layer if stacked.

    Args:
      lora_a: ([L,] *inputs, R).
      lora_b: ([L,] R, *outputs).
      shape: ([L,] *inputs, *outputs).
    """
    rank = lora_a.shape[-1]
    stacked = lora_a.ndim + lora_b.ndim - 2 > len(shape)
    num_layers = shape[0] if stacked else 1
    a_LIR = lora_a.reshape(num_layers, -1, rank)
    b_LRO = lora_b.reshape(num_layers, rank, -1)
    assert math.prod(shape) == num_layers * a_LIR.shape[1] * b_LRO.shape[2]
    return jnp.einsum("LIR,LRO->LIO", a_LIR, b_LRO).reshape(shape)


def adapters(params: Params) -> Params:
    """Return the parameters of the adapters alone."""
    parts: Params = {}
    for name, tree in params.items():
        if name in NAMES:
            parts[name] = tree
        elif isinstance(tree, dict) and (part := adapters(tree)):
            parts[name] = part
    return parts


def _adapter(linear: dict[str, Array]) -> dict[str, Any]:
    return {
        "lora_a": linear["lora_a"],
        "lora_b": linear["lora_b"],
        "shape": linear["kernel"].shape,
    }
