"""The machines that a cluster is asked for: one table of their sizes and names.

`tpu-v5p:4x4x4` is a slice of 4 x 4 x 4 chips; `gpu:h200:8x2` is 2 nodes of 8 GPUs. The
names are those of Google Kubernetes Engine.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence

from lmjax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Hosts that belong together: a TPU slice, or GPU nodes."""

    name: str  # as on the command line
    num_chips: int
    num_hosts: int
    resource: str  # of a container: google.com/tpu, nvidia.com/gpu
    node_selector: dict[str, str]
    machine_type: str

    @property
    def chips_per_host(self) -> int:
        """Return the chips of one host, all of which one process uses."""
        return self.num_chips // self.num_hosts


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tpu:
    """A generation of TPUs.

    Slices up to one host, or a few, have the shapes listed. In a torus larger ones are
    A x B x C, multiples of 4 with A <= B <= C.
    """

    accelerator: str  # the value of the node label
    machines: dict[int, str]  # machine type, by the chips of one host
    shapes: tuple[str, ...]
    largest: tuple[int, int, int] | None = None  # of the torus

    def all_shapes(self) -> list[str]:
        """Return every shape, the smallest first."""
        if self.largest is None:
            return list(self.shapes)
        most = math.prod(self.largest)
        larger = [
            f"{a}x{b}x{c}"
            for a in range(4, _LONGEST + 1, 4)
            for b in range(a, min(_LONGEST, most // a) + 1, 4)
            for c in range(b, min(_LONGEST, most // (a * b)) + 1, 4)
        ]
        return [*self.shapes, *sorted(larger, key=_num_chips)]

    def describe(self) -> str:
        """Return what is allowed, for an error."""
        text = ", ".join(self.shapes)
        if self.largest is None:
            return text
        most = "x".join(map(str, self.largest))
        return (
            f"{text} and AxBxC, multiples of 4 with A <= B <= C <= {_LONGEST}, of no "
            f"more chips than {most}"
        )


_LONGEST = 256  # side of a torus
_SMALL_TORUS = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
_MESH = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
TPUS = {
    "tpu-v4": _Tpu(
        accelerator="tpu-v4-podslice",
        machines={4: "ct4p-hightpu-4t"},
        shapes=_SMALL_TORUS,
        largest=(12, 16, 16),
    ),
    "tpu-v5e": _Tpu(
        accelerator="tpu-v5-lite-podslice",
        machines={1: "ct5lp-hightpu-1t", 4: "ct5lp-hightpu-4t"},
        shapes=_MESH,
    ),
    "tpu-v5p": _Tpu(
        accelerator="tpu-v5p-slice",
        machines={4: "ct5p-hightpu-4t"},
        shapes=_SMALL_TORUS,
        largest=(16, 20, 28),
    ),
    "tpu-v6e": _Tpu(
        accelerator="tpu-v6e-slice",
        machines={1: "ct6e-standard-1t", 4: "ct6e-standard-4t"},
        shapes=_MESH,
    ),
    "tpu-v7x": _Tpu(
        accelerator="tpu7x",
        machines={1: "tpu7x-standard-1t", 4: "tpu7x-standard-4t"},
        shapes=("1x1x1", *_SMALL_TORUS),
        largest=(16, 24, 24),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Gpu:
    """A kind of GPU: the value of the node label, machine types by GPUs of a node."""

    accelerator: str
    machines: dict[int, str]


def _each(machine: str, *sizes: int) -> dict[int, str]:
    return {size: f"{machine}-{size}g" for size in sizes}


GPUS = {
    "l4": _Gpu(
        accelerator="nvidia-l4",
        machines={
            1: "g2-standard-12",
            2: "g2-standard-24",
            4: "g2-standard-48",
            8: "g2-standard-96",
        },
    ),
    "a100": _Gpu(
        accelerator="nvidia-tesla-a100",
        machines=_each("a2-highgpu", 1, 2, 4, 8),
    ),
    "a100-80gb": _Gpu(
        accelerator="nvidia-a100-80gb",
        machines=_each("a2-ultragpu", 1, 2, 4, 8),
    ),
    "h100": _Gpu(
        accelerator="nvidia-h100-80gb",
        machines=_each("a3-highgpu", 1, 2, 4, 8),
    ),
    "h100-mega": _Gpu(
        accelerator="nvidia-h100-mega-80gb", machines=_each("a3-megagpu", 8)
    ),
    "h200": _Gpu(accelerator="nvidia-h200-141gb", machines=_each("a3-ultragpu", 8)),
    "b200": _Gpu(accelerator="nvidia-b200", machines=_each("a4-highgpu", 8)),
    "gb200": _Gpu(accelerator="nvidia-gb200", machines=_each("a4x-highgpu", 4)),
}
_KINDS = [*TPUS, *(f"gpu:{name}" for name in GPUS)]
_MOST_NODES = 10_000


def parse_topology(text: str) -> Topology:
    """Parse `tpu-v5p:4x4x4`, `tpu:v5p:4x4x4` or `gpu:h200:8x2`.

    Raises:
      UserError: there is no such kind, or no such slice or node of it.
    """
    kind, _, size = text.strip().lower().rpartition(":")
    kind = re.sub(r"^tpu[:-]?(v?)(?=\d)", r"tpu-v", kind.replace("tpu:", "tpu-"))
    if kind in TPUS:
        return _parse_tpu(text, kind, size)
    if kind.partition(":")[0] == "gpu" and kind[4:] in GPUS:
        return _parse_gpu(text, kind[4:], size)
    whole = text.strip().lower()
    given = kind if size and kind and whole not in _KINDS else whole
    raise UserError(
        f"--topology={text}: no such accelerator{_nearest_kind(given)}; expected "
        f"KIND:SIZE, as in tpu-v5p:4x4x4 or gpu:h200:8x2; kinds: {', '.join(_KINDS)}"
    )


def _nearest_kind(given: str) -> str:
    if f"gpu:{given}" in _KINDS:
        return f" (did you mean 'gpu:{given}'?)"
    return nearest(given, _KINDS)


def _parse_tpu(text: str, kind: str, size: str) -> Topology:
    tpu = TPUS[kind]
    shapes = tpu.all_shapes()
    if size not in shapes:
        raise UserError(
            f"--topology={text}: {kind} has no slice of that shape"
            f"{_nearest_shape(size, shapes)}; allowed: {tpu.describe()}"
        )
    num_chips = _num_chips(size)
    chips_per_host = min(num_chips, 4)
    return Topology(
        name=f"{kind}:{size}",
        num_chips=num_chips,
        num_hosts=num_chips // chips_per_host,
        resource="google.com/tpu",
        node_selector={
            "cloud.google.com/gke-tpu-accelerator": tpu.accelerator,
            "cloud.google.com/gke-tpu-topology": size,
        },
        machine_type=tpu.machines[chips_per_host],
    )


def _parse_gpu(text: str, name: str, size: str) -> Topology:
    gpu = GPUS[name]
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size, re.ASCII)
    per_host, num_hosts = (int(n) for n in match.groups()) if match else (0, 0)
    if per_host not in gpu.machines or not 1 <= num_hosts <= _MOST_NODES:
        allowed = ", ".join(map(str, gpu.machines))
        closest = min(gpu.machines, key=lambda n: abs(n - (per_host or 8)))
        nodes = max(1, min(num_hosts, _MOST_NODES))
        raise UserError(
            f"--topology={text}: expected gpu:{name}:GPUSxNODES, with {allowed} GPUs "
            f"in a node and 1 to {_MOST_NODES} nodes "
            f"(did you mean 'gpu:{name}:{closest}x{nodes}'?)"
        )
    return Topology(
        name=f"gpu:{name}:{size}",
        num_chips=per_host * num_hosts,
        num_hosts=num_hosts,
        resource="nvidia.com/gpu",
        node_selector={"cloud.google.com/gke-accelerator": gpu.accelerator},
        machine_type=gpu.machines[per_host],
    )


def _num_chips(shape: str) -> int:
    return math.prod(int(side) for side in shape.split("x"))


def _nearest_shape(size: str, shapes: Sequence[str]) -> str:
    """Return a hint at the shape with the nearest number of chips, and sides."""
    if not re.fullmatch(r"\d{1,5}(x\d{1,5})*", size, re.ASCII):
        return nearest(size, shapes)
    sides = sorted(int(side) for side in size.split("x"))
    chips = math.prod(sides)

    def distance(shape: str) -> tuple[float, float]:
        others = sorted(int(side) for side in shape.split("x"))
        pairs = itertools.zip_longest(sides, others, fillvalue=1)
        difference = sum(math.log(max(a, 1) / b) ** 2 for a, b in pairs)
        return abs(math.log(max(chips, 1) / math.prod(others))), difference

    return f" (did you mean {min(shapes, key=distance)!r}?)"
