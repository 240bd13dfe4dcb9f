"""Continuous batching: texts that end make room for prompts that wait.

R rows of the batch, N new prompts among them, S slots of a text.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from lmjax.generate.texts import (
    Choice,
    GenerationState,
    continuations,
    power_of_two,
    read_length,
    slots_for,
)
from lmjax.types import Array, Params

MAX_ROWS = 64
MAX_CACHED_TOKENS = 65_536  # of all rows
SPARE_SLOTS = 64  # they let rows of unequal length go on for longer


class Rows:
    """The rows of a batch: each holds the number of a prompt, or -1.

    A row that has ended takes the next prompt, in the order of their lengths. One
    program serves all, but for the reading of prompts, of which there are a few shapes.

    Args:
      generator: a `Generator`, whose compiled programs are run.
      params: of its model.
      prompts: ids to continue.
      sources: of an encoder-decoder, one for each prompt.
      keys: of the random numbers of each prompt.
      choice: how tokens are chosen.
    """

    def __init__(
        self,
        generator: Any,
        params: Params,
        prompts: Sequence[Sequence[int]],
        sources: Sequence[Sequence[int]] | None,
        keys: Array,
        choice: Choice,
    ) -> None:
        self._generator, self._params, self._choice = generator, params, choice
        self._prompts, self._sources, self._keys = prompts, sources, keys
        size = lambda i: len(prompts[i]) + (0 if sources is None else len(sources[i]))
        self._waiting = sorted(range(len(prompts)), key=size)  # the next one last
        most = int(choice.max_tokens)
        num_slots = slots_for(prompts, sources, most)
        num_rows = min(power_of_two(len(prompts)), max_rows(num_slots))
        if num_rows < len(prompts):
            num_slots = slots_for(prompts, sources, most, spare=SPARE_SLOTS)
        self._num_slots = num_slots
        self._quarter = max(num_rows // 4, 1)
        self._rows = np.full(num_rows, -1)
        self._lengths = np.zeros(num_rows, int)
        self._state = self._read(np.arange(num_rows), cache_length=self._num_slots)
        self._next_slot = int(read_length(prompts, sources))

    @property
    def is_done(self) -> bool:
        """Return whether no text goes on, and no prompt waits."""
        return not self._waiting and bool((self._rows < 0).all())

    def advance(
        self, stop_ids: Collection[int], *, block: int
    ) -> Iterator[tuple[int, list[int]]]:
        """Extend all texts, by a block at most; yield the tokens of each so far."""
        self._make_room()
        num_rows = len(self._rows)
        (num, texts), self._state = self._generator.extend(
            self._params,
            self._state,
            self._choice,
            int(min(block, self._num_slots - self._next_slot)),
            num_rows - self._quarter if self._waiting else 0,
            self._rows < 0,
        )
        num, texts = jax.device_get((num, texts))
        self._next_slot += int(num)
        self._lengths = np.array(texts.lengths_B)
        found = zip(self._rows.copy(), continuations(texts, stop_ids), strict=True)
        self._rows[texts.ended_B] = -1
        yield from ((int(i), tokens) for i, tokens in found if i >= 0)

    def release(self, index: int) -> None:
        """End the text of a prompt."""
        self._rows[self._rows == index] = -1

    def _make_room(self) -> None:
        """Put waiting prompts into free rows, and texts into the first slots."""
        while self._waiting and (self._rows < 0).sum() >= self._quarter:
            free = np.flatnonzero(self._rows < 0)
            is_live = self._rows >= 0
            rows = np.full(self._group_size(len(free)), len(self._rows))
            rows[: len(self._waiting)] = free[: len(rows)][: len(self._waiting)]
            new = self._read(rows)
            self._state = self._generator.put(self._state, new, rows, is_live)
            self._next_slot = self._most_cached()
        if self._next_slot == self._num_slots:
            self._state = self._generator.compact(self._state, self._rows >= 0)
            self._next_slot = self._most_cached()

    def _group_size(self, num_free: int) -> int:
        """Return how many prompts are read at once, one of a few numbers."""
        return max(self._quarter, 1 << num_free.bit_length() - 1)

    def _most_cached(self) -> int:
        """Return the most tokens that a row has read: all but the last of its text."""
        return int(self._lengths[self._rows >= 0].max()) - 1

    def _read(
        self, rows: np.ndarray, *, cache_length: int | None = None
    ) -> GenerationState:
        """Read the next prompts for some rows; those beyond what waits are padding."""
        num = min(len(rows), len(self._waiting))
        taken = [self._waiting.pop() for _ in range(num)]
        index = np.array(taken + taken[:1] * (len(rows) - num))
        prompts, sources = self._prompts, self._sources
        read = self._generator.prefill(
            self._params,
            [prompts[i] for i in index],
            sources=None if sources is None else [sources[i] for i in index],
            num_slots=self._num_slots,
            cache_length=cache_length,
            source_length=max(map(len, sources)) if sources else 0,
        )
        is_padding = np.arange(len(rows)) >= num
        _, state = self._generator.begin(
            read, self._keys[index], self._choice, is_padding
        )
        self._rows[rows[:num]] = taken
        self._lengths[rows[:num]] = [len(prompts[i]) + 1 for i in taken]
        return state


def max_rows(num_slots: int) -> int:
    """Return how many rows of so many slots a batch has, a power of two."""
    most = min(MAX_ROWS, max(MAX_CACHED_TOKENS // num_slots, 1))
    return 1 << most.bit_length() - 1
