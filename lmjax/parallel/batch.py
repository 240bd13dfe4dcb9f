"""Batches onto the devices of a mesh, and results back to the host."""

import collections
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from lmjax.parallel.sharding import batch_sharding, data_shards
from lmjax.types import Batch, HostBatch

T = TypeVar("T")

_IN_FLIGHT = 2  # results that the device computes ahead of the one that is read


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Return the rows of a global batch that this process's devices hold, sorted.

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
    shards = data_shards(mesh)
    num_local = len(next(iter(batch.values())))
    num_rows = num_local * shards // len(local_rows(mesh, shards))
    rows = local_rows(mesh, num_rows)

    def put(local: np.ndarray) -> Any:
        def cut(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(num_rows)
            return local[slice(*np.searchsorted(rows, (start, stop)))]

        return jax.make_array_from_callback((num_rows, *local.shape[1:]), sharding, cut)

    # A transfer on purpose, though jax counts `make_array_from_callback` as implicit.
    with jax.transfer_guard("allow"):
        return {name: put(local) for name, local in batch.items()}


def device_get_ahead(results: Iterable[T]) -> Iterator[T]:
    """Yield results in the host's memory, in order.

    While one is read, the devices already compute the next few.
    """
    in_flight = collections.deque[T]()
    for result in results:
        in_flight.append(result)
        if len(in_flight) > _IN_FLIGHT:
            yield jax.device_get(in_flight.popleft())
    while in_flight:
        yield jax.device_get(in_flight.popleft())
