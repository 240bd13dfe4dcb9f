"""Machines to plan for, by name: `tpu:v5p:4x4x4`, `gpu:h200:8x8`, `cpu:8`."""

import dataclasses
import math
import re

from lmjax.errors import UserError, nearest
from lmjax.parallel.chips import CHIPS, Chip

# Shapes of slices have two dimensions or three; devices of a chip.
_TPUS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
_DEVICES_A_CHIP = {"tpu7x": 2}
GPUS = ("a100", "h100", "h200", "b200")
_FORMS = "tpu:CHIP:XxYxZ[*SLICES], gpu:CHIP:NODESxGPUS, or cpu:DEVICES"
_BY_NAME = {chip.name: chip for chip in CHIPS}
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v7x": "tpu7x", "v6": "v6e"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A machine.

    shape: of a TPU slice; nodes and GPUs of each; or the number of CPU devices.
    num_slices: of TPUs, connected by a network.
    """

    name: str
    platform: str
    chip: Chip | None
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def num_devices(self) -> int:
        """The number of devices that jax would list."""
        name = "" if self.chip is None else self.chip.name
        return math.prod(self.shape) * self.num_slices * _DEVICES_A_CHIP.get(name, 1)

    @property
    def num_chips(self) -> int:
        """The number of chips, which is what is paid for."""
        return math.prod(self.shape) * self.num_slices

    @property
    def devices_per_group(self) -> int:
        """The number of devices that fast links connect: of a slice, or of a node."""
        if self.platform == "tpu":
            return self.num_devices // self.num_slices
        return self.shape[-1]


def parse_target(text: str) -> Target:
    """Parse the name of a machine.

    Raises:
      UserError: there is no such machine; the text names those that there are.
    """
    platform, _, rest = text.partition(":")
    if platform not in ("tpu", "gpu", "cpu"):
        hint = nearest(platform, ["tpu", "gpu", "cpu"])
        raise UserError(f"--topology={text}: must be {_FORMS}{hint}")
    if platform == "cpu":
        number = _dimensions(rest, text=text, allowed="cpu:N with N from 1 to 4096")
        if len(number) != 1 or number[0] > 4096:
            raise UserError(f"--topology={text}: must be cpu:N with N from 1 to 4096")
        return Target(name=text, platform=platform, chip=None, shape=number)
    name, _, shape = rest.partition(":")
    name = _ALIASES.get(name, name)
    known = [*_TPUS] if platform == "tpu" else [*GPUS]
    if name not in known:
        hint = nearest(name, known)
        raise UserError(
            f"--topology={text}: no chip {name!r}{hint}; must be {platform}:CHIP:SHAPE "
            f"with CHIP one of {', '.join(known)}"
        )
    if platform == "gpu":
        allowed = f"gpu:{name}:NODESxGPUS, as in gpu:{name}:1x8"
        dims = _dimensions(shape, text=text, allowed=allowed)
        if len(dims) != 2:
            raise UserError(f"--topology={text}: must be {allowed}")
        return Target(name=text, platform=platform, chip=_BY_NAME[name], shape=dims)
    example = "x".join(["4"] * _TPUS[name])
    allowed = f"tpu:{name}:{'XxYxZ'[: 2 * _TPUS[name] - 1]}, as in tpu:{name}:{example}"
    slice_shape, _, count = shape.partition("*")
    dims = _dimensions(slice_shape, text=text, allowed=allowed)
    num_slices = _dimensions(count or "1", text=text, allowed=f"{allowed}*2 for two")
    if len(dims) != _TPUS[name] or len(num_slices) != 1:
        raise UserError(f"--topology={text}: must be {allowed}")
    return Target(
        name=text,
        platform=platform,
        chip=_BY_NAME[name],
        shape=dims,
        num_slices=num_slices[0],
    )


def _dimensions(shape: str, *, text: str, allowed: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*", shape):
        raise UserError(f"--topology={text}: must be {allowed}")
    return tuple(int(size) for size in shape.split("x"))
