"""Gemma, Gemma 2 (Gemma Team 2024) and the text models of Gemma 3 (2025)."""

from collections.abc import Collection
from typing import Any

from lmjax.config.model import DecoderConfig
from lmjax.interop.families.llama import (
    NORMS,
    build_table,
    read_shared,
    read_windows,
    write_layer_types,
    write_shared,
)
from lmjax.interop.families.rope import split_rope
from lmjax.interop.family import Family
from lmjax.interop.hf_config import ACTIVATIONS, HF_ACTIVATIONS, HFConfig
from lmjax.interop.table import norm

_GEMMA = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
}
_GEMMA2 = {
    **_GEMMA,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}


_GEMMA3 = {
    **_GEMMA2,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}


def _read(hf: HFConfig) -> dict[str, Any]:
    hf.require("use_bidirectional_attention", None, False)
    return {
        **read_shared(hf),
        "norm": "rmsnorm1p",
        "scale_embeddings": True,
        "attention_bias": hf.get_bool("attention_bias"),
    }


def _read_gemma(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    # The first files say "gelu", but transformers uses the tanh form.
    hf.require("hidden_act", "gelu", "gelu_pytorch_tanh")
    hf.require("hidden_activation", None, "gelu_pytorch_tanh")
    return {**_read(hf), "activation": "gelu_tanh"}


def _read_gemma2(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    types = ["sliding_attention", "full_attention"] * hf.get_int("num_hidden_layers")
    return {**_read_gemma(hf, tensors), **_read_norms_and_caps(hf, types)}


def _read_gemma3(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    every = hf.get_int("sliding_window_pattern")
    if not every:
        raise hf.error("sliding_window_pattern", "expected > 0")
    num_layers = hf.get_int("num_hidden_layers")
    types = ["sliding_attention"] * (every - 1) + ["full_attention"]
    hf, local_theta = split_rope(hf, "rope_local_base_freq")
    fields = {**_read(hf), **_read_norms_and_caps(hf, types * num_layers)}
    return {
        **fields,
        "activation": hf.look_up("hidden_activation", ACTIVATIONS),
        "qk_norm": True,
        "rope_local_theta": local_theta if fields.get("window") else 0.0,
    }


def _read_norms_and_caps(hf: HFConfig, types: list[str]) -> dict[str, Any]:
    """Return what is new in Gemma 2; `types` are those of the first layers or more."""
    num_layers = hf.get_int("num_hidden_layers")
    size = hf.get_float("query_pre_attn_scalar")
    if size <= 0:
        raise hf.error("query_pre_attn_scalar", "expected > 0")
    head_dim = hf.get_int("head_dim")
    return {
        **read_windows(hf, types[:num_layers]),
        "norm_place": "both",
        "attention_scale": 0.0 if size == head_dim else size**-0.5,
        "attention_softcap": hf.get_float("attn_logit_softcapping", 0.0),
        "logit_softcap": hf.get_float("final_logit_softcapping", 0.0),
    }


def _write_gemma(config: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        **write_shared(config),
        "attention_bias": config.attention_bias,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
    }


def _write_gemma2(config: DecoderConfig) -> dict[str, Any]:
    return {
        **_write_gemma(config),
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        **_write_caps_and_windows(config),
    }


def _write_gemma3(config: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **write_shared(config),
        **_write_caps_and_windows(config),
        "attention_bias": config.attention_bias,
        "hidden_activation": HF_ACTIVATIONS[config.activation],
        "rope_local_base_freq": config.rope_local_theta or config.rope_theta,
    }


def _write_caps_and_windows(config: DecoderConfig) -> dict[str, Any]:
    size = config.attention_scale**-2 if config.attention_scale else config.head_dim
    return {
        "query_pre_attn_scalar": round(size),
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.logit_softcap or None,
        "sliding_window": config.window or None,
        "layer_types": write_layer_types(config),
    }


_BLOCKS, _LAYER = "decoder.blocks", "model.layers.{layer}"
_GEMMA_TABLE = build_table(*NORMS)
_GEMMA2_TABLE = build_table(
    *norm(f"{_BLOCKS}.attention_norm", f"{_LAYER}.input_layernorm"),
    *norm(f"{_BLOCKS}.attention_post_norm", f"{_LAYER}.post_attention_layernorm"),
    *norm(f"{_BLOCKS}.mlp_norm", f"{_LAYER}.pre_feedforward_layernorm"),
    *norm(f"{_BLOCKS}.mlp_post_norm", f"{_LAYER}.post_feedforward_layernorm"),
)

GEMMA = Family(
    model_type="gemma",
    architectures=("GemmaForCausalLM", "GemmaModel"),
    base_architecture="GemmaModel",
    defaults=_GEMMA,
    config_from_hf=_read_gemma,
    config_to_hf=_write_gemma,
    table=lambda config: _GEMMA_TABLE,
)
GEMMA2 = Family(
    model_type="gemma2",
    architectures=("Gemma2ForCausalLM", "Gemma2Model"),
    base_architecture="Gemma2Model",
    defaults=_GEMMA2,
    config_from_hf=_read_gemma2,
    config_to_hf=_write_gemma2,
    table=lambda config: _GEMMA2_TABLE,
)
GEMMA3 = Family(
    model_type="gemma3_text",
    architectures=("Gemma3ForCausalLM", "Gemma3TextModel"),
    base_architecture="Gemma3TextModel",
    has_tagger=False,
    defaults=_GEMMA3,
    config_from_hf=_read_gemma3,
    config_to_hf=_write_gemma3,
    table=lambda config: _GEMMA2_TABLE,
)
