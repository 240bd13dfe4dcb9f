"""Which attention kernel a model runs on, and why others cannot."""

import logging
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from lmjax.config.model import TransformerConfig
from lmjax.errors import ConfigError
from lmjax.nn import tokamax_attention

Kernel = Literal["xla", "chunked", "cudnn", "splash", "tokamax"]

log = logging.getLogger(__name__)

# The kernel that is tried first for long rows on a platform.
FASTEST: dict[str, Kernel] = {"gpu": "cudnn", "tpu": "splash"}


def choose_attention(
    config: TransformerConfig, *, platform: str, mesh: Mesh | None = None
) -> Kernel:
    """Return the name of the kernel for a platform: `config.attention`, or for "auto".

    The log says which is chosen for "auto", and why not a faster one.

    Args:
      config: its dtype is not "auto".
      platform: "cpu", "gpu" or "tpu".
      mesh: that the model runs on, if it is known. Its devices need not exist.

    Raises:
      ConfigError: the kernel that the config names does not support it.
    """
    name: Kernel
    if config.attention != "auto":
        name = config.attention
        reason = obstacle(name, config, platform=platform, mesh=mesh)
        if reason:
            raise ConfigError(f"config.model.attention = {name!r}: {reason}")
        return name
    if platform not in FASTEST:
        return "chunked"
    name = FASTEST[platform]
    reason = obstacle(name, config, platform=platform, mesh=mesh)
    log.info(
        "attention: %s for long rows (%s %s)",
        *("chunked" if reason else name, name, reason or "supports it"),
    )
    return "chunked" if reason else name


def obstacle(
    name: Kernel,
    config: TransformerConfig,
    *,
    platform: str,
    mesh: Mesh | None = None,
) -> str:
    """Return why a kernel does not support a config; "" if it does.

    Arguments as for `choose_attention`.
    """
    if name in ("xla", "chunked"):
        return ""
    runs_on = "tpu" if name == "splash" else "gpu"
    if platform != runs_on:
        return f"runs on {runs_on.upper()}s only, not on {platform}"
    if name == "tokamax" and not tokamax_attention.is_installed():
        return "needs the package tokamax: pip install tokamax"
    context = 1 if mesh is None else mesh.shape.get("context", 1)
    if context > 1:
        return f"has no rows split in length (config.mesh.context = {context})"
    if config.position == "relative":
        return "has no bias for relative positions (position = 'relative')"
    if config.attention_dropout:
        return f"has no dropout (attention_dropout = {config.attention_dropout})"
    if name == "splash":
        return ""
    if config.dtype == "float32":
        return "needs bfloat16, not float32"
    capability = _capability(platform, mesh)
    if capability and capability < 9.0:
        return f"needs a Hopper GPU or a later one, not compute capability {capability}"
    if name == "tokamax":
        return ""
    if config.attention_softcap:
        return f"has no soft cap (attention_softcap = {config.attention_softcap})"
    if config.window:
        return f"has no window for packed rows (window = {config.window})"
    if config.head_dim % 8 or config.head_dim > 256:
        return f"needs head_dim to be a multiple of 8 up to 256, not {config.head_dim}"
    return ""


def _capability(platform: str, mesh: Mesh | None) -> float:
    """Return the compute capability of the GPUs; 0 if it is not known."""
    device: Any = None
    if mesh is not None:
        device = mesh.devices.flat[0]
    elif platform == jax.default_backend():
        device = jax.devices()[0]
    return float(getattr(device, "compute_capability", 0) or 0)
