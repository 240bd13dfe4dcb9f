"""Devices: batches onto them, what they can do, what they hold."""

from typing import Any

import jax
from jax.sharding import Mesh

from lmjax.config import ModelConfig
from lmjax.sharding import batch_sharding
from lmjax.types import Batch, HostBatch

# Dense bfloat16 FLOP a second, from the makers' data sheets.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def put_batch(batch: HostBatch, mesh: Mesh) -> Batch:
    """Return this process's rows as global arrays, split over data and fsdp."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }


def peak_flops() -> float | None:
    """Return the peak FLOP a second of one device, if it is known."""
    kind = jax.devices()[0].device_kind
    return next((flops for name, flops in PEAK_FLOPS.items() if name in kind), None)


def peak_bytes() -> int | None:
    """Return the most memory a local device has held, where it reports that."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    return max(peaks, default=None)


def flops_per_token(config: ModelConfig, shapes: Any, *, length: int) -> float:
    """Return the FLOPs that training spends on a token, forward and backward.

    6 for each weight of a matrix product (2 forward, 4 backward; lookups are free, a
    tied table counts once, for the logits) and 12 * L * N * H * T / 2 for scores and
    their sums over values in L layers of N heads of size H: a causal query at an
    average place sees half of its T keys (at most `window` of them). Rematerialised
    work is not counted, after Chowdhery et al. 2022 (PaLM), appendix B.
    """
    sizes = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    weights = sum(size for name, size in sizes.items() if name.endswith("kernel"))
    weights += config.vocab_size * config.dim
    seen = length / 2
    if config.window and config.window < length:
        seen = config.window * (1 - config.window / (2 * length))
    attention = 12 * config.num_layers * config.num_heads * config.head_dim * seen
    return 6 * weights + attention
