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
    """Return this process's rows as global arrays, split as `batch_sharding` says."""
    if jax.process_count() == 1:
        shardings = {name: batch_sharding(mesh, x.shape) for name, x in batch.items()}
        return jax.device_put(batch, shardings)
    shards = data_shards(mesh)
    num_local = len(next(iter(batch.values())))
    num_rows = num_local * shards // len(local_rows(mesh, shards))
    rows = local_rows(mesh, num_rows)

    def put(local: np.ndarray) -> Any:
        def cut(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(num_rows)
            own = slice(*np.searchsorted(rows, (start, stop)))
            return local[(own, *index[1:])]

        shape = (num_rows, *local.shape[1:])
        sharding = batch_sharding(mesh, shape)
        return jax.make_array_from_callback(shape, sharding, cut)

    # A transfer on purpose, though jax counts `make_array_from_callback` as implicit.
    with jax.transfer_guard("allow"):
        return {name: put(local) for name, local in batch.items()}


def shapes_on_mesh(batch: HostBatch, mesh: Mesh) -> Batch:
    """Return the shapes that `put_batch` gives a global batch, with their shardings."""
    return {
        name: jax.ShapeDtypeStruct(
            x.shape,
            jax.dtypes.canonicalize_dtype(x.dtype),
            sharding=batch_sharding(mesh, x.shape),
        )
        for name, x in batch.items()
    }


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
