"""A stack of Transformer blocks, with the positions of its tokens.

B batch, R rows of texts (B, or B times beams), T length, S keys, D dim, L layers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from lmjax.config.model import TransformerConfig
from lmjax.nn import intermediates
from lmjax.nn.attention_choice import choose_attention
from lmjax.nn.attention_context import AttentionContext
from lmjax.nn.attention_kernels import MAKE_MASK
from lmjax.nn.block import Block, BlockInputs
from lmjax.nn.kv_cache import SourceKV, TransformerDecodeState, empty_cache
from lmjax.nn.linear import Embed
from lmjax.nn.norm import make_norm
from lmjax.nn.param import dropout
from lmjax.nn.position import RelativeBias, sinusoids
from lmjax.nn.rope import rope_angles, text_lengths
from lmjax.parallel.sharding import constrain
from lmjax.types import Array

REMAT_POLICIES = {
    # Keep the outputs of matrix products with weights, recompute the rest.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Keep what the backward pass of chunked and splash attention reads beside inputs.
    "attention": jax.checkpoint_policies.save_only_these_names("attention"),
    # Keep nothing inside a block.
    "full": jax.checkpoint_policies.nothing_saveable,
}


class TransformerStack(nnx.Module):
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
        table = {"length": c.max_length + c.position_offset, "embed": c.dim}
        relative = c.position == "relative"
        self.config, self.causal, self.num_layers = c, causal, num_layers
        self.positions = Embed(keys[0], table) if c.position == "learned" else None
        self.relative_bias = (
            RelativeBias(keys[1], c, causal=causal) if relative else None
        )
        self.embedding_norm = norm(keys[2]) if c.embedding_norm else None
        self.blocks = jax.vmap(lambda k: Block(k, c, cross=cross))(
            jax.random.split(keys[3], num_layers)
        )
        # A block whose norm comes last leaves nothing to be normalized.
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
    ) -> Array:
        """Return the last hidden states (B, T, D) of whole sequences.

        Args:
          x_BTD: embedded tokens.
          positions_BT: int32, restarting at each document.
          segments_BT: int32, a token sees only its own segment; 0 is padding.
          memory_BSD: the encoded source, for cross-attention.
          memory_segments_BS: int32, a token sees the segment of its own number.
          key: for dropout; none without it.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD = self._add_positions(x_BTD, positions_BT, key=keys[0])
        intermediates.record("embedded", x_BTD)
        # Within a segment positions differ as indices do: one row serves for all.
        index_1T = jnp.arange(positions_BT.shape[1])[None]
        inputs = self._block_inputs(
            AttentionContext(
                positions_BT=positions_BT,
                segments_BT=segments_BT,
                causal=self.causal,
            ),
            bias=self._bias(index_1T, index_1T),
        )
        if memory_segments_BS is not None:
            mask = self._memory_mask(segments_BT, memory_segments_BS)
            inputs = dataclasses.replace(
                inputs, memory_BSD=memory_BSD, memory_mask=mask
            )

        def body(x_BTD: Array, layer: Any) -> tuple[Array, dict[str, Array]]:
            block, key, index = layer
            with intermediates.nested() as captured:
                x_BTD = block(x_BTD, inputs, layer=index, key=key)
                intermediates.record("hidden", x_BTD)
            return x_BTD, captured

        if self.config.remat != "none":
            policy = REMAT_POLICIES[self.config.remat]
            scanned = self.config.scan_layers is True
            body = jax.checkpoint(body, policy=policy, prevent_cse=not scanned)
        x_BTD, captured_L = self._run_layers(body, x_BTD, key=keys[1])
        intermediates.record_all(captured_L)
        x_BTD = intermediates.record("last_hidden", x_BTD)
        return x_BTD if self.norm is None else self.norm(x_BTD)

    def extend(
        self,
        x_RTD: Array,
        state: TransformerDecodeState,
        *,
        positions_RT: Array,
        segments_RT: Array,
    ) -> tuple[Array, TransformerDecodeState]:
        """Return the last hidden states (R, T, D) of new tokens, and the new state.

        Args:
          x_RTD: embedded tokens.
          state: earlier tokens, which the new ones see.
          positions_RT: int32.
          segments_RT: int32, as for `__call__`.
        """
        x_RTD = self._add_positions(x_RTD, positions_RT)
        cache = state.own.mark(positions_RT, segments_RT)
        inputs = self._block_inputs(
            AttentionContext(
                positions_BT=positions_RT,
                segments_BT=segments_RT,
                key_positions_BS=cache.positions_RS,
                key_segments_BS=cache.segments_RS,
                causal=self.causal,
            ),
            bias=self._bias(positions_RT, cache.positions_RS),
        )
        if state.source is not None:
            segments_BS = state.source.segments_BS
            # The beams of a source are queries of one row.
            mask = self._memory_mask(
                segments_RT.reshape(len(segments_BS), -1), segments_BS
            )
            inputs = dataclasses.replace(inputs, source=state.source, memory_mask=mask)

        def body(carry: Any, layer: Any) -> tuple[Any, None]:
            block, _, index = layer
            return block.extend(*carry, inputs, layer=index), None

        (x_RTD, cache), _ = self._run_layers(body, (x_RTD, cache))
        cache = cache.advance(positions_RT.shape[1])
        x_RTD = x_RTD if self.norm is None else self.norm(x_RTD)
        return x_RTD, dataclasses.replace(state, own=cache)

    def init_decode_state(
        self,
        *,
        num_rows: int,
        num_slots: int,
        memory_BSD: Array | None = None,
        memory_segments_BS: Array | None = None,
    ) -> TransformerDecodeState:
        """Return the state before the first token, with room for `num_slots` a row.

        With an encoded source its keys and values are computed here, once.
        """
        own = empty_cache(self.config, num_rows=num_rows, num_slots=num_slots)
        if memory_BSD is None or memory_segments_BS is None:
            return TransformerDecodeState(own=own)

        def body(carry: None, layer: Any) -> tuple[None, Any]:
            return None, layer[0].cross_attention.keys_and_values(memory_BSD)

        _, (k_LBSKH, v_LBSKH) = self._run_layers(body, None)
        source = SourceKV(
            k_LBSKH=k_LBSKH, v_LBSKH=v_LBSKH, segments_BS=memory_segments_BS
        )
        return TransformerDecodeState(own=own, source=source)

    def _add_positions(
        self, x_BTD: Array, positions_BT: Array, *, key: Array | None = None
    ) -> Array:
        """Scale the embedded tokens, add their positions, normalize, drop out."""
        c = self.config
        if c.scale_embeddings:
            # Rounded as the reference does, which scales in the compute dtype.
            x_BTD = x_BTD * jnp.asarray(c.dim**0.5, x_BTD.dtype)
        if self.positions is not None:
            rows_BT = positions_BT + c.position_offset
            x_BTD = x_BTD + self.positions(rows_BT, x_BTD.dtype)
        if c.position == "sinusoidal":
            table = jnp.asarray(sinusoids(c.max_length, c.dim), x_BTD.dtype)
            x_BTD = x_BTD + table[positions_BT]
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        x_BTD = dropout(x_BTD, rate=c.dropout, key=key)
        return constrain(x_BTD, "batch", "length", "embed")

    def _block_inputs(
        self, context: AttentionContext, *, bias: Array | None
    ) -> BlockInputs:
        c = self.config
        make = functools.partial(self._attention_inputs, context)
        is_global = c.global_flags(self.num_layers)
        if all(is_global):
            return BlockInputs(attention=make(window=0), bias=bias)
        return BlockInputs(
            attention=make(window=c.window),
            global_attention=make(window=0) if any(is_global) else None,
            is_global=is_global,
            bias=bias,
        )

    def _attention_inputs(
        self, context: AttentionContext, *, window: int
    ) -> dict[str, Any]:
        """Return the mask and angles of the layers with a window, or with none (0)."""
        c = self.config
        context = dataclasses.replace(context, window=window)
        inputs = {"mask": MAKE_MASK[c.attention](context)}
        if c.position != "rope":
            return inputs
        assert context.positions_BT is not None
        inputs["angles"] = rope_angles(
            context.positions_BT,
            c,
            lengths_BT=text_lengths(context) if c.rope_follows_length else None,
            local=window > 0,
        )
        return inputs

    def _memory_mask(self, segments_BT: Array, memory_segments_BS: Array) -> Any:
        return MAKE_MASK[self.config.attention](
            AttentionContext(
                segments_BT=segments_BT, key_segments_BS=memory_segments_BS
            )
        )

    def _bias(self, positions_BT: Array, key_positions_BS: Array) -> Array | None:
        if self.relative_bias is None:
            return None
        return self.relative_bias(positions_BT, key_positions_BS)

    def _run_layers(
        self,
        body: Callable[[Any, Any], tuple[Any, Any]],
        carry: Any,
        *,
        key: Array | None = None,
    ) -> tuple[Any, Any]:
        """Scan `body(carry, (block, key, index))` over the layers, or unroll it."""
        keys = None if key is None else jax.random.split(key, self.num_layers)
        layers = (self.blocks, keys, jnp.arange(self.num_layers))
        is_cut = any(map(_is_cut, jax.tree.leaves(self.blocks, is_leaf=_is_cut)))
        if self.config.scan_layers and not is_cut:
            return jax.lax.scan(body, carry, layers)
        outputs = []
        for layer in _unstack(layers, self.num_layers):
            carry, output = body(carry, layer)
            outputs.append(output)
        return carry, jax.tree.map(lambda *x: jnp.stack(x), *outputs)


def resolve_stack(
    config: TransformerConfig, *, platform: str, mesh: Mesh | None = None
) -> TransformerConfig:
    """Decide the `attention` and `scan_layers` that are "auto" for a platform.

    Raises:
      ConfigError: as `choose_attention`.
    """
    scan = platform != "cpu" if config.scan_layers == "auto" else config.scan_layers
    attention = choose_attention(config, platform=platform, mesh=mesh)
    return dataclasses.replace(config, scan_layers=scan, attention=attention)


@jax.tree_util.register_pytree_node_class
class LayerList(tuple[Array, ...]):
    """The layers of a parameter that is not stacked, in the place of the stack."""

    __slots__ = ()

    def tree_flatten(self) -> tuple[tuple[Array, ...], None]:
        """Return the layers, for `jax.tree`."""
        return tuple(self), None

    @classmethod
    def tree_unflatten(cls, _: None, layers: Any) -> "LayerList":
        """Return the list of layers, for `jax.tree`."""
        return cls(layers)


def _is_cut(leaf: Any) -> bool:
    return isinstance(leaf, LayerList)


def _unstack(tree: Any, num: int) -> list[Any]:
    """Return the `num` slices of the leading axis of each leaf.

    One `split` transposes to one concatenation; indexing would transpose to `num`
    additions of arrays as large as the whole stack.
    """
    leaves, structure = jax.tree.flatten(tree, is_leaf=_is_cut)
    parts = [
        leaf
        if isinstance(leaf, LayerList)
        else [part.squeeze(0) for part in jax.lax.split(leaf, [1] * num)]
        if jnp.issubdtype(leaf.dtype, jnp.number)
        else [leaf[i] for i in range(num)]  # typed keys
        for leaf in leaves
    ]
    return [jax.tree.unflatten(structure, s) for s in zip(*parts, strict=True)]
