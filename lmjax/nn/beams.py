"""What goes on from what, in a search of several texts for each row.

B batch, K beams, J beams before, R rows (B times J or K).
"""

import jax
import jax.numpy as jnp

from lmjax.types import Array


def take_beams(x: Array, parents_BK: Array, *, axis: int = 0) -> Array:
    """Return an array whose beam k goes on from beam `parents_BK[b, k]` of its row.

    Args:
      x: dimension `axis` counts R = B J beams, those of one row side by side. It then
        counts B K.
      parents_BK: int32, below J. A row goes on from itself, so that rows may lie on
        several devices.
      axis: the dimension.
    """
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    rows = x.reshape(*before, len(parents_BK), -1, *after)
    take = jax.vmap(lambda beams, parents: jnp.take(beams, parents, axis), (axis, 0), 0)
    taken = jnp.moveaxis(take(rows, parents_BK), 0, axis)
    return taken.reshape(*before, parents_BK.size, *after)
