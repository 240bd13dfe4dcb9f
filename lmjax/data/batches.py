"""The batches of a run, whatever its task: windows of text, or examples in buckets.

B rows of a global batch, or those of them that this process holds.
"""

import dataclasses
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmjax.config.experiment import Config
from lmjax.data import bucketing, example_datasets
from lmjax.data.bucketing import PADDING, Buckets, Schedule
from lmjax.data.datasets import Datasets
from lmjax.data.features.features import Features
from lmjax.data.features.registry import make_features
from lmjax.data.lm import loader, objectives
from lmjax.data.lm.loader import LocalRows
from lmjax.data.lm.windows import sample_indices, train_windows
from lmjax.data.prefetch import prefetch
from lmjax.data.stores.example_store import ExampleStore
from lmjax.data.stores.packed_rows import PackedRows

if TYPE_CHECKING:
    from lmjax.types import HostBatch


def train_batches(
    datasets: Datasets,
    config: Config,
    *,
    start_step: int,
    data_shards: int = 1,
    row_multiple: int = 0,
    rows: LocalRows = np.arange,
) -> Generator["HostBatch", None, None]:
    """Return the batches from `start_step` to the last step, made ahead of time.

    Closing the generator ends its thread or processes.

    Args:
      datasets: tokenizer and stores.
      config: the experiment.
      start_step: the number of updates done so far.
      data_shards: how many shards the mesh splits the rows of a batch into.
      row_multiple: see `train_schedule`.
      rows: from the number of rows in a global batch to those that this process holds.

    Raises:
      ConfigError: the tokenizer lacks an id that the objective needs.
    """
    source: loader.TrainBatches | ExampleBatches
    if example_datasets.reads_examples(config):
        schedule = train_schedule(
            datasets, config, data_shards=data_shards, row_multiple=row_multiple
        )
        multiple = row_multiple_of(config, data_shards=data_shards)
        padded = {-(-n // multiple) * multiple for n in schedule.buckets.num_rows}
        source = ExampleBatches(
            store=_train_rows(datasets, config),
            features=make_features(config),
            schedule=schedule,
            steps=range(start_step, config.num_steps),
            multiple=multiple,
            rows={count: rows(count) for count in padded},
        )
    else:
        source = loader.open_train_batches(
            datasets, config, start_step=start_step, rows=rows
        )
    return prefetch(source, config.data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleBatches:
    """The batches of examples of some steps, to read at random."""

    store: ExampleStore | PackedRows
    features: Features
    schedule: Schedule
    steps: range
    multiple: int  # of rows: rows of padding fill a batch up to it
    # Those that this process holds, by the number of rows in a global batch.
    rows: Mapping[int, np.ndarray]

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> "HostBatch":
        length, index_B = self.schedule.batch(self.steps[int(index)])
        index_B = bucketing.pad_rows(index_B, multiple=self.multiple)
        here = index_B[self.rows[len(index_B)]]
        return _make_batch(self.store, self.features, here, length=length)


def row_multiple_of(config: Config, *, data_shards: int) -> int:
    """Return what divides the rows of each batch on a mesh of so many shards."""
    return data_shards * config.num_microbatches


def train_schedule(
    datasets: Datasets, config: Config, *, data_shards: int, row_multiple: int = 0
) -> Schedule:
    """Return the buckets of the training examples, and the order of their batches.

    Args:
      datasets: tokenizer and stores.
      config: the experiment.
      data_shards: how many shards the mesh splits the rows of a batch into.
      row_multiple: `row_multiple_of` the mesh that the run began on, which decides
        its batches for good; 0: it begins on this one.
    """
    lengths = _train_rows(datasets, config).sizes
    buckets = bucketing.choose_buckets(
        lengths,
        num_buckets=config.data.num_buckets,
        batch_size=config.batch_size,
        data_shards=row_multiple or row_multiple_of(config, data_shards=data_shards),
    )
    return Schedule(lengths, buckets, config.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalBatch:
    """A held-out batch: this host's rows of it, and what it is evaluated for."""

    arrays: "HostBatch"
    is_measured: bool = True  # whether it counts in the metrics of the split
    index_B: np.ndarray | None = None  # of all its rows in the store, or PADDING


def eval_batches(
    datasets: Datasets,
    split: str,
    config: Config,
    *,
    data_shards: int = 1,
    rows: LocalRows = np.arange,
    predicted: Collection[int] = (),
) -> Iterator[EvalBatch]:
    """Yield batches that hold all of a split once, or `eval.num_batches` of them.

    Args:
      datasets: tokenizer and stores.
      split: valid or test.
      config: the experiment.
      data_shards: how many shards the mesh splits the rows of a batch into.
      rows: which rows of a global batch this host wants.
      predicted: rows of the store that are needed whatever `eval.num_batches` is.
    """
    if not example_datasets.reads_examples(config):
        for arrays in loader.eval_batches(
            datasets.stores[split],
            config,
            tokenizer=datasets.tokenizer,
            data_shards=data_shards,
            rows=rows,
        ):
            yield EvalBatch(arrays=arrays)
        return
    store, features = _example_store(datasets, split), make_features(config)
    buckets = eval_buckets(datasets, config, data_shards=data_shards)
    epoch = bucketing.sorted_epoch(store.sizes, buckets)
    measured = {*spread_evenly(len(epoch), config.eval.num_batches)}
    wanted = np.zeros(len(store), bool)
    wanted[[*predicted]] = True
    for number in range(len(epoch)):
        length, index_B = epoch.batch(number)
        if number in measured or wanted[index_B[index_B != PADDING]].any():
            here = index_B[rows(len(index_B))]
            yield EvalBatch(
                arrays=_make_batch(store, features, here, length=length),
                is_measured=number in measured,
                index_B=index_B,
            )


def eval_buckets(datasets: Datasets, config: Config, *, data_shards: int) -> Buckets:
    """Return the buckets that all held-out splits share."""
    splits = [split for split in ("valid", "test") if split in datasets.stores]
    lengths = [_example_store(datasets, split).sizes for split in splits]
    return bucketing.choose_buckets(
        np.concatenate(lengths),
        num_buckets=config.data.num_buckets,
        batch_size=config.eval.batch_size,
        data_shards=data_shards,
    )


def describe(
    datasets: Datasets, config: Config, *, data_shards: int, row_multiple: int = 0
) -> str:
    """Return the shapes of the training batches and their padding; "" for text."""
    if not example_datasets.reads_examples(config):
        return ""
    schedule = train_schedule(
        datasets, config, data_shards=data_shards, row_multiple=row_multiple
    )
    store, features = _train_rows(datasets, config), make_features(config)
    return (
        f"batches of {schedule.buckets} tokens, {schedule.steps_per_epoch:,} an epoch; "
        f"{_padding_share(store, features, schedule.buckets):.1%} padding"
    )


def bucket_shapes(
    datasets: Datasets, config: Config, *, data_shards: int, row_multiple: int = 0
) -> "list[HostBatch]":
    """Return an empty global batch of each bucket; none for text, whose shape is one.

    The arguments are those of `train_schedule`.
    """
    if not example_datasets.reads_examples(config):
        return []
    schedule = train_schedule(
        datasets, config, data_shards=data_shards, row_multiple=row_multiple
    )
    multiple = row_multiple_of(config, data_shards=data_shards)
    features = make_features(config)
    return [
        features.batch([None] * (-(-num_rows // multiple) * multiple), length=length)
        for num_rows, length in zip(
            schedule.buckets.num_rows, schedule.buckets.lengths, strict=True
        )
    ]


def _padding_share(store: Any, features: Features, buckets: Buckets) -> float:
    """Return the share of padding in an epoch, of sources and targets alike."""
    blanks = [features.batch([None], length=length) for length in buckets.lengths]
    every = ("segments", "source_segments", "rejected_segments")
    names = [name for name in every if name in blanks[0]]
    slots = [sum(blank[name].size for name in names) for blank in blanks]
    total = int((buckets.rows_per_epoch(store.sizes) * slots).sum())
    # The size of a row is its number of tokens, unless it has two texts.
    filled = store.sizes.sum() if len(names) == 1 else store.num_tokens
    return 1.0 - int(filled) / total


def samples_of_step(
    datasets: Datasets,
    config: Config,
    step: int,
    *,
    data_shards: int = 1,
    row_multiple: int = 0,
) -> np.ndarray:
    """Return which samples the global batch of a step holds, without padding.

    They do not depend on the number of devices or processes.

    Args:
      datasets: tokenizer and stores.
      config: the experiment.
      step: counted from 1.
      data_shards: how many shards the mesh splits the rows of a batch into.
      row_multiple: see `train_schedule`.

    Returns:
      int64 (B, 2), in the order of the rows. Of text: the number of a train store, and
      the first token of the window in it. Of examples: 0, and the row of the store,
      or of what it is packed to.
    """
    if example_datasets.reads_examples(config):
        schedule = train_schedule(
            datasets, config, data_shards=data_shards, row_multiple=row_multiple
        )
        index_B = schedule.batch(step - 1)[1]
        index_B = index_B[index_B != PADDING]
        return np.stack([np.zeros_like(index_B), index_B], axis=1)
    samples = sample_indices(config, step=step - 1)
    stores = datasets.stores["train"]
    length = objectives.build(config, datasets.tokenizer, stores).window
    windows = train_windows(stores, config, samples=samples, length=length)
    return np.stack([windows.stores, windows.starts], axis=1)


def describe_step(
    datasets: Datasets,
    config: Config,
    step: int,
    *,
    data_shards: int,
    row_multiple: int = 0,
) -> str:
    """Return which samples the batch of a step holds, for an error message.

    The arguments are those of `samples_of_step`.
    """
    store_B, place_B = samples_of_step(
        datasets, config, step, data_shards=data_shards, row_multiple=row_multiple
    ).T
    if example_datasets.reads_examples(config):
        return f"its batch is rows {place_B.tolist()} of the train store"
    samples = sample_indices(config, step=step - 1)
    return (
        f"its batch is samples {samples[0]} to {samples[-1]}, windows at tokens "
        f"{place_B.tolist()} of train stores {store_B.tolist()}"
    )


def spread_evenly(count: int, wanted: int) -> Sequence[int]:
    """Return `wanted` of the numbers below `count` at even distances; 0: all."""
    if not 0 < wanted < count:
        return range(count)
    return [i * count // wanted for i in range(wanted)]


def _make_batch(
    store: ExampleStore | PackedRows,
    features: Features,
    index_B: np.ndarray,
    *,
    length: int,
) -> "HostBatch":
    if isinstance(store, PackedRows):
        groups = [[] if i == PADDING else store[int(i)] for i in index_B]
        return features.batch_packed(groups, length=length)
    rows = [None if i == PADDING else store[int(i)] for i in index_B]
    return features.batch(rows, length=length)


def _train_rows(datasets: Datasets, config: Config) -> Any:
    """Return the rows of training: those of the store, or several of them in each."""
    store = _example_store(datasets, "train")
    if not config.data.pack_examples:
        return store
    return PackedRows.pack(store, length=config.data.length)


def _example_store(datasets: Datasets, split: str) -> Any:
    """Return the one store that a split of examples has."""
    (store,) = datasets.stores[split]
    assert isinstance(store, ExampleStore), store
    return store
