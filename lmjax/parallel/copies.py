"""Copies of an array on several devices: read once, and compared now and then.

A parameter that an axis of the mesh does not split lies on all devices along that axis.
L leaves, D devices of the mesh, in its order.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.errors import UserError
from lmjax.parallel.sharding import replicated
from lmjax.types import Array, Params, named_leaves

_MAX_NAMED = 3  # parameters in an error


class DriftError(UserError):
    """Copies of a parameter that should be equal are not."""


class Copies:
    """Compares the copies of parameters, without waiting for the devices.

    A comparison reads the parameters once. Its result, one number for each parameter
    and device, is looked at when the next one begins, or before a checkpoint is saved.

    Args:
      shapes: of the parameters, with their shardings.
      mesh: theirs.
    """

    def __init__(self, shapes: Params, mesh: Mesh) -> None:
        self.mesh = mesh
        groups = {
            name: _copy_groups(leaf.sharding, leaf.shape)
            for name, leaf in named_leaves(shapes).items()
        }
        # Parameters with more than one copy, and the devices that hold the same part.
        self.groups = {name: found for name, found in groups.items() if found}
        self.pending: tuple[int, Array] | None = None
        self.equal_at: int | None = None  # the last step at which all were equal
        self._checksums: Any = None

    def compare(self, step: int, params: Params) -> None:
        """Begin to compare the parameters after a step; dispatched like the step.

        Raises:
          DriftError: the comparison before this one found copies that differ.
        """
        self.check()
        if not self.groups:
            return
        leaves = named_leaves(params)
        arrays = [leaves[name] for name in self.groups]
        if self._checksums is None:
            self._checksums = make_checksums(
                [leaf.sharding.spec for leaf in arrays], self.mesh
            )
        self.pending = step, self._checksums(arrays)

    def check(self) -> None:
        """Look at the result of the last comparison.

        Raises:
          DriftError: it found copies that differ; the parameters and devices are named.
        """
        if self.pending is None:
            return
        (step, sums), self.pending = self.pending, None
        differing = find_drift(jax.device_get(sums), self.groups)
        if not differing:
            self.equal_at = step
            return
        named = [
            f"{name} on {self._describe(places)}"
            for name, places in [*differing.items()][:_MAX_NAMED]
        ]
        more = len(differing) - len(named)
        before = "never" if self.equal_at is None else f"last at step {self.equal_at}"
        raise DriftError(
            f"step {step}: copies of parameters that should be equal differ: "
            f"{'; '.join(named)}{f'; and of {more} more' * bool(more)} (seen equal "
            f"{before}; a device computes wrongly, or its memory does)"
        )

    def _describe(self, places: Sequence[int]) -> str:
        devices = [self.mesh.devices.flat[place] for place in places]
        return ", ".join(f"device {d.id} of process {d.process_index}" for d in devices)


def make_checksums(specs: Sequence[PartitionSpec], mesh: Mesh) -> Any:
    """Return a jitted function from arrays to the checksums of their parts.

    Each device computes those of what it holds: uint32 (L, D), on all devices.
    """
    device_axes = PartitionSpec(None, mesh.axis_names)

    def local(arrays: Sequence[Array]) -> Array:
        return jnp.stack([_checksum(array) for array in arrays])[:, None]

    sums = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=([*specs],),
        out_specs=device_axes,
        check_vma=False,  # what is "replicated" is just what is to be checked
    )
    return jax.jit(sums, out_shardings=replicated(mesh))


def _checksum(array: Array) -> Array:
    """Return a uint32 that changes with any one element, wherever it is.

    Each element is mixed with its place (multiply and xorshift, as the finalizer of
    MurmurHash3 does; Appleby, 2011), and all are added up.
    """
    size = array.dtype.itemsize
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}.get(size, jnp.uint32)
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32).ravel()
    place = jax.lax.iota(jnp.uint32, bits.size)
    mixed = bits ^ (place * np.uint32(0x9E3779B9))
    mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * np.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def find_drift(
    sums_LD: np.ndarray, groups: Mapping[str, Sequence[Sequence[int]]]
) -> dict[str, list[int]]:
    """Return the devices whose part of a parameter differs from other copies of it.

    They are those in the minority; without a majority, all that hold the part.

    Args:
      sums_LD: checksums.
      groups: for each leaf, the places of devices that hold the same part.
    """
    differing: dict[str, list[int]] = {}
    for sums_D, (name, same) in zip(sums_LD, groups.items(), strict=True):
        for places in same:
            found = sums_D[[*places]]
            values, counts = np.unique(found, return_counts=True)
            if len(values) == 1:
                continue
            usual = values[counts * 2 > len(places)]
            odd = [p for p, x in zip(places, found, strict=True) if x not in usual]
            differing.setdefault(name, []).extend(odd)
    return differing


def _copy_groups(sharding: NamedSharding, shape: Sequence[int]) -> list[list[int]]:
    """Return the places in the mesh of devices that hold the same part, if several."""
    index_of = sharding.devices_indices_map(tuple(shape))
    groups: dict[str, list[int]] = {}
    for place, device in enumerate(sharding.mesh.devices.flat):
        groups.setdefault(str(index_of[device]), []).append(place)
    return [places for places in groups.values() if len(places) > 1]


def split_copies(like: Any) -> Any:
    """Return shapes whose shardings give each device a part of its own, where possible.

    So that what several devices hold is read once, each part by one of them;
    `gather_copies` then exchanges the parts.

    Args:
      like: a tree of `jax.ShapeDtypeStruct` with shardings.
    """
    return jax.tree.map(_split_leaf, like)


def gather_copies(tree: Any, like: Any) -> Any:
    """Return arrays of the shapes of `split_copies` in the shardings of `like`.

    All processes must call it together.
    """
    leaves, treedef = jax.tree.flatten(tree)
    targets = [leaf.sharding for leaf in jax.tree.leaves(like)]
    moved = [i for i, leaf in enumerate(leaves) if leaf.sharding != targets[i]]
    if moved:
        gather = jax.jit(
            lambda parts: parts,
            out_shardings=[targets[i] for i in moved],
        )
        whole = gather([leaves[i] for i in moved])
        for i, leaf in zip(moved, whole, strict=True):
            leaves[i] = leaf
    return jax.tree.unflatten(treedef, leaves)


def _split_leaf(leaf: Any) -> Any:
    """Split the first dimension that can be, as a checkpoint of copies is written."""
    if not isinstance(leaf.sharding, NamedSharding):
        return leaf
    mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
    parts = [_axes_of(part) for part in (*spec, *[None] * len(leaf.shape))]
    used = {axis for axes in parts for axis in axes}
    free = tuple(
        axis for axis in mesh.axis_names if axis not in used and mesh.shape[axis] > 1
    )
    num_copies = math.prod(mesh.shape[axis] for axis in free)
    for i, size in enumerate(leaf.shape):
        split = num_copies * math.prod(mesh.shape[axis] for axis in parts[i])
        if num_copies > 1 and size and size % split == 0:
            parts[i] = (*parts[i], *free)
            spec = PartitionSpec(*(axes or None for axes in parts[: len(leaf.shape)]))
            return jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)
            )
    return leaf


def _axes_of(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the mesh axes that split one dimension."""
    if part is None:
        return ()
    return (part,) if isinstance(part, str) else tuple(part)
