"""Descriptions of GPUs that the compiler reads in place of a device.

The facts are those of NVIDIA's data sheets and of the CUDA C++ Programming Guide, table
"Technical Specifications per Compute Capability"; memory and its bandwidth are in
`lmjax/parallel/chips.py`. The fields are those of XLA's
xla/stream_executor/device_description.proto.
"""

import dataclasses

from lmjax.parallel.chips import Chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Processors:
    """The streaming multiprocessors of a GPU.

    capability: the compute capability, major; extension: of its instructions; count: of
    multiprocessors; lanes: float32 units of each; shared: bytes of shared memory of
    each; block: of one block; cache: bytes of level 2; gigahertz: of the boost clock.
    """

    capability: int
    extension: str
    count: int
    lanes: int
    shared: int
    block: int
    cache: int
    gigahertz: float


_HOPPER = _Processors(
    capability=9,
    extension="feature_extension: ACCELERATED_FEATURES",
    count=132,
    lanes=128,
    shared=228 * 1024,
    block=227 * 1024,
    cache=50 * 2**20,
    gigahertz=1.98,
)
_PROCESSORS = {
    "a100": _Processors(
        capability=8,
        extension="",
        count=108,
        lanes=64,
        shared=164 * 1024,
        block=163 * 1024,
        cache=40 * 2**20,
        gigahertz=1.41,
    ),
    "h100": _HOPPER,
    "h200": _HOPPER,
    "b200": dataclasses.replace(
        _HOPPER, capability=10, count=148, cache=126 * 2**20, gigahertz=1.965
    ),
}
_TEXT = """gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {p.shared}
  threads_per_core_limit: 2048
  core_count: {p.count}
  fpus_per_core: {p.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  memory_bandwidth: {bandwidth}
  l2_cache_size: {p.cache}
  clock_rate_ghz: {p.gigahertz}
  device_memory_size: {chip.memory}
  shared_memory_per_block_optin: {p.block}
  cuda_compute_capability {{ major: {p.capability} {p.extension} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{chip.kind}"
"""


def describe_gpu(chip: Chip) -> str:
    """Return the text of a GPU's description, as a protocol buffer."""
    return _TEXT.format(
        p=_PROCESSORS[chip.name], chip=chip, bandwidth=int(chip.bandwidth)
    )


def compute_capability(chip: Chip) -> tuple[int, int]:
    """Return the compute capability of a GPU, such as (9, 0)."""
    return _PROCESSORS[chip.name].capability, 0
