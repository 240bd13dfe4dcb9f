"""Parameters from the files of another program to the devices, and back.

One tensor is on its way at a time: a host holds no more of it than its own devices
take, and it is transposed and cast on them.
"""

import functools
import gc
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.errors import ConfigError
from lmjax.interop.layout import (
    Piece,
    Row,
    Shape,
    Table,
    account,
    names,
    parts_axis,
    rows_of,
    their_shape,
    their_spec,
    to_ours,
    to_theirs,
    unstacked,
    whole_shape,
)
from lmjax.interop.tensors import Spec, Tensors
from lmjax.types import Array, Params, leaf_name, named_leaves

_RELEASE_TRIES = 200  # of a millisecond


def import_params(
    tensors: Tensors,
    table: Table,
    shapes: Params,
    shardings: Params,
    *,
    on_bytes: Callable[[int], None] = lambda num_bytes: None,
) -> Params:
    """Return the parameters that the files hold, on the devices, float32.

    Args:
      tensors: the files.
      table: which tensor is which parameter.
      shapes: of the model.
      shardings: a `NamedSharding` for each parameter.
      on_bytes: is told of bytes as they have been read.

    Raises:
      ConfigError: the files are not of this model.
    """
    pieces = account(tensors, table, shapes)
    placed = named_leaves(shardings)

    def fill(path: Any, leaf: Any) -> Array:
        name = leaf_name(path)
        return _fill(tensors, pieces[name], leaf, placed[name], on_bytes)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def _fill(
    tensors: Tensors,
    pieces: list[Piece],
    leaf: Any,
    sharding: NamedSharding,
    on_bytes: Callable[[int], None],
) -> Array:
    """Return one parameter, filled layer by layer if it is stacked."""
    if pieces[0].layer is None:
        convert = _converter(pieces[0].row, leaf.shape, leaf.dtype, sharding)
        mesh, spec = sharding.mesh, sharding.spec
        theirs = _read(tensors, pieces[0], leaf.shape, mesh, spec, [])
        on_bytes(theirs.nbytes)
        return jax.block_until_ready(convert(theirs))
    ours = _allocator(leaf.shape, leaf.dtype, sharding)()
    lent: Lent = []
    for piece in pieces:
        update = _updater(piece.row, leaf.shape, leaf.dtype, sharding)
        shape, spec = leaf.shape[1:], sharding.spec[1:]
        theirs = _read(tensors, piece, shape, sharding.mesh, spec, lent)
        # One at a time, and gone before the next: else what is read piles up.
        ours = jax.block_until_ready(update(ours, theirs, piece.layer))
        on_bytes(theirs.nbytes)
        del theirs
        _await_release(lent)
    return ours


Lent = list[weakref.ref[np.ndarray]]


def _await_release(lent: Lent) -> None:
    """Return when jax has let go of host memory that it used in place.

    It does so a moment after the last use, and then keeps it until Python next collects
    its garbage; the next tensor would lie in memory beside this one.
    """
    for _ in range(_RELEASE_TRIES):
        if not any(buffer() is not None for buffer in lent):
            break
        gc.collect(0)
        time.sleep(0.001)
    lent.clear()


def _read(
    tensors: Tensors, piece: Piece, shape: Shape, mesh: Any, spec: Any, lent: Lent
) -> Array:
    """Return a part of their tensor, of which each device has read its own slice.

    Notes in `lent` the host memory that this takes.
    """
    row, axis = piece.row, parts_axis(piece.row)
    spec = [*spec, *[None] * (len(shape) - len(spec))]
    part = their_shape(row, shape)
    sharding = NamedSharding(mesh, their_spec(row, spec))

    @functools.cache  # devices that hold the same share it
    def cut(bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
        array = tensors.read(piece.name, [slice(*b) for b in bounds])
        assert isinstance(array.base, np.ndarray)
        lent.append(weakref.ref(array.base))
        return array

    def callback(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        bounds = [s.indices(n)[:2] for s, n in zip(index, part, strict=True)]
        if row.data_shards > 1:
            start = row.part * part[axis]
            bounds[axis] = (start + bounds[axis][0], start + bounds[axis][1])
        return cut(tuple(bounds))

    return jax.make_array_from_callback(part, sharding, callback)


@functools.cache
def _allocator(shape: Shape, dtype: Any, sharding: NamedSharding) -> Any:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.cache
def _converter(row: Row, shape: Shape, dtype: Any, sharding: NamedSharding) -> Any:
    def convert(theirs: Array) -> Array:
        return to_ours(row, theirs, shape).astype(dtype)

    return jax.jit(convert, out_shardings=sharding, donate_argnums=0)


@functools.cache
def _updater(row: Row, shape: Shape, dtype: Any, sharding: NamedSharding) -> Any:
    def update(ours: Array, theirs: Array, layer: Array) -> Array:
        value = to_ours(row, theirs, shape[1:]).astype(dtype)
        return jax.lax.dynamic_update_index_in_dim(ours, value, layer, axis=0)

    return jax.jit(update, out_shardings=sharding, donate_argnums=0)


def export_tensors(
    params: Params, table: Table, *, dtype: Any
) -> tuple[dict[str, Spec], Iterator[np.ndarray]]:
    """Return what each tensor will be, and their values one at a time, in that order.

    Every process must draw the values; only one needs to write them.

    Raises:
      ConfigError: (from the iterator) a value is too large for float16.
    """
    flat = named_leaves(params)
    fused: dict[str, list[Row]] = {}
    for row in rows_of(table, flat):
        fused.setdefault(row.theirs, []).append(row)
    specs: dict[str, Spec] = {}
    sources: list[tuple[list[Row], int | None]] = []
    for rows in fused.values():
        shape = flat[rows[0].ours].shape
        whole = whole_shape(rows[0], unstacked(rows[0], shape))
        for layer, name in names(rows[0], shape):
            specs[name] = Spec(np.dtype(dtype), whole)
            sources.append((sorted(rows, key=lambda row: row.part), layer))
    places = dict(zip(specs, sources, strict=True))
    for idle, original in table.stand_ins.items():  # read by no one, but looked for
        if original in specs:
            specs[idle] = specs[original]
            sources.append(places[original])

    def values() -> Iterator[np.ndarray]:
        for name, (rows, layer) in zip(specs, sources, strict=True):
            leaves = [flat[row.ours] for row in rows]
            yield _gather(name, tuple(rows), leaves, layer, np.dtype(dtype))

    return specs, values()


def _gather(
    name: str, rows: tuple[Row, ...], leaves: list[Array], layer: int | None, dtype: Any
) -> np.ndarray:
    """Return one whole tensor of theirs on the host."""
    sharding = leaves[0].sharding
    assert isinstance(sharding, NamedSharding), sharding
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    gather = _gatherer(rows, layer is not None, dtype, whole)
    array = np.asarray(gather(leaves, layer or 0))
    if dtype == np.float16 and not np.isfinite(array).all():
        raise ConfigError(f"{name}: has values that float16 cannot hold")
    return array


@functools.cache
def _gatherer(
    rows: tuple[Row, ...], stacked: bool, dtype: Any, sharding: NamedSharding
) -> Any:
    def gather(leaves: list[Array], layer: Array) -> Array:
        ours = [leaf[layer] if stacked else leaf for leaf in leaves]
        parts = [to_theirs(row, x) for row, x in zip(rows, ours, strict=True)]
        return jnp.concatenate(parts, axis=parts_axis(rows[0])).astype(dtype)

    return jax.jit(gather, out_shardings=sharding)
