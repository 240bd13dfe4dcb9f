"""Keys and values of earlier tokens, for decoding with a Transformer.

B batch, R rows of texts (B, or B times beams), T new tokens, S slots, K kv heads,
H head_dim, L layers.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.config.model import TransformerConfig
from lmjax.nn.decode_state import take_beams
from lmjax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVCache:
    """Keys and values of every layer, and the position and segment of each slot.

    Slots are filled from the left, for all rows at once. No token sees a slot of
    segment 0: one not filled yet, or padding after a shorter prompt.
    """

    k_LRSKH: Array
    v_LRSKH: Array
    positions_RS: Array
    segments_RS: Array
    next_slot: Array  # int32 scalar

    def mark(self, positions_RT: Array, segments_RT: Array) -> "KVCache":
        """Record the positions and segments of T tokens in the next slots."""
        start = (0, self.next_slot)
        update = jax.lax.dynamic_update_slice
        return dataclasses.replace(
            self,
            positions_RS=update(self.positions_RS, positions_RT, start),
            segments_RS=update(self.segments_RS, segments_RT, start),
        )

    def write(self, layer: Array | int, k_RTKH: Array, v_RTKH: Array) -> "KVCache":
        """Store one layer's keys and values of T tokens in the next slots."""
        start = (layer, 0, self.next_slot, 0, 0)
        update = jax.lax.dynamic_update_slice
        return dataclasses.replace(
            self,
            k_LRSKH=update(self.k_LRSKH, k_RTKH[None], start),
            v_LRSKH=update(self.v_LRSKH, v_RTKH[None], start),
        )

    def advance(self, num_tokens: int) -> "KVCache":
        """Count the next slots as filled, once every layer has written them."""
        return dataclasses.replace(self, next_slot=self.next_slot + num_tokens)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceKV:
    """Keys and values of every cross-attention layer over the encoded source."""

    k_LBSKH: Array
    v_LBSKH: Array
    segments_BS: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerDecodeState:
    """The `DecodeState` of a Transformer.

    The source may have fewer rows than the texts: each row of it then belongs to
    several texts that follow one another, the beams of a search.
    """

    own: KVCache
    source: SourceKV | None = None

    def take(self, parents_BK: Array) -> "TransformerDecodeState":
        """Return the state of new beams; see `DecodeState`."""
        own = dataclasses.replace(
            self.own,
            k_LRSKH=take_beams(self.own.k_LRSKH, parents_BK, axis=1),
            v_LRSKH=take_beams(self.own.v_LRSKH, parents_BK, axis=1),
            positions_RS=take_beams(self.own.positions_RS, parents_BK),
            segments_RS=take_beams(self.own.segments_RS, parents_BK),
        )
        return dataclasses.replace(self, own=own)


def empty_cache(config: TransformerConfig, *, num_rows: int, num_slots: int) -> KVCache:
    """Return a cache of zeros in the dtype that the model computes in."""
    c = config
    shape = (c.num_layers, num_rows, num_slots, c.num_kv_heads, c.head_dim)
    return KVCache(
        k_LRSKH=jnp.zeros(shape, c.dtype),
        v_LRSKH=jnp.zeros(shape, c.dtype),
        positions_RS=jnp.zeros((num_rows, num_slots), jnp.int32),
        segments_RS=jnp.zeros((num_rows, num_slots), jnp.int32),
        next_slot=jnp.zeros((), jnp.int32),
    )
