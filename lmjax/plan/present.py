"""The machine that this process runs on, as one to plan for."""

from collections.abc import Sequence
from typing import Any

from lmjax.parallel.chips import find_chip
from lmjax.plan.target import Target, parse_target


def present_target(devices: Sequence[Any]) -> Target | None:
    """Return the machine that some devices are, None if it is not known.

    Args:
      devices: all of `jax.devices()`.
    """
    first = devices[0]
    if first.platform == "cpu":
        return parse_target(f"cpu:{len(devices)}")
    chip = find_chip(first.device_kind)
    if chip is None:
        return None
    if first.platform == "gpu":
        nodes = len({device.process_index for device in devices})
        shape = f"{nodes}x{len(devices) // nodes}"
        return _parse(f"gpu:{chip.name}:{shape}")
    sizes = [max(place) + 1 for place in zip(*(d.coords for d in devices), strict=True)]
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    dims = 2 if chip.name in ("v5e", "v6e") else 3
    shape = "x".join(map(str, sizes[:dims]))
    return _parse(f"tpu:{chip.name}:{shape}*{num_slices}")


def _parse(name: str) -> Target | None:
    try:
        return parse_target(name)
    except ValueError:
        return None
