"""Batches: the windows of each training step, and of a held-out split.

Shapes: B rows of a batch, or this host's share of them; T tokens in a window.
"""

import atexit
import dataclasses
import logging
import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmjax.config.experiment import Config
from lmjax.data import order
from lmjax.data.datasets import Datasets, source_parts
from lmjax.data.lm import contiguous, objectives, packing
from lmjax.data.lm.contiguous import Lanes, Windows
from lmjax.data.lm.objectives import Objective
from lmjax.data.stores.token_store import TokenStore
from lmjax.data.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lmjax.types import HostBatch

_log = logging.getLogger(__name__)


def train_batches(
    datasets: Datasets,
    config: Config,
    *,
    start_step: int,
    rows: np.ndarray | None = None,
) -> Generator["HostBatch", None, None]:
    """Return the batches from `start_step` to the last step.

    Batches are cut ahead of time in a thread, or in `config.data.num_workers`
    processes; `close` stops them, and so does the end of the program.

    Args:
      prepared: tokenizer and stores.
      config: the experiment.
      start_step: the updates done so far.
      rows: which rows of the global batch this host wants; by default all.

    Raises:
      ConfigError: the tokenizer lacks an id that the objective needs.
    """
    source = TrainBatches(
        stores=tuple(datasets.stores["train"]),
        config=config,
        objective=objectives.build(config, datasets.tokenizer),
        bos_id=datasets.tokenizer.bos_id,
        eos_id=datasets.tokenizer.eos_id,
        start_step=start_step,
        rows=np.arange(config.batch_size) if rows is None else rows,
    )
    return read_ahead(source, config)


def read_ahead(source: Any, config: Config) -> Generator["HostBatch", None, None]:
    """Return the batches of a random-access source, made ahead of time.

    In a thread, or in `config.data.num_workers` processes, to which it is pickled;
    `close` stops them, and so does the end of the program.
    """
    import grain  # brings jax along: not for those who only build stores

    num_workers, ahead = config.data.num_workers, config.data.prefetch_batches
    batches = grain.MapDataset.source(source).to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
    )
    if num_workers:
        _let_grain_read_its_flags()
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=num_workers, per_worker_buffer_size=-(-ahead // num_workers)
            )
        )
    return _closed_at_exit(_copied(iter(batches)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainBatches:
    """A host's rows of the batch of each step from `start_step` on, to read at random.

    It pickles small: a process that receives it opens the stores itself.
    """

    stores: tuple[TokenStore, ...]
    config: Config
    objective: Objective
    bos_id: int | None
    eos_id: int | None
    start_step: int
    rows: np.ndarray

    def __len__(self) -> int:
        return max(0, self.config.num_steps - self.start_step)

    def __getitem__(self, index: int) -> "HostBatch":
        step = self.start_step + int(index)
        samples = sample_indices(self.config, step=step)[self.rows]
        window = self.objective.window
        part_B, windows_B = locate(
            self.stores, self.config, samples=samples, window=window
        )
        windows = _cut(
            self.stores,
            part_B,
            windows_B,
            config=self.config,
            window=window,
            ids=(self.bos_id, self.eos_id),
            circular=True,
        )
        return self.objective.rows(windows, samples, purpose=objectives.TRAIN)


def sample_indices(config: Config, *, step: int) -> np.ndarray:
    """Return the numbers of the samples in the global batch of a step, int64 (B,)."""
    return np.arange(config.batch_size, dtype=np.int64) + step * config.batch_size


def locate(
    stores: Sequence[TokenStore], config: Config, *, samples: np.ndarray, window: int
) -> tuple[np.ndarray, Windows]:
    """Find training samples: each one's store, and its window there.

    With `sample_indices` this tells what a step has seen.

    Args:
      stores: of the train split.
      config: the experiment.
      samples: their numbers.
      window: tokens in a window, as the objective has it.
    """
    if config.data.order == "contiguous":
        (store,) = stores  # the config refuses mixtures
        own = Lanes(
            num_tokens=store.num_tokens, num_lanes=config.batch_size, length=window
        )
        found = own.train(samples, seed=order.part_seed(config.seed, 0))
        return np.zeros(len(samples), np.int64), found
    weights = tuple(part.weight for part in source_parts(config).values())
    part_B, index_B = order.deal(samples, weights=weights, seed=config.seed)
    start_B = np.zeros(len(samples), np.int64)
    for part in np.unique(part_B):
        here = part_B == part
        start_B[here] = packing.train_starts(
            index_B[here],
            num_tokens=stores[part].num_tokens,
            length=window,
            seed=order.part_seed(config.seed, int(part)),
        )
    return part_B, contiguous.unrelated(start_B, length=window)


def eval_batches(
    stores: Sequence[TokenStore],
    config: Config,
    *,
    tokenizer: Tokenizer,
    data_shards: int = 1,
    rows: np.ndarray | None = None,
) -> Iterator["HostBatch"]:
    """Yield batches that hold each token of the stores once, or this host's `rows`.

    What an objective draws follows from the seed and the row's number. The last batch
    is filled up with rows of padding, so all have one shape, and each host has as
    many. With `config.eval.num_batches` as many batches hold windows at even distances
    from all of the stores. In contiguous order a batch's windows follow each other in
    its first row, so that each token is predicted from all before it, whatever the
    batch size; the other rows, one for each of `data_shards`, are padding.
    """
    objective = objectives.build(config, tokenizer)
    num_rows, length = (
        num_eval_rows(config, data_shards=data_shards),
        objective.window,
    )
    if config.data.order == "contiguous":
        length *= max(
            config.eval.batch_size // data_shards, 1
        )  # what a device has room for
    rows = np.arange(num_rows) if rows is None else rows
    part_N, windows_N = _eval_windows(stores, config, num_rows=num_rows, length=length)
    for first in range(0, len(part_N), num_rows):
        index_B = first + rows
        windows = _cut(
            stores,
            part_N[index_B],
            windows_N[index_B],
            config=config,
            window=length,
            ids=(tokenizer.bos_id, tokenizer.eos_id),
            circular=False,
        )
        yield objective.rows(windows, index_B, purpose=objectives.HELD_OUT)


def num_eval_rows(config: Config, *, data_shards: int) -> int:
    """Count the rows of a batch of `eval_batches`."""
    return data_shards if config.data.order == "contiguous" else config.eval.batch_size


def reads_all(stores: Sequence[TokenStore], config: Config, *, window: int) -> bool:
    """Return whether `eval_batches` hold every token, not those of a part."""
    sizes = (packing.num_windows(store.num_tokens, length=window) for store in stores)
    wanted = config.eval.num_batches * config.eval.batch_size
    return not wanted or wanted >= sum(sizes)


def _eval_windows(
    stores: Sequence[TokenStore], config: Config, *, num_rows: int, length: int
) -> tuple[np.ndarray, Windows]:
    """Return the store of each window, and the windows; padding is past the end."""
    if config.data.order == "contiguous":
        (store,) = stores  # the config refuses mixtures
        alone = contiguous.alone(store.num_tokens, num_rows=num_rows, length=length)
        return np.zeros_like(alone.starts), alone
    starts = [np.arange(0, store.num_tokens, length) for store in stores]
    part_N = np.repeat(np.arange(len(stores)), [len(start) for start in starts])
    start_N = np.concatenate(starts)
    wanted = config.eval.num_batches * num_rows
    if 0 < wanted < len(part_N):
        spread = np.arange(wanted) * len(part_N) // wanted
        part_N, start_N = part_N[spread], start_N[spread]
    padding = -len(part_N) % num_rows
    past_end = np.full(padding, stores[0].num_tokens)
    start_N = np.concatenate([start_N, past_end])
    return np.pad(part_N, (0, padding)), contiguous.unrelated(start_N, length=length)


def _cut(
    stores: Sequence[TokenStore],
    part_B: np.ndarray,
    windows_B: Windows,
    *,
    config: Config,
    window: int,
    ids: tuple[int | None, int | None],
    circular: bool,
) -> "HostBatch":
    """Cut rows out of several stores, in the order of the rows."""
    rows = np.arange(len(part_B))
    parts = {int(part): windows_B[part_B == part] for part in np.unique(part_B)}
    cut = {
        part: packing.cut_windows(
            stores[part],
            windows.starts,
            sizes=windows.sizes,
            before=windows.before,
            length=window,
            bos_id=ids[0],
            eos_id=ids[1],
            isolate=config.data.isolate_documents,
            circular=circular,
        )
        for part, windows in parts.items()
    }
    if len(cut) == 1:
        return next(iter(cut.values()))
    back = np.argsort(np.concatenate([rows[part_B == part] for part in cut]))
    names = next(iter(cut.values()))
    return {
        name: np.concatenate([batch[name] for batch in cut.values()])[back]
        for name in names
    }


def _copied(batches: Any) -> Generator["HostBatch", None, None]:
    """Copy batches out of the memory that loader processes share; stop them after."""

    def copy(batch: "HostBatch") -> "HostBatch":
        return {name: np.array(value) for name, value in batch.items()}

    try:
        yield from map(copy, batches)
    finally:
        batches.close()


def _closed_at_exit(
    batches: Generator["HostBatch", None, None],
) -> Generator["HostBatch", None, None]:
    """Have loader processes end before the interpreter does, if nobody ended them."""
    reference = weakref.ref(batches)

    def close() -> None:
        if (alive := reference()) is not None:
            alive.close()

    atexit.register(close)
    return batches


def _let_grain_read_its_flags() -> None:
    """Let grain's workers start where nobody parsed absl's flags, as in a notebook."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
