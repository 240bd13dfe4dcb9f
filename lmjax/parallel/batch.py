"""Devices and the processes that hold them: batches onto them, what they can do.

Several processes that train together run the same steps. Where one of them knows what
the others cannot (a signal, a file, a mistake) they ask each other, here.
"""

import collections
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from lmjax.parallel.sharding import batch_sharding
from lmjax.types import Batch, HostBatch

T = TypeVar("T")


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Return which rows of a global batch the devices of this process hold, sorted.

    Two processes hold the same rows where the tensor axis lies across both.
    """
    index = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = np.arange(batch_size)
    return np.unique(np.concatenate([rows[part] for part in index.values()]))


def put_batch(batch: HostBatch, mesh: Mesh) -> Batch:
    """Return this process's rows as global arrays, split over data and fsdp."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    num_rows = len(next(iter(batch.values()))) * parts // len(local_rows(mesh, parts))
    here = local_rows(mesh, num_rows)

    def put(local: np.ndarray) -> Any:
        def cut(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(num_rows)
            return local[slice(*np.searchsorted(here, (start, stop)))]

        return jax.make_array_from_callback((num_rows, *local.shape[1:]), sharding, cut)

    return {name: put(local) for name, local in batch.items()}


def fetched(results: Iterable[T], *, in_flight: int = 2) -> Iterator[T]:
    """Yield results in the host's memory, in their order.

    The device works on the next few of them while one is read.
    """
    waiting = collections.deque[T]()
    for result in results:
        waiting.append(result)
        if len(waiting) > in_flight:
            yield jax.device_get(waiting.popleft())
    while waiting:
        yield jax.device_get(waiting.popleft())
