"""Gemma (Gemma Team 2024) and Gemma 2 (Gemma Team 2024b)."""

from collections.abc import Collection
from typing import Any

from lmjax.config.model import DecoderConfig
from lmjax.interop.families.llama import (
    NORMS,
    read_shared,
    read_windows,
    table,
    write_shared,
)
from lmjax.interop.layout import Family, norm
from lmjax.interop.settings import Settings

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


def _read(s: Settings) -> dict[str, Any]:
    s.only("attention_bias", False)
    s.only("use_bidirectional_attention", None, False)
    # The first files say "gelu", and meant the other one, as transformers knows.
    s.only("hidden_act", "gelu", "gelu_pytorch_tanh")
    s.only("hidden_activation", None, "gelu_pytorch_tanh")
    return {
        **read_shared(s),
        "norm": "rmsnorm1p",
        "activation": "gelu_tanh",
        "scale_embeddings": True,
    }


def _read_gemma(s: Settings, names: Collection[str]) -> dict[str, Any]:
    return _read(s)


def _read_gemma2(s: Settings, names: Collection[str]) -> dict[str, Any]:
    num_layers = s.integer("num_hidden_layers")
    types = ["sliding_attention", "full_attention"] * num_layers
    size = s.number("query_pre_attn_scalar")
    if size <= 0:
        raise s.error("query_pre_attn_scalar", "must be > 0")
    fields = _read(s)
    return {
        **fields,
        **read_windows(s, types[:num_layers]),
        "norm_place": "both",
        "attention_scale": 0.0 if size == fields["head_dim"] else size**-0.5,
        "attention_softcap": s.number("attn_logit_softcapping", 0.0),
        "logit_softcap": s.number("final_logit_softcapping", 0.0),
    }


def _write_gemma(c: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        **write_shared(c),
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
    }


def _write_gemma2(c: DecoderConfig) -> dict[str, Any]:
    size = c.attention_scale**-2 if c.attention_scale else c.head_dim
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        **write_shared(c),
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(size),
        "attn_logit_softcapping": c.attention_softcap or None,
        "final_logit_softcapping": c.logit_softcap or None,
        "sliding_window": c.window or None,
        "layer_types": [
            "sliding_attention"
            if c.window and not (c.global_every and i % c.global_every == 0)
            else "full_attention"
            for i in range(1, c.num_layers + 1)
        ],
    }


_OURS, _THEIRS = "decoder.blocks", "model.layers.{layer}"
_GEMMA_TABLE = table(*NORMS)
_GEMMA2_TABLE = table(
    *norm(f"{_OURS}.attention_norm", f"{_THEIRS}.input_layernorm"),
    *norm(f"{_OURS}.attention_post_norm", f"{_THEIRS}.post_attention_layernorm"),
    *norm(f"{_OURS}.mlp_norm", f"{_THEIRS}.pre_feedforward_layernorm"),
    *norm(f"{_OURS}.mlp_post_norm", f"{_THEIRS}.post_feedforward_layernorm"),
)

GEMMA = Family(
    model_type="gemma",
    architectures=("GemmaForCausalLM", "GemmaModel"),
    defaults=_GEMMA,
    config_from_hf=_read_gemma,
    config_to_hf=_write_gemma,
    table=lambda config: _GEMMA_TABLE,
)
GEMMA2 = Family(
    model_type="gemma2",
    architectures=("Gemma2ForCausalLM", "Gemma2Model"),
    defaults=_GEMMA2,
    config_from_hf=_read_gemma2,
    config_to_hf=_write_gemma2,
    table=lambda config: _GEMMA2_TABLE,
)
