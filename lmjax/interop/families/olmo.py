"""OLMo 2 (OLMo Team 2024): Llama with norms on outputs, and on queries and keys."""

from collections.abc import Collection
from typing import Any

from lmjax.config.model import DecoderConfig
from lmjax.interop.families.llama import (
    build_table,
    read_shared,
    write_shared,
)
from lmjax.interop.family import Family
from lmjax.interop.hf_config import ACTIVATIONS, HF_ACTIVATIONS, HFConfig
from lmjax.interop.table import norm

_DEFAULTS = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rms_norm_eps": 1e-5,
}


def _read(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    return {
        **read_shared(hf),
        "activation": hf.look_up("hidden_act", ACTIVATIONS),
        "attention_bias": hf.get_bool("attention_bias"),
        "norm_place": "output",
        "qk_norm": True,
        "qk_norm_over": "all",
    }


def _write(config: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        **write_shared(config),
        "hidden_act": HF_ACTIVATIONS[config.activation],
        "attention_bias": config.attention_bias,
    }


_BLOCKS, _LAYER = "decoder.blocks", "model.layers.{layer}"
_TABLE = build_table(
    *norm(f"{_BLOCKS}.attention_post_norm", f"{_LAYER}.post_attention_layernorm"),
    *norm(f"{_BLOCKS}.mlp_post_norm", f"{_LAYER}.post_feedforward_layernorm"),
)

OLMO2 = Family(
    model_type="olmo2",
    architectures=("Olmo2ForCausalLM", "Olmo2Model"),
    defaults=_DEFAULTS,
    config_from_hf=_read,
    config_to_hf=_write,
    table=lambda config: _TABLE,
    base_architecture="Olmo2Model",
    has_tagger=False,
)
