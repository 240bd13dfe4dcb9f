"""Low-rank adapters (Hu et al. 2021) outside of their layers: merging them.

The adapters themselves are part of `nn.linear.Linear`: `lora_a` (*inputs, rank) and
`lora_b` (rank, *outputs) next to `kernel`, each with a leading axis of layers in a
stack.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from lmjax.config.matrices import LowRankConfig
from lmjax.config.model import ModelConfig, TransformerConfig
from lmjax.nn import quantized
from lmjax.types import Array, Params

NAMES = ("lora_a", "lora_b")


def merge_adapters(params: Params, config: ModelConfig) -> tuple[Params, ModelConfig]:
    """Return parameters and config of the same model without adapters.

    Each kernel becomes kernel + scale * lora_a @ lora_b, in float32, also where it was
    quantized or a product of factors.
    """
    if not config.adapter_rank:
        return params, config
    params, config = quantized.dequantize_params(params, config)
    params, config = multiply_factors(params, config)

    def merge(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        new = {name: merge(leaf) for name, leaf in tree.items() if name not in NAMES}
        if "lora_a" in tree:
            shape = tree["kernel"].shape
            delta = multiply_adapter(tree["lora_a"], tree["lora_b"], shape)
            new["kernel"] = tree["kernel"] + config.adapter_scale * delta
        return new

    return merge(params), config.without_adapters()


def multiply_factors(params: Params, config: ModelConfig) -> tuple[Params, ModelConfig]:
    """Return parameters and config of the same model with whole matrices."""
    if not config.low_rank.fraction:
        return params, config

    def multiply(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        new = {name: multiply(leaf) for name, leaf in tree.items()}
        if "factor_a" in tree:
            a, b = new.pop("factor_a"), new.pop("factor_b")
            new["kernel"] = multiply_adapter(a, b, (*a.shape[:-1], *b.shape[2:]))
        return new

    assert isinstance(config, TransformerConfig)
    return multiply(params), dataclasses.replace(config, low_rank=LowRankConfig())


def multiply_adapter(lora_a: Array, lora_b: Array, shape: tuple[int, ...]) -> Array:
    """Return lora_a @ lora_b in the shape of the kernel, for each layer of a stack.

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
    product = jnp.einsum("LIR,LRO->LIO", a_LIR, b_LRO, precision="highest")
    return product.reshape(shape)
