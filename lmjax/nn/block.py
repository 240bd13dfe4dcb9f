"""A Transformer block, and a stack of them. B batch, T length, D dim, L layers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config import DecoderConfig
from lmjax.nn.attention import Attention, KVCache
from lmjax.nn.feedforward import FeedForward
from lmjax.nn.norm import make_norm
from lmjax.nn.param import dropout
from lmjax.sharding import constrain
from lmjax.types import Array


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, key: Array, config: DecoderConfig) -> None:
        c, keys = config, jax.random.split(key, 4)
        norm = functools.partial(
            make_norm, kind=c.norm, size=c.dim, epsilon=c.norm_epsilon, bias=c.use_bias
        )
        self.rate = c.dropout
        self.attention_norm = norm(keys[0])
        self.attention = Attention(keys[1], c)
        self.mlp_norm = norm(keys[2])
        self.mlp = FeedForward(keys[3], c)

    def __call__(
        self,
        x_BTD: Array,
        *,
        mask: Array,
        angles: tuple[Array, Array] | None,
        key: Array | None,
        cache: KVCache | None,
        layer: Array | int,
    ) -> tuple[Array, KVCache | None]:
        """Return the block's output, and the cache with its keys and values."""
        keys = (None, None) if key is None else jax.random.split(key)
        h_BTD, cache = self.attention(
            self.attention_norm(x_BTD),
            mask=mask,
            angles=angles,
            cache=cache,
            layer=layer,
        )
        x_BTD = x_BTD + dropout(h_BTD, rate=self.rate, key=keys[0])
        x_BTD = constrain(x_BTD, "batch", "length", "embed")
        h_BTD = self.mlp(self.mlp_norm(x_BTD))
        x_BTD = x_BTD + dropout(h_BTD, rate=self.rate, key=keys[1])
        return constrain(x_BTD, "batch", "length", "embed"), cache


REMAT_POLICIES = {
    # Keep the outputs of matrix products with weights, recompute the rest.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Keep nothing inside a block.
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Stack(nnx.Module):
    """Identical blocks, their parameters stacked on a leading axis.

    Scanned or unrolled, the layout is the same: scanning compiles one block,
    unrolling lets XLA see all of them (faster on CPU).
    """

    def __init__(self, key: Array, config: DecoderConfig) -> None:
        self.config = config
        keys = jax.random.split(key, config.num_layers)
        self.blocks = jax.vmap(lambda k: Block(k, config))(keys)

    def __call__(
        self,
        x_BTD: Array,
        *,
        mask: Array,
        angles: tuple[Array, Array] | None,
        key: Array | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Array, KVCache | None]:
        """Return the last block's output, and the cache with all keys and values."""

        def body(carry: Any, layer_inputs: Any) -> tuple[Any, None]:
            x, cache = carry
            block, key, layer = layer_inputs
            carry = block(
                x, mask=mask, angles=angles, key=key, cache=cache, layer=layer
            )
            return carry, None

        if self.config.remat != "none":
            policy = REMAT_POLICIES[self.config.remat]
            scanned = self.config.scan_layers is True
            body = jax.checkpoint(body, policy=policy, prevent_cse=not scanned)
        num_layers = self.config.num_layers
        keys = None if key is None else jax.random.split(key, num_layers)
        layers = (self.blocks, keys, jnp.arange(num_layers))
        if self.config.scan_layers:
            return jax.lax.scan(body, (x_BTD, cache), layers)[0]
        carry = (x_BTD, cache)
        for layer in _unstack(layers, num_layers):
            carry, _ = body(carry, layer)
        return carry


def _unstack(tree: Any, num: int) -> list[Any]:
    """Return the `num` slices of the leading axis of each leaf.

    One `split` transposes to one concatenation; indexing would transpose to `num`
    additions of arrays as large as the whole stack.
    """
    leaves, structure = jax.tree.flatten(tree)
    parts = [
        [part.squeeze(0) for part in jax.lax.split(leaf, [1] * num)]
        if jnp.issubdtype(leaf.dtype, jnp.number)
        else [leaf[i] for i in range(num)]  # typed keys
        for leaf in leaves
    ]
    return [jax.tree.unflatten(structure, s) for s in zip(*parts, strict=True)]
