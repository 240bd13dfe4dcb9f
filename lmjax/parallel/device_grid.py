"""Devices in a grid: neighbours where the network is fast, outer axes where it is slow.

Within a TPU slice, or a node of GPUs, devices are connected much faster than across
slices or nodes. The axes of a mesh are given from the outermost, which communicates
least, so the outermost that can do so crosses the slow network.
"""

import collections
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils

log = logging.getLogger(__name__)


def arrange_devices(devices: Sequence[Any], sizes: Mapping[str, int]) -> np.ndarray:
    """Return the devices as an array of these axes, the first of them outermost.

    Devices that share a `slice_index`, else a process, form a group; groups are spread
    over the outermost axes that hold them. Warns if the innermost axis, which
    communicates within each layer, crosses from slice to slice.
    """
    name, groups = _group(devices)
    shape = tuple(sizes.values())
    if len(groups) == 1 or len({len(group) for group in groups}) > 1:
        return _arrange_group(devices, shape)
    across = spread(len(groups), shape)
    within = tuple(size // outer for size, outer in zip(shape, across, strict=True))
    if name == "slices" and across[-1] > 1:
        axis = [*sizes][-1]
        log.warning(
            "config.mesh.%s = %d: crosses the network between %d slices of %d devices, "
            "which slows every layer down",
            *(axis, shape[-1], len(groups), len(groups[0])),
        )
    parts = np.empty(len(groups), object)
    parts[:] = [_arrange_group(group, within) for group in groups]
    return np.block(parts.reshape(across).tolist())


def spread(count: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Return how many of `count` groups lie along each axis, the first axes first.

    Args:
      count: divides the product of the axes.
      shape: their sizes.
    """
    across = []
    for size in shape:
        across.append(math.gcd(size, count))
        count //= across[-1]
    assert count == 1, (count, shape)
    return tuple(across)


def _group(devices: Sequence[Any]) -> tuple[str, list[list[Any]]]:
    """Return what connects devices fast, and the groups of those that are.

    The hosts of one TPU slice are one group: its links cross from host to host.
    """
    by_slice = _split(devices, "slice_index")
    if len(by_slice) > 1:
        return "slices", by_slice
    if devices[0].platform == "tpu":
        return "slices", [[*devices]]
    return "processes", _split(devices, "process_index")


def _split(devices: Sequence[Any], attribute: str) -> list[list[Any]]:
    groups = collections.defaultdict(list)
    for device in devices:
        groups[getattr(device, attribute, 0)].append(device)
    return [groups[key] for key in sorted(groups)]


def _arrange_group(devices: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Return devices of one group by their place in it.

    A physical axis of a TPU slice is split over two axes of the mesh only where it
    must be.
    """
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:
        return mesh_utils.create_device_mesh(
            shape, devices, allow_split_physical_axes=True
        )
