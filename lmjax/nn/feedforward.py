"""The feed-forward layer, gated or not. D dim, F mlp."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.model import TransformerConfig
from lmjax.nn.linear import Linear, matrix_options
from lmjax.parallel.sharding import constrain
from lmjax.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


class FeedForward(nnx.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) if gated (Shazeer 2020)."""

    def __init__(self, key: Array, config: TransformerConfig) -> None:
        c, keys = config, jax.random.split(key, 3)
        embed, mlp = {"embed": c.dim}, {"mlp": c.mlp_dim}
        scale = 1.0 / math.sqrt(2 * c.num_layers)
        self.activation = c.activation
        linear = functools.partial(Linear, bias=c.mlp_bias is True)
        options = lambda matrix: matrix_options(c, f"mlp.{matrix}")
        self.up = linear(keys[0], embed, mlp, **options("up"))
        self.down = linear(keys[1], mlp, embed, scale=scale, **options("down"))
        self.gate = linear(keys[2], embed, mlp, **options("gate")) if c.gated else None

    def __call__(self, x_BTD: Array) -> Array:
        """Transform each position independently."""
        act = ACTIVATIONS[self.activation]
        h = self.up(x_BTD)
        h = act(h) if self.gate is None else act(self.gate(x_BTD)) * h
        return self.down(constrain(h, "batch", "length", "mlp"))
