"""Options of XLA for each kind of device, given to a program and not to the process.

OPTIONS is the whole table. A program gets the options of all rows that its devices and
the jaxlib match, and those of `config.compile.options` over them. XLA_FLAGS of the
environment still hold for what is not named here.
"""

import dataclasses
import logging
import re
from collections.abc import Mapping
from importlib import metadata

import jax
from jax.sharding import Mesh

from lmjax.config.compile import CompileConfig
from lmjax.errors import ConfigError
from lmjax.parallel.sharding import replicated

log = logging.getLogger(__name__)

Options = dict[str, str | bool | int | float]
JAXLIB = metadata.version("jaxlib")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptionSet:
    """Options of some devices, and what they are for."""

    purpose: str
    platform: str
    options: Mapping[str, str | bool]
    kinds: tuple[str, ...] = ("",)  # how `device_kind` begins
    since: tuple[int, ...] = (0,)  # of jaxlib
    several_devices: bool = True  # no use on a single one
    deterministic: bool = False  # only where `config.compile.deterministic` asks


OPTIONS = (
    OptionSet(
        # Otherwise the all-gathers over a whole torus of v5p become all-reduces of
        # zeros with each one's shard in it, the reduce-scatters of v5p and v6e
        # all-reduces, and none of them is asynchronous. They need each other.
        purpose="all-gathers and reduce-scatters on SparseCores, beside the compute",
        platform="tpu",
        kinds=("TPU v5p", "TPU v6"),
        since=(0, 10),
        options=dict.fromkeys(
            (
                "xla_tpu_enable_sparse_core_collective_offload_all_gather",
                "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather",
                "xla_tpu_enable_sparse_core_collective_offload_3d_all_gather",
                "xla_tpu_enable_all_gather_offload_tracing",
                "xla_enable_async_all_gather",
                "xla_tpu_prefer_async_allgather_to_allreduce",
                "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter",
                "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter",
                "xla_tpu_enable_sparse_core_reduce_scatter_v2",
            ),
            "true",
        ),
    ),
    OptionSet(
        purpose="collectives hidden behind the compute",
        platform="gpu",
        options={"xla_gpu_enable_latency_hiding_scheduler": True},
    ),
    OptionSet(
        purpose="sums in one order",
        platform="gpu",
        options={"xla_gpu_deterministic_ops": True},
        several_devices=False,
        deterministic=True,
    ),
)


def choose_options(config: CompileConfig, mesh: Mesh) -> Options:
    """Return the compiler options of a program on a mesh.

    Those that the compiler does not know are left out, with one line for each.

    Raises:
      ConfigError: `config.options` has a value that an option cannot have.
    """
    device = next(
        (d for d in mesh.devices.flat if d.process_index == jax.process_index()),
        mesh.devices.flat[0],
    )
    options = table_options(
        device.platform,
        device.device_kind,
        num_devices=mesh.devices.size,
        deterministic=config.deterministic,
    )
    own = {}
    for option in config.options:
        name, _, text = option.partition("=")
        own[name.strip()] = _parse(text.strip(), platform=device.platform)
    return _keep_known(options | own, own, mesh)


def table_options(
    platform: str,
    kind: str,
    *,
    num_devices: int,
    deterministic: bool = False,
    jaxlib_version: str = JAXLIB,
) -> Options:
    """Return the options of OPTIONS for devices of a platform and kind."""
    version = tuple(int(part) for part in re.findall(r"\d+", jaxlib_version)[:3])
    # libtpu says "TPU v5" where it means v5p, and "TPU v5 lite" for v5e.
    kind = "TPU v5p" if kind == "TPU v5" else kind
    found: Options = {}
    for row in OPTIONS:
        if (
            row.platform == platform.replace("cuda", "gpu")
            and kind.startswith(row.kinds)
            and version >= row.since
            and (num_devices > 1 or not row.several_devices)
            and (deterministic or not row.deterministic)
        ):
            found |= row.options
    return found


def _parse(text: str, *, platform: str) -> str | bool | int | float:
    """Return a value as the compiler of a platform takes it."""
    lower = text.lower()
    if platform == "tpu":
        return lower if lower in ("true", "false") else text
    if lower in ("true", "false"):
        return lower == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _keep_known(options: Options, own: Options, mesh: Mesh) -> Options:
    """Return the options that the compiler knows, by compiling next to nothing."""
    options = dict(options)
    while options and (error := _refusal(options, mesh)):
        name = _find_culprit(options, error, mesh)
        if name is None:
            return options  # the compiler fails for another reason, and will tell it
        value = options.pop(name)
        why = " ".join(error.splitlines()[0].split())
        if name in own and "No such compile option" not in why:
            raise ConfigError(f"config.compile.options: {name}={value}: {why}")
        log.warning(
            "compiler option %s=%s: left out, as jaxlib %s does not take it (%s)",
            *(name, value, JAXLIB, why),
        )
    return options


def _find_culprit(options: Options, error: str, mesh: Mesh) -> str | None:
    named = [name for name in options if re.search(rf"\b{name}\b", error)]
    if named or _refusal({}, mesh):
        return max(named, key=len, default=None)
    alone = (name for name in options if _refusal({name: options[name]}, mesh))
    return next(alone, [*options][-1])


def _refusal(options: Options, mesh: Mesh) -> str:
    """Return the compiler's error with these options; "" if it takes them."""
    one = jax.ShapeDtypeStruct((), "float32", sharding=replicated(mesh))
    jitted = jax.jit(lambda x: x + 1, compiler_options=options)
    try:
        jitted.lower(one).compile()
    except Exception as error:
        return str(error) or type(error).__name__
    return ""
