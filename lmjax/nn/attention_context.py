"""Which keys each query of an attention layer may see, as data.

B batch, T queries, S keys.
"""

import dataclasses

import jax

from lmjax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionContext:
    """Which keys each query may attend to: segments and positions of both.

    A query sees the keys of its own segment: if `causal`, those at its position or
    before; with a `window`, those fewer than that many positions away. Padding
    (segment 0) sees padding, so that no row of the softmax is empty.

    Positions are None where neither `causal` nor `window` needs them, as in
    cross-attention.
    """

    segments_BT: Array
    key_segments_BS: Array
    positions_BT: Array | None = None
    key_positions_BS: Array | None = None
    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: int = dataclasses.field(default=0, metadata={"static": True})  # 0: all


def dense_mask(context: AttentionContext) -> Array:
    """Return the boolean (B, 1, T, S) mask, true where a query sees a key."""
    c = context
    mask = c.segments_BT[:, :, None] == c.key_segments_BS[:, None, :]
    if c.causal or c.window:
        assert c.positions_BT is not None and c.key_positions_BS is not None
        distance = c.positions_BT[:, :, None] - c.key_positions_BS[:, None, :]
        if c.causal:
            mask &= distance >= 0
        if c.window:
            mask &= (distance < c.window) & (distance > -c.window)
    return mask[:, None]
