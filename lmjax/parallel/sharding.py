"""Where arrays live: one mesh, one table of rules, and errors instead of silence.

Parameters name their dimensions ("embed", "mlp"); RULES says which mesh axis splits
each name. A parameter without names, two names on one mesh axis, or a size that does
not divide is an error that names the parameter, never a silent replication.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lmjax.config.experiment import MeshConfig
from lmjax.errors import ConfigError
from lmjax.types import Array, Axes

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Logical name: mesh axes of a parameter's dimension, and of an activation's.
# Parameters are gathered over fsdp where they are used; activations never hold it
# but in their batch dimension.
RULES: dict[str, tuple[str | None, str | tuple[str, ...] | None]] = {
    "batch": (None, BATCH_AXES),
    "length": (None, None),
    "layers": (None, None),
    "vocab": ("tensor", "tensor"),
    "embed": ("fsdp", None),
    "mlp": ("tensor", "tensor"),
    "heads": ("tensor", "tensor"),
    "kv_heads": ("tensor", "tensor"),
    "gates": (None, None),
    "head_dim": (None, None),
    "norm": (None, None),
    "features": (None, None),
    "token_types": (None, None),
    "buckets": (None, None),
    "rank": (None, None),
}


def mesh_sizes(config: MeshConfig, num_devices: int) -> dict[str, int]:
    """Return the size of each mesh axis, the -1 among them filled in.

    Raises:
      ConfigError: the axes do not multiply to `num_devices`.
    """
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    known = int(np.prod([size for size in sizes.values() if size > 0]))
    filled = {
        axis: num_devices // known if size < 0 else size for axis, size in sizes.items()
    }
    if int(np.prod(list(filled.values()))) != num_devices:
        raise ConfigError(
            f"config.mesh = {sizes}: must multiply to the number of devices, "
            f"{num_devices}"
        )
    return filled


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh over `devices`, by default all there are."""
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(config, len(devices))
    types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(
        tuple(sizes.values()), MESH_AXES, axis_types=types, devices=devices
    )


def abstract_mesh(config: MeshConfig, num_devices: int) -> AbstractMesh:
    """Return a mesh of devices that need not exist."""
    sizes = mesh_sizes(config, num_devices)
    types = (AxisType.Auto,) * len(MESH_AXES)
    return AbstractMesh(tuple(sizes.values()), MESH_AXES, axis_types=types)


def param_spec(
    name: str,
    shape: Sequence[int],
    axes: Sequence[str] | None,
    sizes: Mapping[str, int],
) -> PartitionSpec:
    """Return how the parameter `name` is split on a mesh of these axis sizes.

    Raises:
      ValueError: no axes, an unknown one, two on one mesh axis, or no division.
    """
    if axes is None or len(axes) != len(shape):
        raise ValueError(f"parameter {name} of shape {tuple(shape)} has axes {axes}")
    unknown = [axis for axis in axes if axis not in RULES]
    if unknown:
        raise ValueError(f"parameter {name}: no rule for {unknown}; known: {[*RULES]}")
    spec = [RULES[axis][0] for axis in axes]
    used = [axis for axis in spec if axis is not None]
    if len(used) != len(set(used)):
        raise ValueError(f"parameter {name}: {axes} puts one mesh axis on two: {spec}")
    for logical, size, axis in zip(axes, shape, spec, strict=True):
        if axis is not None and size % sizes[axis]:
            raise ConfigError(
                f"parameter {name}: its {logical} dimension of {size} must be a "
                f"multiple of config.mesh.{axis} = {sizes[axis]}"
            )
    return PartitionSpec(*spec)


def param_shardings(axes: Axes, shapes: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Return a tree of `NamedSharding` like `shapes`, by the axes of each leaf."""

    def one(path: Any, shape: Any, names: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return NamedSharding(mesh, param_spec(name, shape.shape, names, mesh.shape))

    return jax.tree_util.tree_map_with_path(one, shapes, axes)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Return `jax.ShapeDtypeStruct`s with a sharding each, or one for all."""
    if isinstance(shardings, jax.sharding.Sharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, shapes)
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        shapes,
        shardings,
    )


def state_shardings(state: Any, shapes: Any, shardings: Any, mesh: Mesh) -> Any:
    """Return shardings for any tree in which parts of the parameter tree recur.

    A leaf whose path ends in a parameter's path follows it: optimizer moments have
    its shape, factored statistics its shape less one dimension. What belongs to no
    parameter (counts, keys) is replicated.
    """
    flat_shapes = jax.tree_util.tree_leaves_with_path(shapes)
    flat = jax.tree.leaves(shardings)
    params = {
        _names(path): (leaf.shape, sharding.spec)
        for (path, leaf), sharding in zip(flat_shapes, flat, strict=True)
    }

    def one(path: Any, leaf: Any) -> NamedSharding:
        names = _names(path)
        suffixes = (names[i:] for i in range(len(names)))
        owner = next((params[s] for s in suffixes if s in params), None)
        spec = PartitionSpec() if owner is None else _follow(leaf.shape, *owner)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, state)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _follow(
    shape: tuple[int, ...], param_shape: tuple[int, ...], spec: PartitionSpec
) -> PartitionSpec:
    if shape == param_shape:
        return spec
    for i in range(len(param_shape)):
        if shape == param_shape[:i] + param_shape[i + 1 :]:
            return PartitionSpec(*spec[:i], *spec[i + 1 :])
    return PartitionSpec()


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return how every array of a batch is split: rows over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_rows(name: str, rows: int, mesh: Mesh) -> None:
    """Raise if a global batch of `rows` cannot be split over data and fsdp.

    Raises:
      ConfigError: naming the leaf.
    """
    parts = data_shards(mesh)
    if rows % parts:
        raise ConfigError(
            f"{name} = {rows}: must be a multiple of the {parts} parts that "
            f"config.mesh splits a batch into"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: Array, *axes: str) -> Array:
    """Pin an activation to the mesh of the surrounding `jax.set_mesh`.

    Outside of any mesh only the names are checked. A batch whose rows do not divide,
    such as one prompt, is held whole by every device (`check_rows` sees to it that no
    training batch is).
    """
    assert len(axes) == x.ndim, (axes, x.shape)
    spec = [RULES[axis][1] for axis in axes]
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    if axes[0] == "batch" and x.shape[0] % data_shards(mesh):
        spec[0] = None
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def by_rows(compute: Callable[[Array], Any], x: Array) -> Any:
    """Return what is computed of the rows of a batch, by each device of its own.

    For what the compiler does not know to work on each row alone, such as `top_k`:
    every device would be sent all rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or len(x) % data_shards(mesh):
        return compute(x)
    rows = PartitionSpec(BATCH_AXES)
    return jax.shard_map(compute, in_specs=rows, out_specs=rows)(x)


def whole(tree: Any) -> Any:
    """Have each device of the surrounding `jax.set_mesh` hold all of some arrays.

    Only so can every process read them.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def data_shards(mesh: Mesh | AbstractMesh) -> int:
    """Return how many shards a batch's rows are split into, over data and fsdp."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
