"""Rotary positions as config.json spells them, the older way and the newer."""

from typing import Any

from lmjax.config.model import TransformerConfig
from lmjax.errors import ConfigError
from lmjax.interop.settings import Settings

# Newer files have all of it under `rope_parameters`; older ones have `rope_theta`, and
# `rope_scaling` where the frequencies are scaled. Both are read; the older is written,
# which every version of transformers reads.
_SCALINGS = {"default": "none", "linear": "linear", "llama3": "llama3"}
_FIELDS = {
    "factor": "rope_factor",
    "low_freq_factor": "rope_low_frequency_factor",
    "high_freq_factor": "rope_high_frequency_factor",
    "original_max_position_embeddings": "rope_original_length",
}
_USED = {"none": (), "linear": ("factor",), "llama3": tuple(_FIELDS)}


def read_rope(settings: Settings) -> dict[str, Any]:
    """Return the fields of our config that say how positions rotate.

    Raises:
      ConfigError: a scaling that lmjax cannot compute, or one that lacks a number.
    """
    settings.only("partial_rotary_factor", None, 1.0)
    key = "rope_scaling" if settings.get("rope_scaling") else "rope_parameters"
    values = settings.get(key)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise settings.error(key, "must be an object")
    kind = values.get("rope_type", values.get("type", "default"))
    if kind not in _SCALINGS:
        raise ConfigError(
            f"{settings.where}: {key}.rope_type = {kind!r}: allowed: "
            f"{', '.join(_SCALINGS)}"
        )
    scaling = _SCALINGS[kind]
    inner = Settings(values, {}, where=f"{settings.where}: {key}")
    inner.only("partial_rotary_factor", None, 1.0)
    theta = settings.number("rope_theta", 10_000.0)
    fields: dict[str, Any] = {
        "position": "rope",
        "rope_theta": inner.number("rope_theta", theta),
        "rope_scaling": scaling,
    }
    for name in _USED[scaling]:
        fields[_FIELDS[name]] = inner.number(name)
    return fields


def write_rope(config: TransformerConfig) -> dict[str, Any]:
    """Return the settings that say how positions rotate."""
    scaling = None
    if config.rope_scaling != "none":
        scaling = {"rope_type": config.rope_scaling} | {
            name: getattr(config, _FIELDS[name]) for name in _USED[config.rope_scaling]
        }
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling}
