"""A Transformer block, and a trunk of them.

B batch, T length, S keys, D dim, N heads, L layers.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.model import TransformerConfig
from lmjax.nn.attention import Attention, KVCache, attention_mask
from lmjax.nn.feedforward import FeedForward
from lmjax.nn.linear import Embed
from lmjax.nn.norm import make_norm
from lmjax.nn.param import dropout
from lmjax.nn.position import RelativeBias, rope_angles, rope_frequencies, sinusoids
from lmjax.parallel.sharding import constrain
from lmjax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """Keys and values of earlier tokens, and of the source where there is one.

    The source may have fewer rows: each is then read by several that follow one
    another, such as the beams of a search.
    """

    own: KVCache
    source: KVCache | None = None

    def take(self, parents_BK: Array) -> "Cache":
        """Return the cache of beams; as `take_beams`, but no source is copied."""
        return dataclasses.replace(self, own=self.own.take(parents_BK))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What every block of a trunk is told beside its input."""

    mask: Array  # (B, 1, T, S)
    global_mask: Array | None = None  # of the layers without a window
    bias: Array | None = None  # of the scores (B or 1, N, T, S)
    angles: tuple[Array, Array] | None = None
    memory_BSD: Array | None = None  # what cross-attention reads
    memory_mask: Array | None = None  # (B, 1, T, S)


class Block(nnx.Module):
    """Attention, cross-attention where a source is read, and a feed-forward layer.

    Each is a sublayer f, which its norms make one of
      pre: x + f(norm(x));  post: norm(x + f(x));  both: x + post_norm(f(norm(x))).
    """

    def __init__(self, key: Array, config: TransformerConfig, *, cross: bool) -> None:
        c, keys = config, jax.random.split(key, 8)
        norm = functools.partial(
            make_norm, kind=c.norm, size=c.dim, epsilon=c.norm_epsilon, bias=c.use_bias
        )
        both = c.norm_place == "both"
        self.config = c
        self.attention_norm = norm(keys[0])
        self.attention = Attention(keys[1], c)
        self.attention_post_norm = norm(keys[2]) if both else None
        self.cross_attention_norm = norm(keys[3]) if cross else None
        self.cross_attention = (
            Attention(keys[4], c, name="cross_attention") if cross else None
        )
        self.mlp_norm = norm(keys[5])
        self.mlp = FeedForward(keys[6], c)
        self.mlp_post_norm = norm(keys[7]) if both else None

    def __call__(
        self,
        x_BTD: Array,
        *,
        around: Surroundings,
        key: Array | None,
        cache: Cache | None,
        layer: Array | int,
    ) -> tuple[Array, Cache | None]:
        """Return the block's output, and the cache with its keys and values."""
        keys = [None] * 5 if key is None else jax.random.split(key, 5)
        pre = self.config.norm_place != "post"
        h_BTD, own = self.attention(
            self.attention_norm(x_BTD) if pre else x_BTD,
            mask=self._mask(around, layer),
            bias=around.bias,
            angles=around.angles,
            key=keys[0],
            cache=None if cache is None else cache.own,
            layer=layer,
        )
        x_BTD = self._add(
            x_BTD, h_BTD, self.attention_norm, self.attention_post_norm, keys[1]
        )
        source = None if cache is None else cache.source
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            assert around.memory_mask is not None
            h_BTD, source = self.cross_attention(
                self.cross_attention_norm(x_BTD) if pre else x_BTD,
                mask=around.memory_mask,
                memory_BSD=around.memory_BSD,
                key=keys[2],
                cache=source,
                layer=layer,
            )
            x_BTD = self._add(x_BTD, h_BTD, self.cross_attention_norm, None, keys[3])
        h_BTD = self.mlp(self.mlp_norm(x_BTD) if pre else x_BTD)
        x_BTD = self._add(x_BTD, h_BTD, self.mlp_norm, self.mlp_post_norm, keys[4])
        return x_BTD, None if own is None else Cache(own=own, source=source)

    def _mask(self, around: Surroundings, layer: Array | int) -> Array:
        if around.global_mask is None:
            return around.mask
        is_global = (layer + 1) % self.config.global_every == 0
        return jnp.where(is_global, around.global_mask, around.mask)

    def _add(
        self, x_BTD: Array, h_BTD: Array, norm: Any, post_norm: Any, key: Array | None
    ) -> Array:
        """Return the sum of a sublayer's input and its output `h_BTD`."""
        if post_norm is not None:
            h_BTD = post_norm(h_BTD)
        x_BTD = x_BTD + dropout(h_BTD, rate=self.config.dropout, key=key)
        if self.config.norm_place == "post":
            x_BTD = norm(x_BTD)
        return constrain(x_BTD, "batch", "length", "embed")


REMAT_POLICIES = {
    # Keep the outputs of matrix products with weights, recompute the rest.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Keep nothing inside a block.
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Trunk(nnx.Module):
    """All between the embeddings and the head: positions, and identical blocks.

    The parameters of the blocks are stacked on a leading axis. Scanned or unrolled,
    the layout is the same: scanning compiles one block, unrolling lets XLA see all of
    them (faster on CPU).
    """

    def __init__(
        self,
        key: Array,
        config: TransformerConfig,
        *,
        num_layers: int,
        causal: bool,
        cross: bool = False,
    ) -> None:
        c, keys = config, jax.random.split(key, 5)
        norm = functools.partial(
            make_norm, kind=c.norm, size=c.dim, epsilon=c.norm_epsilon, bias=c.use_bias
        )
        places = {"length": c.max_length + c.position_offset, "embed": c.dim}
        relative = c.position == "relative"
        self.config, self.causal, self.num_layers = c, causal, num_layers
        self.positions = Embed(keys[0], places) if c.position == "learned" else None
        self.relative_bias = (
            RelativeBias(keys[1], c, causal=causal) if relative else None
        )
        self.embedding_norm = norm(keys[2]) if c.embedding_norm else None
        self.blocks = jax.vmap(lambda k: Block(k, c, cross=cross))(
            jax.random.split(keys[3], num_layers)
        )
        # A block whose norm comes last leaves nothing to be normalised.
        self.norm = norm(keys[4]) if c.norm_place != "post" else None

    def __call__(
        self,
        x_BTD: Array,
        *,
        positions_BT: Array,
        segments_BT: Array,
        memory_BSD: Array | None = None,
        memory_segments_BS: Array | None = None,
        key: Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[Array, Cache | None]:
        """Return the last hidden states (B, T, D), and the cache if one came.

        Args:
          x_BTD: embedded tokens.
          positions_BT: int32, restarting at each document.
          segments_BT: int32, a token sees only its own segment; 0 is padding.
          memory_BSD: what cross-attention reads; once the cache has it, left out.
          memory_segments_BS: int32, each token reads the segment of its own number.
          key: for dropout; none without it.
          cache: earlier tokens, which these ones also see.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD = self._place(x_BTD, positions_BT, keys[0])
        if cache is not None:
            own = cache.own.extend(positions_BT, segments_BT)
            cache = dataclasses.replace(cache, own=own)
        around = self._surroundings(positions_BT, segments_BT, cache)
        if memory_segments_BS is not None:
            mask = segments_BT[:, :, None] == memory_segments_BS[:, None, :]
            around = dataclasses.replace(
                around, memory_BSD=memory_BSD, memory_mask=mask[:, None]
            )
        x_BTD, cache = self._run(x_BTD, around, keys[1], cache)
        return (x_BTD if self.norm is None else self.norm(x_BTD)), cache

    def _place(self, x_BTD: Array, positions_BT: Array, key: Array | None) -> Array:
        """Tell the embedded tokens where they stand."""
        c = self.config
        if c.scale_embeddings:
            # Rounded as the reference does, which scales in the compute dtype.
            x_BTD = x_BTD * jnp.asarray(c.dim**0.5, x_BTD.dtype)
        if self.positions is not None:
            places = positions_BT + c.position_offset
            x_BTD = x_BTD + self.positions(places, x_BTD.dtype)
        if c.position == "sinusoidal":
            table = jnp.asarray(sinusoids(c.max_length, c.dim), x_BTD.dtype)
            x_BTD = x_BTD + table[positions_BT]
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        x_BTD = dropout(x_BTD, rate=c.dropout, key=key)
        return constrain(x_BTD, "batch", "length", "embed")

    def _surroundings(
        self, positions_BT: Array, segments_BT: Array, cache: Cache | None
    ) -> Surroundings:
        c, at = self.config, positions_BT
        places, segments = positions_BT, segments_BT
        if cache is not None:
            places, segments = cache.own.positions_BS, cache.own.segments_BS
        mask = functools.partial(
            attention_mask, at, segments_BT, places, segments, causal=self.causal
        )
        bias = None
        if self.relative_bias is not None:
            if cache is None:
                # Within a segment positions differ as indices do: one row for all.
                at = places = jnp.arange(positions_BT.shape[1])[None]
            bias = self.relative_bias(at, places)
        angles = None
        if c.position == "rope":
            angles = rope_angles(positions_BT, rope_frequencies(c))
        return Surroundings(
            mask=mask(window=c.window),
            global_mask=mask(window=0) if c.global_every else None,
            bias=bias,
            angles=angles,
        )

    def _run(
        self,
        x_BTD: Array,
        around: Surroundings,
        key: Array | None,
        cache: Cache | None,
    ) -> tuple[Array, Cache | None]:
        def body(carry: Any, layer_inputs: Any) -> tuple[Any, None]:
            x, cache = carry
            block, key, layer = layer_inputs
            return block(x, around=around, key=key, cache=cache, layer=layer), None

        if self.config.remat != "none":
            policy = REMAT_POLICIES[self.config.remat]
            scanned = self.config.scan_layers is True
            body = jax.checkpoint(body, policy=policy, prevent_cse=not scanned)
        keys = None if key is None else jax.random.split(key, self.num_layers)
        layers = (self.blocks, keys, jnp.arange(self.num_layers))
        if self.config.scan_layers:
            return jax.lax.scan(body, (x_BTD, cache), layers)[0]
        carry = (x_BTD, cache)
        for layer in _unstack(layers, self.num_layers):
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
