"""What a run reads, whatever its task: windows of a stream, or examples in buckets.

B rows of a batch, or this host's share of them.
"""

import dataclasses
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmjax.config.experiment import Config
from lmjax.data import bucketing, example_datasets
from lmjax.data.bucketing import PADDING, Buckets, Schedule
from lmjax.data.datasets import Datasets
from lmjax.data.features.features import Features
from lmjax.data.features.registry import make_features
from lmjax.data.lm import loader, objectives
from lmjax.data.stores.example_store import ExampleStore

if TYPE_CHECKING:
    from lmjax.types import HostBatch

# Which rows of a global batch of so many this host wants.
Rows = Callable[[int], np.ndarray]


def train(
    datasets: Datasets,
    config: Config,
    *,
    start_step: int,
    data_shards: int = 1,
    rows: Rows = np.arange,
) -> Generator["HostBatch", None, None]:
    """Return the batches from `start_step` to the last step; as `loader.train_batches`.

    Args:
      prepared: tokenizer and stores.
      config: the experiment.
      start_step: the updates done so far.
      data_shards: how many shards the mesh splits the rows of a batch into.
      rows: which rows of a global batch this host wants.
    """
    if not example_datasets.reads_examples(config):
        here = rows(config.batch_size)
        return loader.train_batches(datasets, config, start_step=start_step, rows=here)
    schedule = train_schedule(datasets, config, data_shards=data_shards)
    source = ExampleBatches(
        store=_store(datasets, "train"),
        features=make_features(config),
        schedule=schedule,
        steps=range(start_step, config.num_steps),
        rows={count: rows(count) for count in schedule.buckets.num_rows},
    )
    return loader.read_ahead(source, config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleBatches:
    """A host's rows of the batch of each of some steps, to read at random."""

    store: ExampleStore
    features: Features
    schedule: Schedule
    steps: range
    rows: Mapping[int, np.ndarray]  # this host's, by how many there are in all

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> "HostBatch":
        length, index_B = self.schedule.batch(self.steps[int(index)])
        here = index_B[self.rows[len(index_B)]]
        return _batch(self.store, self.features, here, length=length)


def train_schedule(datasets: Datasets, config: Config, *, data_shards: int) -> Schedule:
    """Return the training batches of examples: their shapes, and their order."""
    lengths = _store(datasets, "train").sizes
    buckets = bucketing.choose(
        lengths,
        num_buckets=config.data.num_buckets,
        batch_size=config.batch_size,
        data_shards=data_shards * config.num_microbatches,
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
    rows: Rows = np.arange,
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
            rows=rows(loader.num_eval_rows(config, data_shards=data_shards)),
        ):
            yield EvalBatch(arrays=arrays)
        return
    store, features = _store(datasets, split), make_features(config)
    epoch = bucketing.in_order(
        store.sizes,
        held_out_buckets(datasets, config, data_shards=data_shards),
    )
    measured = {*some(len(epoch), config.eval.num_batches)}
    wanted = np.zeros(len(store), bool)
    wanted[[*predicted]] = True
    for number in range(len(epoch)):
        length, index_B = epoch.batch(number)
        if number in measured or wanted[index_B[index_B != PADDING]].any():
            here = index_B[rows(len(index_B))]
            yield EvalBatch(
                arrays=_batch(store, features, here, length=length),
                is_measured=number in measured,
                index_B=index_B,
            )


def held_out_buckets(
    datasets: Datasets, config: Config, *, data_shards: int
) -> Buckets:
    """Return the buckets that all held-out splits share."""
    stores = [_store(datasets, n) for n in ("valid", "test") if n in datasets.stores]
    return bucketing.choose(
        np.concatenate([store.sizes for store in stores]),
        num_buckets=config.data.num_buckets,
        batch_size=config.eval.batch_size,
        data_shards=data_shards,
    )


def describe(datasets: Datasets, config: Config, *, data_shards: int) -> str:
    """Return the shapes of the batches to come and their padding; "" for a stream."""
    if not example_datasets.reads_examples(config):
        return ""
    schedule = train_schedule(datasets, config, data_shards=data_shards)
    store, read = _store(datasets, "train"), make_features(config)
    return (
        f"batches of {schedule.buckets} tokens, {schedule.steps_per_epoch:,} an epoch; "
        f"{_padding(store, read, schedule.buckets):.1%} padding"
    )


def _padding(store: ExampleStore, read: Features, buckets: Buckets) -> float:
    """Return how much of an epoch's batches is padding, sources and targets alike."""
    blanks = [read.batch([None], length=length) for length in buckets.lengths]
    names = [name for name in ("segments", "source_segments") if name in blanks[0]]
    room = [sum(blank[name].size for name in names) for blank in blanks]
    total = int((buckets.rows_per_epoch(store.sizes) * room).sum())
    # A row's size is how many tokens it has, but where it has two texts.
    filled = store.sizes.sum() if len(names) == 1 else store.num_tokens
    return 1.0 - int(filled) / total


def describe_step(
    datasets: Datasets, config: Config, step: int, *, data_shards: int
) -> str:
    """Return which samples the batch of a step held, steps counted from 1."""
    if example_datasets.reads_examples(config):
        schedule = train_schedule(datasets, config, data_shards=data_shards)
        index_B = schedule.batch(step - 1)[1]
        return f"its batch is rows {index_B[index_B >= 0].tolist()} of the train store"
    samples = loader.sample_indices(config, step=step - 1)
    window = objectives.build(config, datasets.tokenizer).window
    stores, windows = loader.locate(
        datasets.stores["train"], config, samples=samples, window=window
    )
    return (
        f"its batch is samples {samples[0]} to {samples[-1]}, windows at tokens "
        f"{windows.starts.tolist()} of train stores {stores.tolist()}"
    )


def _batch(
    store: ExampleStore, read: Features, index_B: np.ndarray, *, length: int
) -> "HostBatch":
    rows = [None if i == PADDING else store[int(i)] for i in index_B]
    return read.batch(rows, length=length)


def some(count: int, wanted: int) -> Sequence[int]:
    """Return the numbers of all batches, or of as many as wanted at even distances."""
    if not 0 < wanted < count:
        return range(count)
    return [i * count // wanted for i in range(wanted)]


def _store(datasets: Datasets, split: str) -> Any:
    """Return the one store that a split of examples has."""
    (store,) = datasets.stores[split]
    assert isinstance(store, ExampleStore), store
    return store
