"""Which tokens each row of a batch reads: one window of a token store's stream.

Where a window lies is a pure function of the seed and the number of its sample, so
any step of any run can be looked up at any time, by any process.

- Shuffled order: each epoch cuts the stream at other places and reads its windows in
  another order.
- Contiguous order: each row of a batch continues where it stopped a batch before.
- Evaluation: the windows of a split one after another.

Shapes: B windows of a batch, N of a split.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lmjax.config.experiment import Config
from lmjax.data import order
from lmjax.data.datasets import source_configs
from lmjax.data.stores.token_store import TokenStore


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Windows of token streams; each array is int64 (B,)."""

    stores: np.ndarray  # index of the store
    starts: np.ndarray  # first token; past the end of the stream: a row of padding
    sizes: np.ndarray  # tokens taken; the rest of the row is padding
    # Tokens that its row has read before it: 0 where windows are independent.
    first_positions: np.ndarray

    def __getitem__(self, index: np.ndarray) -> "Windows":
        return Windows(
            stores=self.stores[index],
            starts=self.starts[index],
            sizes=self.sizes[index],
            first_positions=self.first_positions[index],
        )

    def __len__(self) -> int:
        return len(self.starts)


def independent_windows(
    starts: np.ndarray, *, length: int, stores: np.ndarray | None = None
) -> Windows:
    """Return windows of one length, by default of the first store."""
    zeros = np.zeros(len(starts), np.int64)
    return Windows(
        stores=zeros if stores is None else stores,
        starts=starts,
        sizes=np.full(len(starts), length),
        first_positions=zeros,
    )


def sample_indices(config: Config, *, step: int) -> np.ndarray:
    """Return the numbers of the samples in the global batch of a step, int64 (B,)."""
    return np.arange(config.batch_size, dtype=np.int64) + step * config.batch_size


def train_windows(
    stores: Sequence[TokenStore], config: Config, *, samples: np.ndarray, length: int
) -> Windows:
    """Return the windows of training samples.

    Args:
      stores: the train split, one store for each source.
      config: the experiment.
      samples: (B,) their numbers, counted through all epochs; see `sample_indices`.
      length: tokens in a window.
    """
    if config.data.order == "contiguous":
        (store,) = stores  # the config refuses mixtures
        streams = ContiguousStreams(
            num_tokens=store.num_tokens, num_streams=config.batch_size, length=length
        )
        return streams.windows(samples, seed=order.source_seed(config.seed, 0))
    weights = tuple(source.weight for source in source_configs(config).values())
    source_B, index_B = order.assign_sources(samples, weights=weights, seed=config.seed)
    start_B = np.zeros(len(samples), np.int64)
    for source in np.unique(source_B):
        here = source_B == source
        start_B[here] = shuffled_starts(
            index_B[here],
            num_tokens=stores[source].num_tokens,
            length=length,
            seed=order.source_seed(config.seed, int(source)),
        )
    return independent_windows(start_B, length=length, stores=source_B)


def shuffled_starts(
    index: np.ndarray, *, num_tokens: int, length: int, seed: int
) -> np.ndarray:
    """Return the first tokens of training windows in a stream.

    The stream is a circle. Each epoch cuts it at other places, and reads its windows
    in another order.

    Args:
      index: numbers of samples, counted through all epochs.
      num_tokens: length of the stream.
      length: tokens in a window.
      seed: decides the cuts and the order.
    """
    size = num_windows(num_tokens, length=length)
    epoch, position = np.divmod(index, size)
    window = order.permutation(position, size=size, seed=seed, epoch=epoch)
    shift = order.offset(epoch, size=length, seed=seed)
    return (shift + window * length) % num_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContiguousStreams:
    """A token stream cut into one stream for each row of a batch.

    Their lengths differ by at most one token. Step by step each row reads the next
    window of its own stream. The last windows of an epoch may be short, even empty.
    """

    num_tokens: int
    num_streams: int
    length: int  # of a window

    @property
    def steps_per_epoch(self) -> int:
        """Count the windows of the longest stream."""
        longest = -(-self.num_tokens // self.num_streams)
        return num_windows(longest, length=self.length)

    def windows(self, samples: np.ndarray, *, seed: int) -> Windows:
        """Return the windows of training samples, counted through all epochs.

        The tokens form a circle, which each epoch enters at another token: so streams
        and windows are cut at other places.

        Args:
          samples: (B,) their numbers: stream after stream, step after step.
          seed: decides where the circle is entered.
        """
        epoch, index = np.divmod(samples, self.steps_per_epoch * self.num_streams)
        step, stream = np.divmod(index, self.num_streams)
        first = stream * self.num_tokens // self.num_streams
        size = (stream + 1) * self.num_tokens // self.num_streams - first
        first_positions = np.minimum(step * self.length, size)
        shift = order.offset(epoch, size=self.num_tokens, seed=seed)
        return Windows(
            stores=np.zeros(len(samples), np.int64),
            starts=(first + first_positions + shift) % self.num_tokens,
            sizes=np.minimum(self.length, size - first_positions),
            first_positions=first_positions,
        )


def eval_windows(
    stores: Sequence[TokenStore], config: Config, *, num_rows: int, length: int
) -> Windows:
    """Return the windows of a held-out split, a multiple of `num_rows` of them.

    They cover each token once. With `config.eval.num_batches` they fill that number of
    batches, at even distances. The last batch is filled with padding.
    """
    if config.data.order == "contiguous":
        (store,) = stores  # the config refuses mixtures
        return eval_stream(store.num_tokens, num_rows=num_rows, length=length)
    starts = [np.arange(0, store.num_tokens, length) for store in stores]
    store_N = np.repeat(np.arange(len(stores)), [len(start) for start in starts])
    start_N = np.concatenate(starts)
    wanted = config.eval.num_batches * num_rows
    if 0 < wanted < len(store_N):
        spread = np.arange(wanted) * len(store_N) // wanted
        store_N, start_N = store_N[spread], start_N[spread]
    padding = (0, -len(store_N) % num_rows)
    past_end = stores[0].num_tokens
    return independent_windows(
        np.pad(start_N, padding, constant_values=past_end),
        length=length,
        stores=np.pad(store_N, padding),
    )


def eval_stream(num_tokens: int, *, num_rows: int, length: int) -> Windows:
    """Return the windows of a held-out stream, read in one row from end to end.

    Each is the first of `num_rows`; the other rows are padding.
    """
    first = np.arange(0, num_tokens, length)
    starts = np.full((len(first), num_rows), num_tokens)
    starts[:, 0] = first
    windows = independent_windows(starts.ravel(), length=length)
    return dataclasses.replace(windows, first_positions=windows.starts)


def num_windows(num_tokens: int, *, length: int) -> int:
    """Return how many windows cover a stream."""
    return -(-num_tokens // length)
