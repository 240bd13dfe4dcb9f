"""Rotary positions in a config.json, in the older and the newer spelling."""

import math
from collections.abc import Mapping
from typing import Any

from lmjax.config.model import TransformerConfig
from lmjax.errors import UserError, nearest
from lmjax.interop.hf_config import HFConfig

# Newer files have all of it under `rope_parameters`; older ones have `rope_theta`, and
# `rope_scaling` if the frequencies are scaled. Both are read. The older is written:
# every version of transformers reads it.
_SCALINGS = {
    "default": "none",
    "linear": "linear",
    "llama3": "llama3",
    "dynamic": "dynamic",
    "yarn": "yarn",
    "longrope": "longrope",
}
_NUMBERS = {
    "factor": "rope_factor",
    "low_freq_factor": "rope_low_frequency_factor",
    "high_freq_factor": "rope_high_frequency_factor",
    "beta_fast": "rope_beta_fast",
    "beta_slow": "rope_beta_slow",
    "attention_factor": "rope_attention_factor",
}
_LISTS = {"short_factor": "rope_short_factors", "long_factor": "rope_long_factors"}
_LENGTH = "original_max_position_embeddings"
# The keys of each scaling; all but those in _OPTIONAL must be there.
_KEYS: dict[str, tuple[str, ...]] = {
    "none": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _LENGTH),
    "yarn": (
        "factor",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "truncate",
        _LENGTH,
    ),
    "longrope": ("factor", "attention_factor", *_LISTS, _LENGTH),
}
_OPTIONAL = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 0.0}
_OTHER_KEYS = (
    *("rope_type", "type", "rope_theta", "partial_rotary_factor"),
    *("mscale", "mscale_all_dim", "finetuned"),
)
_KNOWN = {*_OTHER_KEYS, *(key for keys in _KEYS.values() for key in keys)}


def read_rope(
    hf: HFConfig,
    *,
    theta_key: str = "rope_theta",
    fraction_key: str = "",
    scalings: Mapping[str, str] = _SCALINGS,
) -> dict[str, Any]:
    """Return the fields of rotary positions.

    Args:
      hf: the config.json.
      theta_key: the key of the base of the frequencies.
      fraction_key: the key of the rotated fraction of each head; "": all of it is.
      scalings: the scalings that the family has, by their names there.

    Raises:
      UserError: a setting is not supported, or a number is missing.
    """
    key = "rope_scaling" if hf.get("rope_scaling") else "rope_parameters"
    values = hf.get(key)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise hf.error(key, "expected an object")
    for name in values:
        if name not in _KNOWN and values[name] is not None:
            hint = nearest(name, sorted(_KNOWN))
            raise UserError(f"{hf.file}: {key}.{name}: not supported{hint}")
    rope_type = values.get("rope_type", values.get("type", "default"))
    if rope_type not in scalings:
        raise UserError(
            f"{hf.file}: {key}.rope_type = {rope_type!r}: allowed: "
            f"{', '.join(scalings)}"
        )
    inner = HFConfig(values, {}, file=f"{hf.file}: {key}")
    scaling = scalings[rope_type]
    return {
        "position": "rope",
        "rope_theta": inner.get_float("rope_theta", hf.get_float(theta_key, 10_000.0)),
        "rope_fraction": _read_fraction(hf, inner, fraction_key),
        "rope_scaling": scaling,
        **_read_scaling(hf, inner, scaling),
    }


def split_rope(hf: HFConfig, local_key: str) -> tuple[HFConfig, float]:
    """Return a config.json with the rotary positions of layers without a window alone.

    Newer files have an object for each kind of layer, older ones a key more.

    Args:
      hf: the config.json.
      local_key: the key of the base in the layers with a window.

    Returns:
      The same with one set of positions, and the base in the layers with a window.

    Raises:
      UserError: the frequencies of the layers with a window are scaled.
    """
    values = hf.get("rope_parameters")
    values = {} if values is None else values
    kinds = ("full_attention", "sliding_attention")
    if not isinstance(values, dict) or not set(values) <= {*kinds}:
        raise hf.error("rope_parameters", f"expected the keys {', '.join(kinds)}")
    full, local = (values.get(kind) or {} for kind in kinds)
    if not isinstance(full, dict) or not isinstance(local, dict):
        raise hf.error("rope_parameters", "expected an object for each kind of layer")
    full = {**full, **(hf.get("rope_scaling") or {})}
    HFConfig(full, {}, file=f"{hf.file}: rope").require("truncate", None, True)
    inner = HFConfig(local, {}, file=f"{hf.file}: rope_parameters.sliding_attention")
    for key in ("rope_type", "type"):
        inner.require(key, None, "default")
    inner.require("partial_rotary_factor", None, 1.0)
    theta = inner.get_float("rope_theta", hf.get_float(local_key))
    values = {**hf.values, "rope_scaling": full, "rope_parameters": None}
    return HFConfig(values, hf.defaults, file=hf.file), theta


def _read_fraction(hf: HFConfig, inner: HFConfig, key: str) -> float:
    if not key:
        hf.require("partial_rotary_factor", None, 1.0)
        inner.require("partial_rotary_factor", None, 1.0)
        return 1.0
    return inner.get_float("partial_rotary_factor", hf.get_float(key, 1.0))


def _read_scaling(hf: HFConfig, inner: HFConfig, scaling: str) -> dict[str, Any]:
    """Return the fields of a scaling; `inner` is its object in the config.json."""
    fields: dict[str, Any] = {}
    keys = _KEYS[scaling]
    if _LENGTH in keys:
        fields["rope_original_length"] = _read_original_length(hf, inner)
    for key in keys:
        if key in _LISTS:
            fields[_LISTS[key]] = _read_list(inner, key)
        elif key == "truncate":
            fields["rope_truncate"] = inner.get(key) is not False
            inner.require(key, None, True, False)
        elif key == "factor" and scaling in ("yarn", "longrope"):
            ratio = _max_length(hf) / fields["rope_original_length"]
            fields["rope_factor"] = inner.get_float(key, ratio)
        elif key in _NUMBERS:
            fields[_NUMBERS[key]] = inner.get_float(key, _OPTIONAL.get(key))
    if scaling == "yarn":
        # transformers takes the default for 0, too.
        for key in ("beta_fast", "beta_slow"):
            fields[_NUMBERS[key]] = fields[_NUMBERS[key]] or _OPTIONAL[key]
        fields["rope_attention_factor"] = _read_mscale(inner, fields)
    if scaling == "dynamic":
        # The file has the length in pretraining; `factor` times that is meant.
        length = _max_length(hf)
        fields["rope_original_length"] = length
        fields["max_length"] = round(length * fields["rope_factor"])
    return fields


def _max_length(hf: HFConfig) -> int:
    length = hf.get_int("max_position_embeddings")
    if not length:
        raise hf.error("max_position_embeddings", "expected > 0")
    return length


def _read_original_length(hf: HFConfig, inner: HFConfig) -> int:
    """Return the length in pretraining; beside the scaling it has precedence."""
    length = hf.get_int(_LENGTH, inner.get_int(_LENGTH, _max_length(hf)))
    if not length:
        raise hf.error(_LENGTH, "expected > 0")
    return length


def _read_list(inner: HFConfig, key: str) -> tuple[float, ...]:
    values = inner.get(key)
    if not isinstance(values, list) or not all(type(v) in (int, float) for v in values):
        raise inner.error(key, "expected a list of numbers")
    return tuple(map(float, values))


def _read_mscale(inner: HFConfig, fields: Mapping[str, Any]) -> float:
    """Return the attention factor, which DeepSeek's models give as two numbers."""
    scales = [inner.get_float(key, 0.0) for key in ("mscale", "mscale_all_dim")]
    given: float = fields["rope_attention_factor"]
    factor = fields["rope_factor"]
    if given or not all(scales) or factor <= 1:
        return given
    top, bottom = (0.1 * scale * math.log(factor) + 1.0 for scale in scales)
    return top / bottom


def write_rope(config: TransformerConfig) -> dict[str, Any]:
    """Return the keys of rotary positions."""
    c = config
    if c.rope_scaling == "none":
        return {"rope_theta": c.rope_theta, "rope_scaling": None}
    scaling: dict[str, Any] = {"rope_type": c.rope_scaling}
    for key in _KEYS[c.rope_scaling]:
        if key in _LISTS:
            scaling[key] = list(getattr(c, _LISTS[key]))
        elif key == "truncate":
            scaling |= {} if c.rope_truncate else {key: False}
        elif key == _LENGTH:
            scaling[key] = c.rope_original_length
        elif getattr(c, _NUMBERS[key]) != _OPTIONAL.get(key):
            scaling[key] = getattr(c, _NUMBERS[key])
    values = {"rope_theta": c.rope_theta, "rope_scaling": scaling}
    if c.rope_scaling == "dynamic":
        values["max_position_embeddings"] = c.rope_original_length
    return values
