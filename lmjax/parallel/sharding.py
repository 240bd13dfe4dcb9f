"""How arrays are split over the mesh, by one table of rules.

A parameter names its dimensions by logical axes ("embed", "mlp"); RULES maps each
logical axis to the mesh axis that splits it. A parameter without axes, two logical axes
on one mesh axis, or a size that does not divide is an error that names the parameter,
never a silent replication.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lmjax.config.experiment import MeshConfig
from lmjax.errors import ConfigError
from lmjax.parallel.device_grid import arrange_devices
from lmjax.types import Array, Axes, leaf_name

MESH_AXES = ("data", "fsdp", "context", "tensor")
BATCH_AXES = ("data", "fsdp")

# Logical axis: the mesh axis of a parameter's dimension, and of an activation's.
# Parameters are gathered over fsdp where they are used; of an activation only the batch
# dimension is split over it. The length of a row is split over context; its keys are
# gathered where they are attended to.
RULES: dict[str, tuple[str | None, str | tuple[str, ...] | None]] = {
    "batch": (None, BATCH_AXES),
    "length": (None, "context"),
    "keys": (None, None),
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
    """Return the size of each mesh axis, with -1 replaced by what is left.

    Raises:
      ConfigError: the axes do not multiply to `num_devices`.
    """
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    known = math.prod(size for size in sizes.values() if size > 0)
    filled = {
        axis: num_devices // known if size < 0 else size for axis, size in sizes.items()
    }
    if math.prod(filled.values()) != num_devices:
        fitting = _nearest_sizes(sizes, num_devices)
        raise ConfigError(
            f"config.mesh = {sizes}: asks for {_count(sizes)} devices, but there are "
            f"{num_devices}; these would fit: {fitting}"
        )
    return filled


def _count(sizes: Mapping[str, int]) -> str:
    known = math.prod(size for size in sizes.values() if size > 0)
    return f"a multiple of {known}" if -1 in sizes.values() else str(known)


def _nearest_sizes(sizes: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """Return sizes that fit, the inner axes as large as they divide the devices."""
    fitting: dict[str, int] = {}
    left = num_devices
    for axis in reversed(MESH_AXES[1:]):
        fitting[axis] = math.gcd(max(sizes[axis], 1), left)
        left //= fitting[axis]
    fitting[MESH_AXES[0]] = left
    return {axis: fitting[axis] for axis in MESH_AXES}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh over `devices`, by default all.

    Raises:
      ConfigError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(config, len(devices))
    types = (AxisType.Auto,) * len(MESH_AXES)
    return Mesh(arrange_devices(devices, sizes), MESH_AXES, axis_types=types)


def abstract_mesh(config: MeshConfig, num_devices: int) -> AbstractMesh:
    """Return a mesh of devices that need not exist, for shapes and shardings."""
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
      ValueError: the axes are missing, unknown, or two of them share a mesh axis.
      ConfigError: the mesh does not divide a dimension.
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
        name = leaf_name(path)
        return NamedSharding(mesh, param_spec(name, shape.shape, names, mesh.shape))

    return jax.tree_util.tree_map_with_path(one, shapes, axes)


def fitting_mesh(candidates: Iterable[MeshConfig], *, axes: Axes, shapes: Any) -> Mesh:
    """Return the first mesh that the devices and the sizes of the parameters fit.

    The last resort is a mesh on which each device holds all parameters.
    """
    for config in candidates:
        with contextlib.suppress(ConfigError):
            mesh = make_mesh(config)
            param_shardings(axes, shapes, mesh)
            return mesh
    return make_mesh(MeshConfig())


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Return `jax.ShapeDtypeStruct`s with a sharding each, or one sharding for all."""
    if isinstance(shardings, jax.sharding.Sharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, shapes)
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        shapes,
        shardings,
    )


def state_shardings(state: Any, shapes: Any, shardings: Any, mesh: Mesh) -> Any:
    """Return shardings for a tree that contains copies of the parameter tree.

    A leaf whose path ends in the path of a parameter is split like it: optimizer
    moments have the parameter's shape, factored statistics lack one dimension of it.
    Other leaves (counts, keys) are replicated.

    Args:
      state: the tree, such as a `TrainState`.
      shapes: of the parameters.
      shardings: of the parameters.
      mesh: theirs.
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
        param = next((params[s] for s in suffixes if s in params), None)
        spec = PartitionSpec() if param is None else _derive_spec(leaf.shape, *param)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, state)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _derive_spec(
    shape: tuple[int, ...], param_shape: tuple[int, ...], spec: PartitionSpec
) -> PartitionSpec:
    """Return the spec of an array of a parameter's shape, or less one dimension."""
    if shape == param_shape:
        return spec
    for i in range(len(param_shape)):
        if shape == param_shape[:i] + param_shape[i + 1 :]:
            return PartitionSpec(*spec[:i], *spec[i + 1 :])
    return PartitionSpec()


def batch_sharding(mesh: Mesh, shape: Sequence[int] = ()) -> NamedSharding:
    """Return the sharding of an array of a batch: rows over data and fsdp.

    Args:
      mesh: the mesh.
      shape: of the array; its length is split over context, where that divides it.
    """
    context = mesh.shape["context"]
    if context > 1 and len(shape) > 1 and shape[1] % context == 0:
        return NamedSharding(mesh, PartitionSpec(BATCH_AXES, "context"))
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_rows(name: str, rows: int, mesh: Mesh) -> None:
    """Check that a global batch of `rows` can be split over data and fsdp.

    Raises:
      ConfigError: it cannot; `name` is its leaf.
    """
    shards = data_shards(mesh)
    if rows % shards:
        raise ConfigError(
            f"{name} = {rows}: must be a multiple of the {shards} shards that "
            f"config.mesh splits a batch into"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: Array, *axes: str) -> Array:
    """Constrain an activation to the mesh of the surrounding `jax.set_mesh`.

    Outside of a mesh only the axes are checked. A batch whose rows do not divide, such
    as one prompt, is replicated; `check_rows` makes sure that no training batch is.
    Within a `jax.shard_map` over rows there are only the rows of one shard.

    Args:
      x: the activation.
      axes: the logical axis of each dimension.
    """
    spec = activation_spec(x.shape, *axes)
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec)


def activation_spec(shape: Sequence[int], *axes: str) -> PartitionSpec:
    """Return how `constrain` splits an activation of this shape.

    Args:
      shape: of the activation.
      axes: the logical axis of each dimension.
    """
    assert len(axes) == len(shape), (axes, shape)
    spec = [RULES[axis][1] for axis in axes]
    for i, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        if (axis == "length" and context_shards(size) == 1) or (
            axis == "batch" and not _splits_rows(size)
        ):
            spec[i] = None
    return PartitionSpec(*spec)


def context_shards(length: int) -> int:
    """Return into how many parts rows of this length are split; 1: they are whole.

    A length that the mesh does not divide, as of a prompt, is not split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "context" in mesh.manual_axes:
        return 1
    size = mesh.shape["context"]
    return 1 if length % size else size


def _splits_rows(num_rows: int) -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or {*BATCH_AXES} <= {*mesh.manual_axes}:
        return False
    return num_rows % data_shards(mesh) == 0


def map_shards(
    compute: Callable[..., Any], *, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """Return a function that each device of the mesh applies to its own shards.

    For kernels that the compiler cannot split. The specs are of `activation_spec`.
    Outside of a mesh it is the function itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return compute
    return jax.shard_map(
        compute,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names={*mesh.axis_names} - {*mesh.manual_axes},
        check_vma=False,
    )


def fill_shards(num_rows: int) -> int:
    """Return the number of rows, at least so many, that all shards of a batch share.

    Rows that do not divide would be computed by every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else data_shards(mesh)
    return -(-num_rows // shards) * shards


def map_row_shards(compute: Callable[[Array], Any], x: Array) -> Any:
    """Apply a function to the rows of a batch, on each device to its own shard.

    For operations that the compiler does not split by rows, such as `top_k`: it would
    gather all rows on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or len(x) % data_shards(mesh):
        return compute(x)
    rows = PartitionSpec(BATCH_AXES)
    return jax.shard_map(compute, in_specs=rows, out_specs=rows)(x)


def replicate(tree: Any) -> Any:
    """Replicate arrays over the mesh of the surrounding `jax.set_mesh`.

    A process can only read an array whose every part is on its own devices.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def data_shards(mesh: Mesh | AbstractMesh) -> int:
    """Return the number of shards of a batch: its rows are split over data and fsdp."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)
