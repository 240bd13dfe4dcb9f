"""The devices of a machine that is not there, and what this process needs for them."""

import importlib.util
from collections.abc import Mapping
from typing import Any

from lmjax.errors import UserError
from lmjax.plan.gpus import compute_capability, describe_gpu
from lmjax.plan.target import Target

_CLASS = "needs Linux on x86_64 and Python 3.11 or newer"


def check_packages(target: Target) -> None:
    """Check that the compiler for a machine is installed.

    Raises:
      UserError: it is not; the text says what to install.
    """
    if target.platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={target.name}: the compiler for TPUs is not installed: "
            f"pip install 'lmjax[plan]' ({_CLASS})"
        )
    plugins = ("jax_cuda13_plugin", "jax_cuda12_plugin")
    if target.platform == "gpu" and not any(map(importlib.util.find_spec, plugins)):
        raise UserError(
            f"--topology={target.name}: the compiler for GPUs is not installed: "
            f"pip install 'lmjax[cuda]' ({_CLASS}; no GPU and no driver)"
        )


def environment(target: Target, base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that compiles for a machine.

    Args:
      target: the machine.
      base: the environment of this process.
    """
    env = {
        **base,
        "JAX_PLATFORMS": "cpu",  # what the process itself computes with
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # it keeps no analysis of memory
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    if target.platform != "cpu":
        env.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
    env.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    env.setdefault("TPU_MIN_LOG_LEVEL", "3")
    env.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    name = "--xla_force_host_platform_device_count"
    flags = env.get("XLA_FLAGS", "").split()
    # A compiler ends the process at a flag that is not its own.
    own = {"cpu": "--xla", "gpu": "--xla_gpu", "tpu": "--xla_tpu"}[target.platform]
    flags = [f for f in flags if f.startswith(own) and not f.startswith(name)]
    count = target.num_devices if target.platform == "cpu" else 1
    env["XLA_FLAGS"] = " ".join([*flags, f"{name}={count}"])
    return env


def make_devices(target: Target) -> list[Any]:
    """Return the devices of a machine; this process has its `environment`.

    Raises:
      UserError: the compiler knows no such machine.
    """
    import jax

    if target.platform == "cpu":
        return jax.devices("cpu")
    from jax.experimental.topologies import get_topology_desc

    assert target.chip is not None
    shape = "x".join(map(str, target.shape))
    more: dict[str, Any] = {}
    if target.platform == "gpu":
        name, platform = target.chip.name, "cuda"
        nodes, gpus = target.shape
        # Partitions of fast links, hosts, devices of each.
        more = {
            "target_config": describe_gpu(target.chip),
            "topology": f"1x{nodes}x{gpus}",
        }
        _let_cudnn_compile(target)
    else:
        name, platform = f"{target.chip.name}:{shape}", "tpu"
        if target.chip.name == "v4":
            more["chip_config_name"] = "megacore"
        if target.num_slices > 1:
            more["num_slices"] = target.num_slices
    try:
        return list(get_topology_desc(name, platform, **more).devices)
    except Exception as error:
        (first, *_) = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"--topology={target.name}: {first[:300]}") from error


def _let_cudnn_compile(target: Target) -> None:
    """Answer for the GPU that is planned for what cuDNN asks the default device."""
    assert target.chip is not None
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    own = compute_capability(target.chip)

    def at_least(capability: str) -> bool:
        return own >= tuple(int(part) for part in capability.split("."))

    def equals(capability: str) -> bool:
        return own == tuple(int(part) for part in capability.split("."))

    cudnn.check_compute_capability = at_least
    if hasattr(cudnn, "is_cuda_compute_capability_equal"):
        cudnn.is_cuda_compute_capability_equal = equals
