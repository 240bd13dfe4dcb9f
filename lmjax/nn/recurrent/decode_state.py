"""The decode state of recurrent networks. B sources, R texts (B times beams)."""

import dataclasses

import jax

from lmjax.nn.decode_state import put_rows, take_beams
from lmjax.nn.recurrent.attention import Memory
from lmjax.nn.recurrent.layers import State
from lmjax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentDecodeState:
    """The `DecodeState` of a recurrent network: its layers' states, and the source.

    Its size does not depend on how many tokens have been read.
    """

    layers: State  # (R, ...)
    source: Memory | None = None  # B rows, each attended to by its R / B texts

    def take(self, parents_BK: Array) -> "RecurrentDecodeState":
        """Return the state of new beams; see `DecodeState`."""
        layers = {name: take_beams(x, parents_BK) for name, x in self.layers.items()}
        return dataclasses.replace(self, layers=layers)

    def put(
        self, new: "RecurrentDecodeState", rows_N: Array, *, is_live_R: Array
    ) -> "RecurrentDecodeState":
        """Return the state with new texts in some rows; see `DecodeState`."""
        return jax.tree.map(lambda x, y: put_rows(x, y, rows_N), self, new)
