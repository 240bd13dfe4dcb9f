"""The peak FLOPs and the memory of the devices of this process."""

import jax

from lmjax.parallel.chips import find_chip


def peak_flops(dtype: str) -> float | None:
    """Return the peak FLOP/s of one device, None if unknown.

    Args:
      dtype: that the model computes in.
    """
    chip = find_chip(jax.devices()[0].device_kind)
    return None if chip is None else chip.flops.get(dtype)


def peak_bytes() -> int | None:
    """Return the peak memory of a local device in bytes, None if not reported."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    return max(peaks, default=None)
