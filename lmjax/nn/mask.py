"""Who sees whom. B batch, T queries, S keys."""

from lmjax.types import Array


def attention_mask(
    positions_BT: Array,
    segments_BT: Array,
    key_positions_BS: Array,
    key_segments_BS: Array,
    *,
    causal: bool,
    window: int = 0,
) -> Array:
    """Return the boolean (B, 1, T, S) mask, true where a query sees a key.

    Both must belong to the same segment; a causal query sees keys at its position or
    before, and with a `window` only the last so many, itself included. Padding
    (segment 0) sees padding, so that no row of the softmax is empty.
    """
    mask = segments_BT[:, :, None] == key_segments_BS[:, None, :]
    distance = positions_BT[:, :, None] - key_positions_BS[:, None, :]
    if causal:
        mask &= distance >= 0
    if window:
        mask &= (distance < window) & (distance > -window)
    return mask[:, None]
