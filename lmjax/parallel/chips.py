"""One table of chips: peak FLOPs, memory, bandwidth and links of one device.

A device is what `jax.devices()` lists: a whole chip, but half of one of TPU v7x.
Figures are those of dense products in the vendors' data sheets:
cloud.google.com/tpu/docs/system-architecture-tpu-vm (and the page of each generation),
nvidia.com/data-center (A100, H100, H200, B200, GB200, L4, L40, L40S, V100).
"""

import dataclasses
from collections.abc import Mapping

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """What one device can do at best.

    kind: `device_kind` of jax, exactly.
    flops: a second, by the dtype of a product's operands; float32 is TensorFloat-32
      where the hardware has it, and bfloat16 on TPUs: the default precision of jax.
    memory: bytes of its memory that a program can use.
    bandwidth: bytes a second from and to its memory.
    link_bandwidth: bytes a second that it can send to its neighbours in a slice or in a
      node, over all its links.
    network_bandwidth: bytes a second that it can send to other slices or nodes, as
      machines are usually built; 0: not known.
    """

    name: str
    kind: str
    flops: Mapping[str, float]
    memory: int
    bandwidth: float
    link_bandwidth: float
    network_bandwidth: float = 0.0

    @property
    def platform(self) -> str:
        """The platform of jax: "tpu" or "gpu"."""
        return "tpu" if self.kind.startswith("TPU") else "gpu"


def _tpu(
    name: str,
    kind: str,
    *,
    tera: float,
    int8: float = 0.0,
    fp8: float = 0.0,
    gib: float,
    bandwidth: float,
    links: float,
) -> Chip:
    peaks = {"bfloat16": tera, "float32": tera, "int8": int8, "float8": fp8}
    return Chip(
        name=name,
        kind=kind,
        flops={dtype: peak * 1e12 for dtype, peak in peaks.items() if peak},
        memory=int(gib * GIB),
        bandwidth=bandwidth * 1e9,
        link_bandwidth=links * 1e9,
        network_bandwidth=6.25e9,  # 50 Gbit/s a chip of a host's network
    )


def _gpu(
    name: str,
    kind: str,
    *,
    tera: float,
    tf32: float = 0.0,
    fp8: float = 0.0,
    int8: float = 0.0,
    memory: int,
    bandwidth: float,
    links: float,
    network: float = 0.0,
) -> Chip:
    peaks = {"bfloat16": tera, "float32": tf32, "float8": fp8, "int8": int8}
    return Chip(
        name=name,
        kind=kind,
        flops={dtype: peak * 1e12 for dtype, peak in peaks.items() if peak},
        memory=memory,
        bandwidth=bandwidth * 1e9,
        link_bandwidth=links * 1e9,
        network_bandwidth=network * 1e9,
    )


_A100 = {"tera": 312, "tf32": 156, "int8": 624}
_H100 = {"tera": 989, "tf32": 494, "fp8": 1979, "int8": 1979}
_B200 = {"tera": 2250, "tf32": 1100, "fp8": 4500, "int8": 4500}

CHIPS = (
    # Usable memory: what the TPU compiler says is available.
    _tpu("v4", "TPU v4", tera=275, int8=275, gib=30.75, bandwidth=1228, links=300),
    _tpu("v5e", "TPU v5 lite", tera=197, int8=393, gib=15.75, bandwidth=819, links=200),
    _tpu("v5p", "TPU v5", tera=459, int8=918, gib=95.73, bandwidth=2765, links=600),
    _tpu("v6e", "TPU v6 lite", tera=918, int8=1836, gib=31.25, bandwidth=1638,
         links=400),
    _tpu("tpu7x", "TPU7x", tera=1153, fp8=2307, gib=94.75, bandwidth=3690, links=300),
    _gpu("v100", "Tesla V100-SXM2-16GB", tera=125, memory=16 * GIB, bandwidth=900,
         links=150),
    _gpu("v100_32gb", "Tesla V100-SXM2-32GB", tera=125, memory=32 * GIB, bandwidth=900,
         links=150),
    _gpu("a100_40gb", "NVIDIA A100-SXM4-40GB", **_A100, memory=40 * GIB, bandwidth=1555,
         links=300, network=25),
    _gpu("a100", "NVIDIA A100-SXM4-80GB", **_A100, memory=85_100_068_864,
         bandwidth=2039, links=300, network=25),
    _gpu("a100_pcie_40gb", "NVIDIA A100-PCIE-40GB", **_A100, memory=40 * GIB,
         bandwidth=1555, links=32),
    _gpu("a100_pcie", "NVIDIA A100 80GB PCIe", **_A100, memory=80 * GIB, bandwidth=1935,
         links=32),
    _gpu("h100", "NVIDIA H100 80GB HBM3", **_H100, memory=84_942_979_072,
         bandwidth=3352, links=450, network=50),
    _gpu("h100_pcie", "NVIDIA H100 PCIe", tera=756, tf32=378, fp8=1513, int8=1513,
         memory=80 * GIB, bandwidth=2039, links=64),
    _gpu("h100_nvl", "NVIDIA H100 NVL", tera=835, tf32=417, fp8=1671, int8=1671,
         memory=94 * GIB, bandwidth=3938, links=300),
    _gpu("gh200", "NVIDIA GH200 480GB", **_H100, memory=96 * GIB, bandwidth=4000,
         links=450, network=50),
    _gpu("h200", "NVIDIA H200", **_H100, memory=151_397_597_184, bandwidth=4800,
         links=450, network=50),
    _gpu("h20", "NVIDIA H20", tera=148, tf32=74, fp8=296, int8=296, memory=96 * GIB,
         bandwidth=4000, links=450, network=50),
    _gpu("b200", "NVIDIA B200", **_B200, memory=191_514_411_008, bandwidth=7672,
         links=900, network=50),
    _gpu("gb200", "NVIDIA GB200", tera=2500, tf32=1250, fp8=5000, int8=5000,
         memory=186 * GIB, bandwidth=8000, links=900, network=50),
    _gpu("l4", "NVIDIA L4", tera=121, tf32=60, fp8=242, int8=242, memory=24 * GIB,
         bandwidth=300, links=32),
    _gpu("l40", "NVIDIA L40", tera=181, tf32=90, fp8=362, int8=362, memory=48 * GIB,
         bandwidth=864, links=32),
    _gpu("l40s", "NVIDIA L40S", tera=362, tf32=183, fp8=733, int8=733, memory=48 * GIB,
         bandwidth=864, links=32),
)  # fmt: skip


def find_chip(kind: str) -> Chip | None:
    """Return the chip of a `device_kind`, None if it is not in the table."""
    return next((chip for chip in CHIPS if chip.kind == kind), None)
