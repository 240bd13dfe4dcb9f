"""A Transformer block. B batch, R rows, T length, S keys, D dim, N heads."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.model import TransformerConfig
from lmjax.nn import intermediates
from lmjax.nn.attention import Attention
from lmjax.nn.attention_kernels import choose_mask
from lmjax.nn.feedforward import FeedForward
from lmjax.nn.kv_cache import KVCache, SourceKV
from lmjax.nn.norm import make_norm
from lmjax.nn.param import dropout
from lmjax.parallel.sharding import constrain
from lmjax.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockInputs:
    """The inputs that all blocks of a stack share, besides the hidden states.

    Masks are those of the config's attention kernel (`attention_kernels.MAKE_MASK`).
    """

    # The mask and rotary angles, as keyword arguments of `Attention`: in all layers,
    # or in those with a window; and in those without one, if there are both.
    attention: dict[str, Any]
    global_attention: dict[str, Any] | None = None
    is_global: tuple[bool, ...] = ()  # of each layer: whether it has no window
    bias: Array | None = None  # added to the scores, (B or 1, N, T, S)
    memory_mask: Any = None  # of tokens and the source
    memory_BSD: Array | None = None  # the encoded source, or when decoding,
    source: SourceKV | None = None  # its keys and values


class Block(nnx.Module):
    """Self-attention, cross-attention if there is a source, and a feed-forward layer.

    Each is a sublayer f within a residual connection, normalized
      pre: x + f(norm(x));  post: norm(x + f(x));
      both: x + post_norm(f(norm(x)));  output: x + post_norm(f(x)).
    """

    def __init__(self, key: Array, config: TransformerConfig, *, cross: bool) -> None:
        c, keys = config, jax.random.split(key, 8)
        norm = functools.partial(
            make_norm, kind=c.norm, size=c.dim, epsilon=c.norm_epsilon, bias=c.use_bias
        )
        output = c.norm_place == "output"  # there only
        both = c.norm_place == "both" or output
        self.config = c
        self.attention_norm = None if output else norm(keys[0])
        self.attention = Attention(keys[1], c)
        self.attention_post_norm = norm(keys[2]) if both else None
        # The output of cross-attention is normalized where its input is not.
        self.cross_attention_norm = norm(keys[3]) if cross else None
        self.cross_attention = (
            Attention(keys[4], c, name="cross_attention") if cross else None
        )
        self.mlp_norm = None if output else norm(keys[5])
        self.mlp = FeedForward(keys[6], c)
        self.mlp_post_norm = norm(keys[7]) if both else None

    def __call__(
        self,
        x_BTD: Array,
        inputs: BlockInputs,
        *,
        layer: Array | int,
        key: Array | None = None,
    ) -> Array:
        """Transform a whole sequence (B, T, D); dropout only with a key."""
        keys = [None] * 5 if key is None else jax.random.split(key, 5)
        h_BTD = self.attention(
            self._attention_inputs(x_BTD, layer),
            **_attention_inputs(inputs, layer),
            bias=inputs.bias,
            key=keys[0],
        )
        before_BTD = x_BTD
        x_BTD = self._add(
            x_BTD, h_BTD, self.attention_norm, self.attention_post_norm, key=keys[1]
        )
        if self.cross_attention is not None:
            with intermediates.prefixed("cross_"):
                h_BTD = self.cross_attention(
                    self._pre_norm(x_BTD, self.cross_attention_norm),
                    mask=inputs.memory_mask,
                    memory_BSD=inputs.memory_BSD,
                    key=keys[2],
                )
            x_BTD = self._add_cross(x_BTD, h_BTD, key=keys[3])
        h_BTD = self._feed_forward(before_BTD, x_BTD)
        return self._add(x_BTD, h_BTD, self.mlp_norm, self.mlp_post_norm, key=keys[4])

    def extend(
        self,
        x_RTD: Array,
        cache: KVCache,
        inputs: BlockInputs,
        *,
        layer: Array | int,
    ) -> tuple[Array, KVCache]:
        """Transform new tokens (R, T, D), which also see those of a cache.

        They are written to the cache's next slots, which all layers share: the caller
        advances it after the last layer.
        """
        h_RTD, cache = self.attention.extend(
            self._attention_inputs(x_RTD, layer),
            cache,
            layer=layer,
            **_attention_inputs(inputs, layer),
            bias=inputs.bias,
        )
        before_RTD = x_RTD
        x_RTD = self._add(x_RTD, h_RTD, self.attention_norm, self.attention_post_norm)
        if self.cross_attention is not None:
            assert inputs.source is not None
            h_RTD = self.cross_attention.read_source(
                self._pre_norm(x_RTD, self.cross_attention_norm),
                inputs.source,
                layer=layer,
                mask=inputs.memory_mask,
            )
            x_RTD = self._add_cross(x_RTD, h_RTD)
        h_RTD = self._feed_forward(before_RTD, x_RTD)
        x_RTD = self._add(x_RTD, h_RTD, self.mlp_norm, self.mlp_post_norm)
        return x_RTD, cache

    def _attention_inputs(self, x_BTD: Array, layer: Array | int) -> Array:
        normed_BTD = self._pre_norm(x_BTD, self.attention_norm)
        if self.config.first_norm:
            return normed_BTD
        return jnp.where(jnp.equal(layer, 0), x_BTD, normed_BTD)

    def _pre_norm(self, x_BTD: Array, norm: Any) -> Array:
        return x_BTD if self.config.norm_place in ("post", "output") else norm(x_BTD)

    def _feed_forward(self, before_BTD: Array, x_BTD: Array) -> Array:
        """Apply the MLP to the hidden states after attention, or to those before."""
        x_BTD = before_BTD if self.config.parallel_residual else x_BTD
        return self.mlp(self._pre_norm(x_BTD, self.mlp_norm))

    def _add_cross(
        self, x_BTD: Array, h_BTD: Array, *, key: Array | None = None
    ) -> Array:
        norm = self.cross_attention_norm
        post_norm = norm if self.config.norm_place == "output" else None
        return self._add(x_BTD, h_BTD, norm, post_norm, key=key)

    def _add(
        self,
        x_BTD: Array,
        h_BTD: Array,
        norm: Any,
        post_norm: Any = None,
        *,
        key: Array | None = None,
    ) -> Array:
        """Add a sublayer's output `h_BTD` to its input."""
        if post_norm is not None:
            h_BTD = post_norm(h_BTD)
        x_BTD = x_BTD + dropout(h_BTD, rate=self.config.dropout, key=key)
        if self.config.norm_place == "post":
            x_BTD = norm(x_BTD)
        return constrain(x_BTD, "batch", "length", "embed")


def _attention_inputs(inputs: BlockInputs, layer: Array | int) -> dict[str, Any]:
    """Return the mask and angles of a layer; its number may be traced."""
    if inputs.global_attention is None:
        return inputs.attention
    is_global = jnp.asarray(inputs.is_global)[layer]
    return {
        name: choose_mask(is_global, inputs.global_attention[name], local)
        for name, local in inputs.attention.items()
    }
