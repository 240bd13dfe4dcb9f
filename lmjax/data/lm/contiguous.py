"""Contiguous windows: each row of a batch goes on where it stopped a batch before.

For training a stream is cut into as many lanes as a batch has rows, of the same length
to one token. Step by step each lane gives its next window; the last windows of an epoch
may be short, even empty. As all else here it is a pure function of the seed and the
step. Each lane begins with nothing behind it, so for evaluation there is but one.

Shapes: B windows.
"""

import dataclasses

import numpy as np

from lmjax.data import order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """Where windows begin in a stream, how many tokens they take, what is before.

    Each is int64 (B,). `before` counts what a row has read ahead of the window: 0
    where nothing is remembered.
    """

    starts: np.ndarray
    sizes: np.ndarray
    before: np.ndarray

    def __getitem__(self, index: np.ndarray) -> "Windows":
        return Windows(
            starts=self.starts[index],
            sizes=self.sizes[index],
            before=self.before[index],
        )


def unrelated(starts: np.ndarray, *, length: int) -> Windows:
    """Return windows of one length, each with nothing before it."""
    sizes = np.full(len(starts), length)
    return Windows(starts=starts, sizes=sizes, before=np.zeros_like(sizes))


def alone(num_tokens: int, *, num_rows: int, length: int) -> Windows:
    """Return the windows of a held-out stream, one after another in a single lane.

    Each is the first of `num_rows`; the others begin past the end, and are padding.
    """
    first = np.arange(0, num_tokens, length)
    starts = np.full((len(first), num_rows), num_tokens)
    starts[:, 0] = first
    windows = unrelated(starts.ravel(), length=length)
    return dataclasses.replace(windows, before=windows.starts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lanes:
    """The lanes of a stream of `num_tokens`, read in windows of `length`."""

    num_tokens: int
    num_lanes: int
    length: int

    @property
    def steps_per_epoch(self) -> int:
        """Count the windows of the longest lane."""
        longest = -(-self.num_tokens // self.num_lanes)
        return -(-longest // self.length)

    def train(self, samples: np.ndarray, *, seed: int) -> Windows:
        """Return the windows of training samples, counted through all epochs.

        The stream is a circle, which each epoch enters at another token: lanes and
        windows are then cut at other places.

        Args:
          samples: their numbers: lane after lane, step after step.
          seed: decides where the circle is entered.
        """
        epoch, index = np.divmod(samples, self.steps_per_epoch * self.num_lanes)
        step, lane = np.divmod(index, self.num_lanes)
        first = lane * self.num_tokens // self.num_lanes
        size = (lane + 1) * self.num_tokens // self.num_lanes - first
        before = np.minimum(step * self.length, size)
        sizes = np.minimum(self.length, size - before)
        shift = order.offset(epoch, size=self.num_tokens, seed=seed)
        starts = (first + before + shift) % self.num_tokens
        return Windows(starts=starts, sizes=sizes, before=before)
