"""Several short rows of a store as one: what is in a row never changes.

N rows of the store, R rows that hold them.
"""

import bisect
import dataclasses
import functools
from typing import Self

import numpy as np

from lmjax.data.stores.example_store import ExampleStore


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PackedRows:
    """The rows of a store, packed; `sizes` as those of the store."""

    store: ExampleStore
    order_N: np.ndarray  # the rows of the store, one packed row after another
    starts: np.ndarray  # (R + 1,): where each begins in that order
    sizes: np.ndarray  # (R,)

    @classmethod
    @functools.lru_cache(maxsize=4)
    def pack(cls, store: ExampleStore, *, length: int) -> Self:
        """Pack the rows of a store to at most `length` tokens each.

        Args:
          store: to pack.
          length: of a packed row.
        """
        bin_N = best_fit(store.sizes, length=length)
        order_N = np.argsort(bin_N, kind="stable")
        counts = np.bincount(bin_N)
        return cls(
            store=store,
            order_N=order_N,
            starts=np.cumsum([0, *counts]),
            sizes=np.bincount(bin_N, weights=store.sizes).astype(np.int32),
        )

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> list[dict[str, np.ndarray]]:
        """Return the columns of the rows that are one."""
        own = self.order_N[self.starts[index] : self.starts[index + 1]]
        return [self.store[int(i)] for i in own]


def best_fit(sizes_N: np.ndarray, *, length: int) -> np.ndarray:
    """Return the bin of each size: the fullest one that has room; the longest first.

    Args:
      sizes_N: numbers of tokens; one above `length` has a bin of its own.
      length: of a bin.
    """
    bin_N = np.zeros(len(sizes_N), np.int64)
    open_bins: dict[int, list[int]] = {}  # by the room that is left
    rooms: list[int] = []  # the keys of those, ascending
    num_bins = 0
    for i in np.argsort(-sizes_N.astype(np.int64), kind="stable"):
        size = int(sizes_N[i])
        place = bisect.bisect_left(rooms, size)
        if place < len(rooms):
            room = rooms[place]
            number = open_bins[room].pop()
            if not open_bins[room]:
                del open_bins[room], rooms[place]
        else:
            room, number, num_bins = length, num_bins, num_bins + 1
        bin_N[i] = number
        left = max(room - size, 0)
        if left not in open_bins:
            open_bins[left] = []
            bisect.insort(rooms, left)
        open_bins[left].append(number)
    return bin_N
