"""Keys and values of earlier tokens, for decoding with a Transformer.

B batch, R rows of texts (B, or B times beams), T new tokens, S slots, K kv heads,
H head_dim, L layers.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.config.model import TransformerConfig
from lmjax.nn import quantized
from lmjax.nn.decode_state import put_rows, take_beams
from lmjax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """Vectors of heads, as floats or as int8 levels with a scale for each vector."""

    values_LRSKH: Array
    scales_LRSK: Array | None = None

    def write(self, x_LRTKH: Array, start: tuple[Array | int, ...]) -> "Stored":
        """Store vectors; `start` is the first layer, row and slot."""
        update = jax.lax.dynamic_update_slice
        if self.scales_LRSK is None:
            return Stored(
                values_LRSKH=update(self.values_LRSKH, x_LRTKH, (*start, 0, 0))
            )
        levels_LRTKH, scales = quantized.round_activations(x_LRTKH)
        return Stored(
            values_LRSKH=update(self.values_LRSKH, levels_LRTKH, (*start, 0, 0)),
            scales_LRSK=update(self.scales_LRSK, scales[..., 0], (*start, 0)),
        )

    def read(self, layer: Array | int, dtype: jnp.dtype) -> Array:
        """Return the vectors of a layer, (R, S, K, H)."""
        values_RSKH = self.values_LRSKH[layer]
        if self.scales_LRSK is None:
            return values_RSKH
        scales_RSK = self.scales_LRSK[layer].astype(dtype)
        return values_RSKH.astype(dtype) * scales_RSK[..., None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVCache:
    """Keys and values of every layer, and the position and segment of each slot.

    Slots are filled from the left, for all rows at once. No token sees a slot of
    segment 0: one not filled yet, or padding after a shorter prompt.
    """

    k: Stored
    v: Stored
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
        start = (layer, 0, self.next_slot)
        return dataclasses.replace(
            self,
            k=self.k.write(k_RTKH[None], start),
            v=self.v.write(v_RTKH[None], start),
        )

    def read(self, layer: Array | int, dtype: jnp.dtype) -> tuple[Array, Array]:
        """Return one layer's keys and values of all slots, (R, S, K, H) each."""
        return self.k.read(layer, dtype), self.v.read(layer, dtype)

    def advance(self, num_tokens: int) -> "KVCache":
        """Count the next slots as filled, once every layer has written them."""
        return dataclasses.replace(self, next_slot=self.next_slot + num_tokens)

    def put(self, new: "KVCache", rows_N: Array, *, is_live_R: Array) -> "KVCache":
        """Return the cache with new texts in some rows; see `DecodeState`.

        The filled slots of each row move to its beginning, so that as many as possible
        are free after them.
        """
        is_filled_RS = (self.segments_RS > 0) & is_live_R[:, None]
        order_RS = jnp.argsort(~is_filled_RS, axis=1, stable=True)
        move = lambda x: jnp.take_along_axis(x, order_RS, axis=1)
        put_heads = lambda old, new: put_rows(
            jnp.take_along_axis(
                old, order_RS.reshape(1, *order_RS.shape, *[1] * (old.ndim - 3)), axis=2
            ),
            new,
            rows_N,
            axis=1,
        )
        segments_RS = move(jnp.where(is_filled_RS, self.segments_RS, 0))
        segments_RS = put_rows(segments_RS, new.segments_RS, rows_N)
        return KVCache(
            k=jax.tree.map(put_heads, self.k, new.k),
            v=jax.tree.map(put_heads, self.v, new.v),
            positions_RS=put_rows(move(self.positions_RS), new.positions_RS, rows_N),
            segments_RS=segments_RS,
            next_slot=(segments_RS > 0).sum(axis=1).max().astype(jnp.int32),
        )


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
        take = lambda x: take_beams(x, parents_BK, axis=1)
        own = dataclasses.replace(
            self.own,
            k=jax.tree.map(take, self.own.k),
            v=jax.tree.map(take, self.own.v),
            positions_RS=take_beams(self.own.positions_RS, parents_BK),
            segments_RS=take_beams(self.own.segments_RS, parents_BK),
        )
        return dataclasses.replace(self, own=own)

    def rewind(self, num_tokens: Array) -> "TransformerDecodeState":
        """Forget the last tokens that were read."""
        next_slot = self.own.next_slot - num_tokens
        is_kept_S = jnp.arange(self.own.segments_RS.shape[1]) < next_slot
        segments_RS = jnp.where(is_kept_S, self.own.segments_RS, 0)
        own = dataclasses.replace(
            self.own, segments_RS=segments_RS, next_slot=next_slot
        )
        return dataclasses.replace(self, own=own)

    def put(
        self, new: "TransformerDecodeState", rows_N: Array, *, is_live_R: Array
    ) -> "TransformerDecodeState":
        """Return the state with new texts in some rows; see `DecodeState`."""
        own = self.own.put(new.own, rows_N, is_live_R=is_live_R)
        if self.source is None or new.source is None:
            return TransformerDecodeState(own=own)
        source = SourceKV(
            k_LBSKH=put_rows(self.source.k_LBSKH, new.source.k_LBSKH, rows_N, axis=1),
            v_LBSKH=put_rows(self.source.v_LBSKH, new.source.v_LBSKH, rows_N, axis=1),
            segments_BS=put_rows(
                self.source.segments_BS, new.source.segments_BS, rows_N
            ),
        )
        return TransformerDecodeState(own=own, source=source)


def empty_cache(config: TransformerConfig, *, num_rows: int, num_slots: int) -> KVCache:
    """Return a cache of zeros, in the dtype that the model computes in or in int8."""
    c = config
    shape = (c.num_layers, num_rows, num_slots, c.num_kv_heads, c.head_dim)

    def zeros() -> Stored:
        if not c.quantize.cache:
            return Stored(values_LRSKH=jnp.zeros(shape, c.dtype))
        scales = jnp.zeros(shape[:-1], jnp.float32)
        return Stored(values_LRSKH=jnp.zeros(shape, jnp.int8), scales_LRSK=scales)

    return KVCache(
        k=zeros(),
        v=zeros(),
        positions_RS=jnp.zeros((num_rows, num_slots), jnp.int32),
        segments_RS=jnp.zeros((num_rows, num_slots), jnp.int32),
        next_slot=jnp.zeros((), jnp.int32),
    )
