"""Tensors from files to the devices, and from the devices to files.

One tensor at a time is on its way. When importing, each device's slice is read from the
file by itself, and is transposed and cast on the device: host memory holds at most one
tensor, and only the slices of this process's devices.
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

from lmjax.errors import UserError
from lmjax.interop.match import Match, match_tensors
from lmjax.interop.safetensors import Spec, TensorFiles
from lmjax.interop.table import Entry, Shape, Table
from lmjax.types import Array, Params, named_leaves

_RELEASE_TRIES = 200  # of a millisecond each

Buffers = list[weakref.ref[np.ndarray]]


def import_params(
    files: TensorFiles,
    table: Table,
    shapes: Params,
    shardings: Params,
    *,
    on_bytes: Callable[[int], None] = lambda num_bytes: None,
) -> Params:
    """Load the parameters of a model from files onto the devices, in float32.

    Args:
      files: the tensors.
      table: maps tensors to parameters.
      shapes: of the parameters.
      shardings: a `NamedSharding` for each parameter.
      on_bytes: called with the number of bytes of each tensor that was read.

    Raises:
      UserError: the files do not hold this model, or a value is not finite in float32.
    """
    matches = match_tensors(files, table, shapes)
    named_shardings = named_leaves(shardings)
    leaves = [
        _load_param(files, matches[name], leaf, named_shardings[name], on_bytes)
        for name, leaf in named_leaves(shapes).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _load_param(
    files: TensorFiles,
    matches: list[Match],
    leaf: Any,
    sharding: NamedSharding,
    on_bytes: Callable[[int], None],
) -> Array:
    """Load one parameter, layer by layer if it is stacked."""
    mesh, spec = sharding.mesh, sharding.spec
    if matches[0].layer is None:
        convert = _compile_convert(matches[0].entry, leaf.shape, leaf.dtype, sharding)
        part = _read_part(files, matches[0], leaf.shape, mesh, spec, [])
        on_bytes(part.nbytes)
        param, is_finite = convert(part)
        _check_finite(files, matches[0].tensor, is_finite)
        return param
    param = _compile_zeros(leaf.shape, leaf.dtype, sharding)()
    buffers: Buffers = []
    for match in matches:
        update = _compile_update(match.entry, leaf.shape, leaf.dtype, sharding)
        part = _read_part(files, match, leaf.shape[1:], mesh, spec[1:], buffers)
        # Wait, and free the part before the next one is read: else they pile up.
        param, is_finite = jax.block_until_ready(update(param, part, match.layer))
        _check_finite(files, match.tensor, is_finite)
        on_bytes(part.nbytes)
        del part
        _wait_until_freed(buffers)
    return param


def _check_finite(files: TensorFiles, tensor: str, is_finite: Array) -> None:
    if not is_finite:
        raise UserError(
            f"{files.tensors[tensor].file}: tensor {tensor!r} holds values that are "
            "not finite (NaN or infinite)"
        )


def _read_part(
    files: TensorFiles,
    match: Match,
    shape: Shape,
    mesh: Any,
    spec: Any,
    buffers: Buffers,
) -> Array:
    """Read a parameter's part of a tensor; each device reads its own slice.

    Args:
      files: the tensors.
      match: the tensor.
      shape: of the parameter, of one layer.
      mesh: its devices.
      spec: how the parameter is sharded, of one layer.
      buffers: takes references to the host memory that the slices are read into.
    """
    entry, axis = match.entry, match.entry.concat_axis
    part = entry.part_shape(shape)
    spec = [*spec, *[None] * (len(shape) - len(spec))]
    sharding = NamedSharding(mesh, entry.part_spec(spec))

    @functools.cache  # devices with the same slice share it
    def read_slice(bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
        array = files.read(match.tensor, [slice(*b) for b in bounds])
        array = entry.take(array, size=part[axis])
        assert isinstance(array.base, np.ndarray)
        buffers.append(weakref.ref(array.base))
        return array

    def read_index(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        bounds = [s.indices(n)[:2] for s, n in zip(index, part, strict=True)]
        if entry.num_parts > 1:
            bounds[axis] = entry.tensor_bounds(*bounds[axis], size=part[axis])
        return read_slice(tuple(bounds))

    return jax.make_array_from_callback(part, sharding, read_index)


def _wait_until_freed(buffers: Buffers) -> None:
    """Wait until jax has freed host memory that it used without a copy.

    It does so a moment after the last use, and Python's garbage collector must run.
    Else the next tensor would be in memory together with this one.
    """
    for _ in range(_RELEASE_TRIES):
        if not any(buffer() is not None for buffer in buffers):
            break
        gc.collect(0)
        time.sleep(0.001)
    buffers.clear()


@functools.cache
def _compile_zeros(shape: Shape, dtype: Any, sharding: NamedSharding) -> Any:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.cache
def _compile_convert(
    entry: Entry, shape: Shape, dtype: Any, sharding: NamedSharding
) -> Any:
    """Compile `convert(part)`, which returns a parameter that is not stacked.

    It also returns whether all of its values are finite.
    """

    def convert(part: Array) -> tuple[Array, Array]:
        value = entry.to_param(part, shape).astype(dtype)
        return value, jnp.isfinite(value).all()

    outputs = (sharding, NamedSharding(sharding.mesh, PartitionSpec()))
    return jax.jit(convert, out_shardings=outputs, donate_argnums=0)


@functools.cache
def _compile_update(
    entry: Entry, shape: Shape, dtype: Any, sharding: NamedSharding
) -> Any:
    """Compile `update(param, part, layer)`, which sets one layer in place.

    It also returns whether all values of the layer are finite.
    """

    def update(param: Array, part: Array, layer: Array) -> tuple[Array, Array]:
        value = entry.to_param(part, shape[1:]).astype(dtype)
        param = jax.lax.dynamic_update_index_in_dim(param, value, layer, axis=0)
        return param, jnp.isfinite(value).all()

    outputs = (sharding, NamedSharding(sharding.mesh, PartitionSpec()))
    return jax.jit(update, out_shardings=outputs, donate_argnums=0)


def export_tensors(
    params: Params, table: Table, *, dtype: Any
) -> tuple[dict[str, Spec], Iterator[np.ndarray]]:
    """Return the tensors that hold the parameters of a model.

    Args:
      params: on the devices.
      table: maps parameters to tensors.
      dtype: of the tensors.

    Returns:
      The dtype and shape of each tensor by its name, and an iterator over their values
      in that order. All processes must exhaust the iterator together.

    Raises:
      UserError: (by the iterator) a value is too large for float16.
    """
    leaves = named_leaves(params)
    by_tensor: dict[str, list[Entry]] = {}  # several entries where parts are joined
    for entry in table.entries_for(leaves):
        by_tensor.setdefault(entry.tensor, []).append(entry)
    specs: dict[str, Spec] = {}
    origins: dict[str, tuple[tuple[Entry, ...], int | None]] = {}
    for entries in by_tensor.values():
        entry, shape = entries[0], leaves[entries[0].param].shape
        spec = Spec(np.dtype(dtype), entry.tensor_shape(entry.layer_shape(shape)))
        parts = tuple(sorted(entries, key=lambda entry: entry.part))
        for layer, name in entry.tensor_names(shape):
            specs[name], origins[name] = spec, (parts, layer)
    for alias, tensor in table.aliases.items():
        if tensor in specs:  # transformers reports a missing alias
            specs[alias], origins[alias] = specs[tensor], origins[tensor]
    for name, constant in table.constants.items():
        specs[name] = Spec(np.dtype(dtype), constant.shape)

    def gather_tensors() -> Iterator[np.ndarray]:
        for name, (entries, layer) in origins.items():
            params = [leaves[entry.param] for entry in entries]
            yield _gather_tensor(name, entries, params, layer, np.dtype(dtype))
        for constant in table.constants.values():
            yield constant.astype(dtype)

    return specs, gather_tensors()


def _gather_tensor(
    name: str,
    entries: tuple[Entry, ...],
    params: list[Array],
    layer: int | None,
    dtype: Any,
) -> np.ndarray:
    """Return a whole tensor on the host, with the parts that `entries` say."""
    sharding = params[0].sharding
    assert isinstance(sharding, NamedSharding), sharding
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    gather = _compile_gather(entries, layer is not None, dtype, replicated)
    array = np.asarray(gather(params, layer or 0))
    if dtype == np.float16 and not np.isfinite(array).all():
        raise UserError(f"{name}: holds values beyond the range of float16")
    return array


@functools.cache
def _compile_gather(
    entries: tuple[Entry, ...], stacked: bool, dtype: Any, sharding: NamedSharding
) -> Any:
    """Compile `gather(params, layer)`, which joins the parts of a tensor."""

    def gather(params: list[Array], layer: Array) -> Array:
        if stacked:
            params = [param[layer] for param in params]
        parts = [e.to_part(param) for e, param in zip(entries, params, strict=True)]
        return entries[0].join(parts).astype(dtype)

    return jax.jit(gather, out_shardings=sharding)
