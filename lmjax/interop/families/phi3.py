"""Phi-3 (Abdin et al. 2024), and Phi-3.5 and Phi-4 of the same shape."""

from collections.abc import Collection
from typing import Any

from lmjax.config.model import DecoderConfig
from lmjax.interop.families.llama import (
    NORMS,
    build_table,
    read_shared,
    read_windows,
    write_shared,
)
from lmjax.interop.family import Family
from lmjax.interop.hf_config import ACTIVATIONS, HF_ACTIVATIONS, HFConfig
from lmjax.interop.table import Entry, Table

_DEFAULTS = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "resid_pdrop": 0.0,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "sliding_window": None,
}


def _read(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    hf.require("attention_bias", None, False)
    return {
        **read_shared(_rename_scaling(hf), rotated_fraction="partial_rotary_factor"),
        "activation": hf.look_up("hidden_act", ACTIVATIONS),
        "dropout": hf.get_float("resid_pdrop"),
        **read_windows(hf, ["sliding_attention"] * hf.get_int("num_hidden_layers")),
    }


def _rename_scaling(hf: HFConfig) -> HFConfig:
    """Return a config.json without the older names of longrope, "su" and "yarn"."""
    key = "rope_scaling" if hf.get("rope_scaling") else "rope_parameters"
    values = hf.get(key)
    if not isinstance(values, dict):
        return hf
    name = values.get("rope_type", values.get("type"))
    if name in ("su", "yarn"):
        values = {**values, "rope_type": "longrope"}
    elif name not in ("longrope", "default", None):
        raise hf.error(key, "allowed as rope_type: longrope, default")
    return HFConfig({**hf.values, key: values}, hf.defaults, file=hf.file)


def _write(config: DecoderConfig) -> dict[str, Any]:
    values = {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        **write_shared(config),
        "hidden_act": HF_ACTIVATIONS[config.activation],
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "sliding_window": config.window or None,
        "partial_rotary_factor": config.rope_fraction,
    }
    del values["head_dim"]  # always hidden_size / num_attention_heads
    if config.rope_scaling == "longrope":
        values["rope_scaling"] = _write_longrope(config, values["rope_scaling"])
        values["original_max_position_embeddings"] = config.rope_original_length
    return values


def _write_longrope(config: DecoderConfig, scaling: dict[str, Any]) -> dict[str, Any]:
    """Return the scaling with the keys that older versions of transformers allow."""
    scaling = {"type": "longrope", **scaling}
    del scaling["rope_type"], scaling["original_max_position_embeddings"]
    if config.rope_factor == config.max_length / config.rope_original_length:
        del scaling["factor"]
    return scaling


def _table(config: DecoderConfig) -> Table:
    blocks, layer = "decoder.blocks", "model.layers.{layer}"
    qkv, mlp = f"{layer}.self_attn.qkv_proj.weight", f"{layer}.mlp.gate_up_proj.weight"
    # In units of the keys' size: so many parts of the tensor are queries.
    num = config.num_heads // config.num_kv_heads
    fused = lambda name, tensor, part, num_parts, span=1: Entry(
        f"{blocks}.{name}.kernel", tensor, "linear", 1, part, num_parts, span
    )
    return build_table(
        *NORMS,
        inputs=(
            fused("attention.query", qkv, 0, num + 2, num),
            fused("attention.key", qkv, num, num + 2),
            fused("attention.value", qkv, num + 1, num + 2),
            fused("mlp.gate", mlp, 0, 2),
            fused("mlp.up", mlp, 1, 2),
        ),
    )


PHI3 = Family(
    model_type="phi3",
    architectures=("Phi3ForCausalLM", "Phi3Model"),
    defaults=_DEFAULTS,
    config_from_hf=_read,
    config_to_hf=_write,
    table=_table,
    base_architecture="Phi3Model",
)
