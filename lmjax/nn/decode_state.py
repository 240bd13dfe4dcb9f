"""The state that decoding carries from token to token, and the selection of beams.

B batch, K beams, J beams before, R rows (B times J or K).
"""

from typing import Protocol, Self

import jax
import jax.numpy as jnp

from lmjax.types import Array


class DecodeState(Protocol):
    """A model's memory of the tokens that it has read: a pytree with one row a text.

    Transformers keep keys and values, recurrent networks the states of their layers;
    both also keep the encoded source, if there is one.
    """

    def take(self, parents_BK: Array) -> Self:
        """Return the state of new beams, each a copy of a beam of its own row.

        Args:
          parents_BK: as in `take_beams`. The source, which all beams of a row share,
            is not copied.
        """

    def put(self, new: Self, rows_N: Array, *, is_live_R: Array) -> Self:
        """Return the state with the texts of another one in place of some of its own.

        Args:
          new: of N texts, of which as much is kept as in this state.
          rows_N: where they go; those from R on are dropped.
          is_live_R: the other texts that are still needed.
        """


def put_rows(x: Array, new: Array, rows_N: Array, *, axis: int = 0) -> Array:
    """Return `x` with N rows of `new` in place of its own; rows from R on are dropped.

    Other dimensions of `new` may be smaller; 0 fills them.
    """
    sizes = [*x.shape[:axis], new.shape[axis], *x.shape[axis + 1 :]]
    padding = [(0, size - n) for size, n in zip(sizes, new.shape, strict=True)]
    index = (slice(None),) * axis + (rows_N,)
    return x.at[index].set(jnp.pad(new, padding), mode="drop")


def take_beams(x: Array, parents_BK: Array, *, axis: int = 0) -> Array:
    """Select beams: beam k of row b becomes a copy of its beam `parents_BK[b, k]`.

    Args:
      x: its dimension `axis` has size R = B J, the beams of one row side by side; in
        the result it has size B K.
      parents_BK: int32, below J. Beams are selected within a row only, so that rows may
        lie on different devices.
      axis: the dimension that holds the beams.
    """
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    rows = x.reshape(*before, len(parents_BK), -1, *after)
    take = jax.vmap(lambda beams, parents: jnp.take(beams, parents, axis), (axis, 0), 0)
    taken = jnp.moveaxis(take(rows, parents_BK), 0, axis)
    return taken.reshape(*before, parents_BK.size, *after)
