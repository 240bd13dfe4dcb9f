"""Rotary positions in a config.json, in the older and the newer spelling."""

from typing import Any

from lmjax.config.model import TransformerConfig
from lmjax.errors import UserError
from lmjax.interop.hf_config import HFConfig

# Newer files have all of it under `rope_parameters`; older ones have `rope_theta`, and
# `rope_scaling` if the frequencies are scaled. Both are read. The older is written:
# every version of transformers reads it.
_SCALINGS = {"default": "none", "linear": "linear", "llama3": "llama3"}
_FIELDS = {
    "factor": "rope_factor",
    "low_freq_factor": "rope_low_frequency_factor",
    "high_freq_factor": "rope_high_frequency_factor",
    "original_max_position_embeddings": "rope_original_length",
}
_KEYS = {"none": (), "linear": ("factor",), "llama3": tuple(_FIELDS)}  # by scaling


def read_rope(hf: HFConfig) -> dict[str, Any]:
    """Return the fields of rotary positions.

    Raises:
      UserError: the scaling is not supported, or lacks a number.
    """
    hf.require("partial_rotary_factor", None, 1.0)
    key = "rope_scaling" if hf.get("rope_scaling") else "rope_parameters"
    values = hf.get(key)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise hf.error(key, "expected an object")
    rope_type = values.get("rope_type", values.get("type", "default"))
    if rope_type not in _SCALINGS:
        raise UserError(
            f"{hf.file}: {key}.rope_type = {rope_type!r}: allowed: "
            f"{', '.join(_SCALINGS)}"
        )
    scaling = _SCALINGS[rope_type]
    inner = HFConfig(values, {}, file=f"{hf.file}: {key}")
    inner.require("partial_rotary_factor", None, 1.0)
    theta = hf.get_float("rope_theta", 10_000.0)
    fields: dict[str, Any] = {
        "position": "rope",
        "rope_theta": inner.get_float("rope_theta", theta),
        "rope_scaling": scaling,
    }
    for name in _KEYS[scaling]:
        fields[_FIELDS[name]] = inner.get_float(name)
    return fields


def write_rope(config: TransformerConfig) -> dict[str, Any]:
    """Return the keys of rotary positions."""
    scaling = None
    if config.rope_scaling != "none":
        scaling = {"rope_type": config.rope_scaling} | {
            name: getattr(config, _FIELDS[name]) for name in _KEYS[config.rope_scaling]
        }
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling}
