"""The settings of a GGUF file as a config.json, and back.

A key that is not known could change what the model computes, so it is an error.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lmjax.errors import UserError, nearest

# The class in transformers of each `general.architecture`.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# Keys of an architecture, and those of a config.json.
_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
_OPTIONAL = ("attention.head_count_kv", "attention.key_length", "rope.freq_base")
# Read in another way, or they say again what others say.
_OTHERS = (
    *("vocab_size", "rope.dimension_count", "attention.value_length"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.finetuned"),
    *("rope.scaling.original_context_length", "expert_count", "expert_used_count"),
)
# Llama 3's scaling is written as a factor for each frequency. The settings that give
# the factors are these, in all models that are known.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def to_hf(
    fields: Mapping[str, Any],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    rope_factors: np.ndarray | None,
    file: str,
) -> dict[str, Any]:
    """Return the config.json of a GGUF file.

    Args:
      fields: the values of its keys.
      shapes: of its tensors, as in a Hugging Face directory.
      rope_factors: that divide the frequencies of rotary positions, (head_dim / 2,).
      file: how errors name it.

    Raises:
      UserError: the architecture, or a setting, is not supported.
    """
    name = str(fields.get("general.architecture"))
    if name not in ARCHITECTURES:
        raise UserError(
            f"{file}: general.architecture = {name!r}: allowed: "
            f"{', '.join(ARCHITECTURES)}{nearest(name, list(ARCHITECTURES))}"
        )
    prefix = f"{name}."
    own = {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}
    _check_keys(own, prefix, file=file)
    values = {_KEYS[key]: _shorten(own[key]) for key in _KEYS if key in own}
    heads = max(int(values["num_attention_heads"]), 1)
    values.setdefault("head_dim", int(values["hidden_size"]) // heads)
    _check_heads(own, values, prefix, file=file)
    embedding = shapes.get("model.embed_tokens.weight")
    if embedding is None:
        raise UserError(f"{file}: tensor 'token_embd.weight' is missing")
    first = "model.layers.0."
    values |= {
        "model_type": name,
        "architectures": [ARCHITECTURES[name]],
        "vocab_size": embedding[0],
        "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        "attention_bias": f"{first}self_attn.o_proj.bias" in shapes,
        "mlp_bias": f"{first}mlp.down_proj.bias" in shapes,
        "rope_scaling": _read_scaling(own, values, rope_factors, file=file),
    }
    return values


def _check_keys(own: Mapping[str, Any], prefix: str, *, file: str) -> None:
    """Check the keys of an architecture, without the prefix.

    Raises:
      UserError: one is missing, not known, or has a value that is not supported.
    """
    for key, value in own.items():
        if key not in (*_KEYS, *_OTHERS):
            raise UserError(f"{file}: {prefix}{key} = {value!r}: is not supported")
    for key in (k for k in _KEYS if k not in _OPTIONAL):
        if not isinstance(own.get(key), int | float):
            raise UserError(
                f"{file}: {prefix}{key} = {own.get(key)!r}: expected a number"
            )
    if own.get("expert_count"):
        raise UserError(
            f"{file}: {prefix}expert_count = {own['expert_count']}: mixtures of "
            "experts are not supported"
        )


def _check_heads(
    own: Mapping[str, Any], values: Mapping[str, Any], prefix: str, *, file: str
) -> None:
    """Check that heads are rotated whole, and that values are as large as keys.

    Raises:
      UserError: they are not.
    """
    for key in ("rope.dimension_count", "attention.value_length"):
        if own.get(key, values["head_dim"]) != values["head_dim"]:
            raise UserError(
                f"{file}: {prefix}{key} = {own[key]}: must be the size of a head, "
                f"{values['head_dim']}"
            )


def _shorten(value: Any) -> Any:
    """Return a float32 as the shortest number that it is nearest to."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _read_scaling(
    own: Mapping[str, Any],
    values: Mapping[str, Any],
    factors: np.ndarray | None,
    *,
    file: str,
) -> dict[str, Any] | None:
    """Return `rope_scaling` of a config.json.

    Raises:
      UserError: it is not supported.
    """
    kind = own.get("rope.scaling.type", "none")
    if factors is not None:
        scaling = {"rope_type": "llama3", "factor": float(factors.max()), **_LLAMA3}
        theta = values.get("rope_theta", 10_000.0)
        expected = llama3_factors(scaling, theta=theta, head_dim=values["head_dim"])
        if kind != "none" or not np.allclose(factors, expected, rtol=1e-4):
            raise UserError(
                f"{file}: rope_freqs.weight: not the frequencies of Llama 3's scaling "
                f"by {scaling['factor']:g}"
            )
        return scaling
    if kind == "none":
        return None
    factor = own.get("rope.scaling.factor")
    if kind != "linear" or not isinstance(factor, int | float):
        raise UserError(
            f"{file}: rope.scaling.type = {kind!r}, factor = {factor!r}: allowed: "
            "none, or linear with a factor"
        )
    return {"rope_type": "linear", "factor": _shorten(factor)}


def llama3_factors(
    scaling: Mapping[str, Any], *, theta: float, head_dim: int
) -> np.ndarray:
    """Return what divides each frequency in Llama 3's scaling, float32 (head_dim / 2,).

    Long waves by all of the factor, short ones by nothing, and those between by parts
    (Grattafiori et al. 2024).
    """
    waves = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / waves
    share = np.clip((turns - low) / (high - low), 0, 1)  # of the unscaled frequency
    return (1 / ((1 - share) / scaling["factor"] + share)).astype(np.float32)


def from_hf(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of an architecture with the settings of a config.json.

    Raises:
      UserError: the format has no such model.
    """
    name = values["model_type"]
    if name not in ARCHITECTURES:
        raise UserError(
            f"--to: GGUF: model_type = {name!r}: must be one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    if values["architectures"] != [ARCHITECTURES[name]]:
        raise UserError(
            f"--to: GGUF: architectures = {values['architectures']}: must be "
            f"{ARCHITECTURES[name]}, a language model"
        )
    if values.get("sliding_window") and values.get("use_sliding_window", True):
        raise UserError(
            f"--to: GGUF: sliding_window = {values['sliding_window']}: {name} has none "
            "in this format"
        )
    if values["hidden_act"] != "silu":
        raise UserError(
            f"--to: GGUF: hidden_act = {values['hidden_act']!r}: must be 'silu'"
        )
    fields = {f"{name}.{key}": values[hf] for key, hf in _KEYS.items()}
    fields[f"{name}.attention.value_length"] = values["head_dim"]
    fields[f"{name}.rope.dimension_count"] = values["head_dim"]
    fields[f"{name}.vocab_size"] = values["vocab_size"]
    scaling = values.get("rope_scaling")
    if scaling and scaling["rope_type"] == "linear":
        fields[f"{name}.rope.scaling.type"] = "linear"
        fields[f"{name}.rope.scaling.factor"] = float(scaling["factor"])
    elif scaling and not _is_llama3(scaling, name):
        raise UserError(
            f"--to: GGUF: rope_scaling = {dict(scaling)}: allowed: none, linear, and "
            "llama3 in a llama"
        )
    return fields


def _is_llama3(scaling: Mapping[str, Any], name: str) -> bool:
    return scaling["rope_type"] == "llama3" and name == "llama"
