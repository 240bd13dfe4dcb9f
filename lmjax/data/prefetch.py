"""Batches made ahead of time by grain, in a thread or in worker processes."""

import atexit
import weakref
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np

from lmjax.config.data import DataConfig

if TYPE_CHECKING:
    from lmjax.types import HostBatch


def prefetch(source: Any, config: DataConfig) -> Generator["HostBatch", None, None]:
    """Yield the batches of a random-access source in order, made ahead of time.

    They are made in a thread, or in `config.num_workers` processes, to which the
    source is pickled. Closing the generator stops them, and so does the end of the
    program.

    Args:
      source: has `__len__` and `__getitem__`, which returns a batch.
      config: the numbers of processes and of batches made ahead.
    """
    import grain  # imports jax, which building stores does not need

    num_workers, ahead = config.num_workers, config.prefetch_batches
    batches = grain.MapDataset.source(source).to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
    )
    if num_workers:
        _mark_absl_flags_parsed()
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=num_workers, per_worker_buffer_size=-(-ahead // num_workers)
            )
        )
    copies = _copy_batches(iter(batches))
    _close_at_exit(copies)
    return copies


def _copy_batches(batches: Any) -> Generator["HostBatch", None, None]:
    """Yield copies of batches, which grain keeps in memory shared with its workers."""
    try:
        for batch in batches:
            yield {name: np.array(value) for name, value in batch.items()}
    finally:
        batches.close()


def _close_at_exit(batches: Generator["HostBatch", None, None]) -> None:
    """End the worker processes before the interpreter exits, if they still run."""
    reference = weakref.ref(batches)

    def close() -> None:
        if (generator := reference()) is not None:
            generator.close()

    atexit.register(close)


def _mark_absl_flags_parsed() -> None:
    """Let grain start processes where absl's flags are not parsed, as in a notebook."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
