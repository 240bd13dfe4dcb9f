"""Which devices are neighbours in a mesh: the slow network is crossed least."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from lmjax.config.experiment import MeshConfig
from lmjax.errors import UserError
from lmjax.parallel import device_grid, sharding

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh asks of a device."""

    id: int
    process_index: int
    slice_index: int = 0
    platform: str = "gpu"
    device_kind: str = "fake"
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


def nodes(count, *, each, slices=1):
    """Return devices of nodes, the nodes of slices one after another."""
    return [
        Device(id=i, process_index=i // each, slice_index=i // each * slices // count)
        for i in range(count * each)
    ]


def crossed(grid, attribute):
    """Return the axes along which the attribute changes."""
    values = np.vectorize(lambda d: getattr(d, attribute), otypes=[int])(grid)
    return {
        axis
        for i, axis in enumerate(AXES)
        if (values != np.take(values, [0], axis=i)).any()
    }


@pytest.mark.parametrize(
    ("devices", "shape", "attribute", "axes"),
    [
        (nodes(2, each=8), (2, 8, 1), "process_index", {"data"}),
        (nodes(2, each=8), (2, 2, 4), "process_index", {"data"}),
        (nodes(4, each=4), (2, 4, 2), "process_index", {"data", "fsdp"}),
        (nodes(2, each=4), (1, 8, 1), "process_index", {"fsdp"}),
        (nodes(2, each=6), (6, 2, 1), "process_index", {"data"}),
        (nodes(4, each=4, slices=2), (2, 8, 1), "slice_index", {"data"}),
        (nodes(4, each=4, slices=4), (4, 1, 4), "slice_index", {"data"}),
        (nodes(4, each=4, slices=2), (1, 2, 8), "slice_index", {"fsdp"}),
        # Processes of one device each.
        (nodes(8, each=1), (2, 2, 2), "process_index", set(AXES)),
    ],
)
def test_the_outermost_axes_cross_the_slow_network(devices, shape, attribute, axes):
    """In whatever order the runtime lists the devices."""
    for listed in (devices, devices[::-1], devices[::2] + devices[1::2]):
        grid = device_grid.arrange_devices(listed, dict(zip(AXES, shape, strict=True)))
        assert grid.shape == shape
        assert {device.id for device in grid.flat} == {*range(len(devices))}
        assert crossed(grid, attribute) == axes


def test_a_tensor_axis_across_slices_is_warned_of(caplog):
    devices = nodes(2, each=4, slices=2)
    device_grid.arrange_devices(devices, {"data": 1, "fsdp": 1, "tensor": 8})
    assert "config.mesh.tensor = 8" in caplog.text and "2 slices" in caplog.text


def test_hosts_of_one_tpu_slice_are_one_group():
    """Their links do not end at a host; a physical axis is split where it must be."""
    devices = [
        Device(
            id=i,
            process_index=i // 4,
            platform="tpu",
            device_kind="TPU v4",
            coords=(x, y, z),
        )
        for i, (z, y, x) in enumerate(np.ndindex(4, 2, 2))
    ]
    for shape in [(1, 16, 1), (2, 8, 1), (8, 1, 2), (1, 2, 8)]:
        sizes = dict(zip(AXES, shape, strict=True))
        grid = device_grid.arrange_devices(devices, sizes)
        assert grid.shape == shape and len({d.id for d in grid.flat}) == 16


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 12, 24])
@pytest.mark.parametrize("shape", [(24, 1, 1), (2, 3, 4), (1, 4, 6), (6, 2, 2)])
def test_groups_spread_over_axes(count, shape):
    across = device_grid.spread(count, shape)
    assert math.prod(across) == count
    assert all(size % outer == 0 for size, outer in zip(shape, across, strict=True))


def test_virtual_devices_keep_their_order():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert [*mesh.devices.flat] == jax.devices()


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        (
            {"data": 3},
            (
                "for 3 devices",
                "are 8",
                "'data': 8, 'fsdp': 1, 'context': 1, 'tensor': 1",
            ),
        ),
        (
            {"data": 2, "fsdp": 2, "tensor": 4},
            ("for 16 devices", "'data': 1, 'fsdp': 2, 'context': 1, 'tensor': 4"),
        ),
        (
            {"fsdp": 3},
            ("multiple of 3", "'data': 8, 'fsdp': 1, 'context': 1, 'tensor': 1"),
        ),
        (
            {"data": 1, "fsdp": -1, "tensor": 6},
            ("'fsdp': 1, 'context': 1, 'tensor': 2",),
        ),
    ],
)
def test_a_mesh_that_does_not_fit_names_one_that_would(sizes, parts):
    with pytest.raises(UserError, match=r"config\.mesh = ") as error:
        sharding.make_mesh(MeshConfig(**sizes))
    for part in parts:
        assert part in str(error.value)
