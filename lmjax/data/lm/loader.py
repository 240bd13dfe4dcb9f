"""Batches of running text: of each training step, and of a held-out split.

Shapes: B rows of a global batch, or those of them that this process holds.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmjax.config.experiment import Config
from lmjax.data.datasets import Datasets
from lmjax.data.lm import objectives
from lmjax.data.lm.objectives import Objective
from lmjax.data.lm.packing import cut_windows
from lmjax.data.lm.windows import (
    eval_windows,
    num_windows,
    sample_indices,
    train_windows,
)
from lmjax.data.stores.token_store import TokenStore
from lmjax.data.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lmjax.types import HostBatch

# From the number of rows in a global batch to those that this process holds.
LocalRows = Callable[[int], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainBatches:
    """The batch of each step from `start_step` on, to read at random.

    Small to pickle: a process that receives it opens the stores itself.
    """

    stores: tuple[TokenStore, ...]
    config: Config
    objective: Objective
    bos_id: int | None
    eos_id: int | None
    start_step: int
    rows: np.ndarray  # those of the global batch that this process holds

    def __len__(self) -> int:
        return max(0, self.config.num_steps - self.start_step)

    def __getitem__(self, index: int) -> "HostBatch":
        step = self.start_step + int(index)
        samples = sample_indices(self.config, step=step)[self.rows]
        length = self.objective.window
        windows = train_windows(
            self.stores, self.config, samples=samples, length=length
        )
        tokens = cut_windows(
            self.stores,
            windows,
            length=length,
            bos_id=self.bos_id,
            eos_id=self.eos_id,
            isolate=self.config.data.isolate_documents,
            circular=True,
        )
        return self.objective.make_batch(tokens, samples, purpose=objectives.TRAIN)


def open_train_batches(
    datasets: Datasets, config: Config, *, start_step: int, rows: LocalRows
) -> TrainBatches:
    """Return the batches of a run from `start_step` on.

    Raises:
      ConfigError: the tokenizer lacks an id that the objective needs.
    """
    stores = tuple(datasets.stores["train"])
    return TrainBatches(
        stores=stores,
        config=config,
        objective=objectives.build(config, datasets.tokenizer, stores),
        bos_id=datasets.tokenizer.bos_id,
        eos_id=datasets.tokenizer.eos_id,
        start_step=start_step,
        rows=rows(config.batch_size),
    )


def eval_batches(
    stores: Sequence[TokenStore],
    config: Config,
    *,
    tokenizer: Tokenizer,
    data_shards: int = 1,
    rows: LocalRows = np.arange,
) -> Iterator["HostBatch"]:
    """Yield batches that hold each token of the stores once, or this process's rows.

    All have one shape: rows of padding fill the last one. Random choices of an
    objective follow from the seed and the number of the row. With
    `config.eval.num_batches` the windows lie at even distances in all of the stores.

    In contiguous order the windows of a batch form one long row, so that each token is
    predicted from all before it, whatever the batch size. Each of the other
    `data_shards` has a row of padding.
    """
    objective = objectives.build(config, tokenizer, stores)
    num_rows, length = config.eval.batch_size, objective.window
    if config.data.order == "contiguous":
        # As many tokens as a device has room for.
        length *= max(config.eval.batch_size // data_shards, 1)
        num_rows = data_shards
    windows = eval_windows(stores, config, num_rows=num_rows, length=length)
    for first in range(0, len(windows), num_rows):
        index_B = first + rows(num_rows)
        tokens = cut_windows(
            stores,
            windows[index_B],
            length=length,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            isolate=config.data.isolate_documents,
            circular=False,
        )
        yield objective.make_batch(tokens, index_B, purpose=objectives.HELD_OUT)


def reads_whole_split(
    stores: Sequence[TokenStore], config: Config, *, window: int
) -> bool:
    """Return whether `eval_batches` holds every token, not a sample of the windows."""
    sizes = (num_windows(store.num_tokens, length=window) for store in stores)
    wanted = config.eval.num_batches * config.eval.batch_size
    return not wanted or wanted >= sum(sizes)
