"""Which keys each query of an attention layer may see, as data.

B batch, T queries, S keys, H head_dim.
"""

import dataclasses
import math

import jax

from lmjax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionContext:
    """Which keys each query may attend to: segments and positions of both.

    A query sees the keys of its own segment: if `causal`, those at its position or
    before; with a `window`, those fewer than that many positions away. Padding
    (segment 0) sees padding, so that no row of the softmax is empty.

    Without `key_segments_BS` a sequence attends to itself; positions then grow by 1
    within each run of a segment. Positions are None where neither `causal` nor
    `window` needs them, as in cross-attention.
    """

    segments_BT: Array
    positions_BT: Array | None = None
    key_segments_BS: Array | None = None
    key_positions_BS: Array | None = None
    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: int = dataclasses.field(default=0, metadata={"static": True})  # 0: all

    @property
    def is_self(self) -> bool:
        """Return whether a sequence attends to itself."""
        return self.key_segments_BS is None

    @property
    def keys(self) -> tuple[Array, Array | None]:
        """Return the segments and the positions of the keys."""
        if self.key_segments_BS is None:
            return self.segments_BT, self.positions_BT
        return self.key_segments_BS, self.key_positions_BS


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """How scores are computed, and weights from them."""

    scale: float = 0.0  # of the scores; 0: 1 / sqrt(H)
    softcap: float = 0.0  # if not 0, scores become softcap * tanh(scores / softcap)
    dropout_rate: float = 0.0  # of the weights, with a key

    def scale_of(self, head_dim: int) -> float:
        """Return the factor of the scores of heads of this size."""
        return self.scale or 1.0 / math.sqrt(head_dim)


def dense_mask(context: AttentionContext) -> Array:
    """Return the boolean (B, 1, T, S) mask, true where a query sees a key."""
    c = context
    key_segments_BS, key_positions_BS = c.keys
    mask = c.segments_BT[:, :, None] == key_segments_BS[:, None, :]
    if c.causal or c.window:
        assert c.positions_BT is not None and key_positions_BS is not None
        distance = c.positions_BT[:, :, None] - key_positions_BS[:, None, :]
        if c.causal:
            mask &= distance >= 0
        if c.window:
            mask &= (distance < c.window) & (distance > -c.window)
    return mask[:, None]
