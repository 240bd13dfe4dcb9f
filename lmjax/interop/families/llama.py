"""Llama (Touvron et al. 2023) and variants: Mistral, Qwen 2 and 3, SmolLM2."""

from collections.abc import Collection
from typing import Any

from lmjax.config.model import DecoderConfig
from lmjax.interop.families.rope import read_rope, write_rope
from lmjax.interop.family import Family
from lmjax.interop.hf_config import ACTIVATIONS, HF_ACTIVATIONS, HFConfig
from lmjax.interop.table import Entry, Table, linear, norm

_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
}
_MISTRAL = {
    **_LLAMA,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
    "sliding_window": 4096,
}
_QWEN2 = {
    **_LLAMA,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_QWEN3 = {**_QWEN2, "head_dim": 128}


def read_shared(hf: HFConfig, *, rotated_fraction: str = "") -> dict[str, Any]:
    """Return the fields whose keys all variants of Llama have.

    Args:
      hf: the config.json.
      rotated_fraction: the key of the rotated fraction of each head, if there is one.
    """
    dim, num_heads = hf.get_int("hidden_size"), hf.get_int("num_attention_heads")
    return {
        "vocab_size": hf.get_int("vocab_size"),
        "dim": dim,
        "num_layers": hf.get_int("num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": hf.get_int("num_key_value_heads", num_heads),
        "head_dim": hf.get_int("head_dim", dim // max(num_heads, 1)),
        "mlp_dim": hf.get_int("intermediate_size"),
        "max_length": hf.get_int("max_position_embeddings"),
        **read_rope(hf, fraction_key=rotated_fraction),
        "norm": "rmsnorm",
        "norm_epsilon": hf.get_float("rms_norm_eps"),
        "gated": True,
        "attention_dropout": hf.get_float("attention_dropout", 0.0),
        "tie_embeddings": hf.get_bool("tie_word_embeddings"),
    }


def read_windows(hf: HFConfig, types: list[str]) -> dict[str, Any]:
    """Return the fields of sliding-window attention.

    Args:
      hf: the config.json.
      types: "sliding_attention" or "full_attention" for each layer, if it has no
        `layer_types`.

    Raises:
      UserError: a layer has another kind of attention.
    """
    types = hf.get("layer_types") or types
    known = {"sliding_attention", "full_attention"}
    if len(types) != hf.get_int("num_hidden_layers") or not set(types) <= known:
        raise hf.error("layer_types", f"expected one of {sorted(known)} for each layer")
    full = [i for i, name in enumerate(types) if name == "full_attention"]
    if len(full) == len(types) or hf.get("sliding_window") is None:
        return {}
    window = hf.get_int("sliding_window")
    if not window:
        raise hf.error("sliding_window", "expected > 0")
    every = full[0] + 1 if full else 0
    if not full or full == list(range(full[0], len(types), every)):
        return {"window": window, "global_every": every}
    return {"window": window, "global_layers": full}


def write_layer_types(config: DecoderConfig) -> list[str]:
    """Return the `layer_types` of a config.json."""
    return [
        "full_attention" if is_global else "sliding_attention"
        for is_global in config.global_flags(config.num_layers)
    ]


def write_shared(config: DecoderConfig) -> dict[str, Any]:
    """Return the keys that all variants of Llama have."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_length,
        **write_rope(config),
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": config.attention_dropout,
    }


def _read_llama(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    return {
        **read_shared(hf),
        "activation": hf.look_up("hidden_act", ACTIVATIONS),
        "attention_bias": hf.get_bool("attention_bias"),
        "mlp_bias": hf.get_bool("mlp_bias"),
    }


def _read_mistral(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    return {
        **read_shared(hf),
        "activation": hf.look_up("hidden_act", ACTIVATIONS),
        **read_windows(hf, ["sliding_attention"] * hf.get_int("num_hidden_layers")),
    }


def _read_qwen(hf: HFConfig) -> dict[str, Any]:
    fields = read_shared(hf)
    fields["activation"] = hf.look_up("hidden_act", ACTIVATIONS)
    if not hf.get_bool("use_sliding_window"):
        return fields
    first, num_layers = hf.get_int("max_window_layers"), hf.get_int("num_hidden_layers")
    types = [
        "sliding_attention" if i >= first else "full_attention"
        for i in range(num_layers)
    ]
    return {**fields, **read_windows(hf, types)}


def _read_qwen2(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    return {**_read_qwen(hf), "qkv_bias": True}


def _read_qwen3(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    return {
        **_read_qwen(hf),
        "attention_bias": hf.get_bool("attention_bias"),
        "qk_norm": True,
    }


def _write_llama(config: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **write_shared(config),
        "hidden_act": HF_ACTIVATIONS[config.activation],
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }


def _write_mistral(config: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        **write_shared(config),
        "hidden_act": HF_ACTIVATIONS[config.activation],
        "sliding_window": config.window or None,
    }


def _write_qwen(config: DecoderConfig) -> dict[str, Any]:
    # Older versions of transformers read this in place of `layer_types`.
    types = write_layer_types(config)
    first = [*types, "sliding_attention"].index("sliding_attention")
    return {
        **write_shared(config),
        "hidden_act": HF_ACTIVATIONS[config.activation],
        "use_sliding_window": config.window > 0,
        "sliding_window": config.window or None,
        "max_window_layers": first,
        "layer_types": types,
    }


def _write_qwen2(config: DecoderConfig) -> dict[str, Any]:
    names = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    return {**names, **_write_qwen(config)}


def _write_qwen3(config: DecoderConfig) -> dict[str, Any]:
    names = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    return {
        **names,
        **_write_qwen(config),
        "attention_bias": config.attention_bias,
    }


_BLOCKS, _LAYER = "decoder.blocks", "model.layers.{layer}"
_INPUTS = (
    *linear(f"{_BLOCKS}.attention.query", f"{_LAYER}.self_attn.q_proj"),
    *linear(f"{_BLOCKS}.attention.key", f"{_LAYER}.self_attn.k_proj"),
    *linear(f"{_BLOCKS}.attention.value", f"{_LAYER}.self_attn.v_proj"),
    *linear(f"{_BLOCKS}.mlp.gate", f"{_LAYER}.mlp.gate_proj"),
    *linear(f"{_BLOCKS}.mlp.up", f"{_LAYER}.mlp.up_proj"),
)
_OUTPUTS = (
    *linear(f"{_BLOCKS}.attention.out", f"{_LAYER}.self_attn.o_proj", num_inputs=2),
    Entry(f"{_BLOCKS}.attention.query_norm.scale", f"{_LAYER}.self_attn.q_norm.weight"),
    Entry(f"{_BLOCKS}.attention.key_norm.scale", f"{_LAYER}.self_attn.k_norm.weight"),
    *linear(f"{_BLOCKS}.mlp.down", f"{_LAYER}.mlp.down_proj"),
)
_EMBEDDING_AND_HEAD = (
    Entry("embed.embedding", "model.embed_tokens.weight"),
    *norm("decoder.norm", "model.norm"),
    Entry("head.embedding", "lm_head.weight"),
)


def build_table(*norms: Entry, inputs: tuple[Entry, ...] = _INPUTS) -> Table:
    """Return the table of a variant of Llama.

    Args:
      norms: of its blocks.
      inputs: the projections from hidden states, in attention and the MLP.
    """
    return Table(
        entries=(*_EMBEDDING_AND_HEAD, *norms, *inputs, *_OUTPUTS),
        prefix="model.",
        ignored=(r"rotary_emb\.inv_freq$",),
        copies={"lm_head.weight": "model.embed_tokens.weight"},
    )


NORMS = (
    *norm(f"{_BLOCKS}.attention_norm", f"{_LAYER}.input_layernorm"),
    *norm(f"{_BLOCKS}.mlp_norm", f"{_LAYER}.post_attention_layernorm"),
)
_TABLE = build_table(*NORMS)

LLAMA = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LlamaModel"),
    base_architecture="LlamaModel",
    defaults=_LLAMA,
    config_from_hf=_read_llama,
    config_to_hf=_write_llama,
    table=lambda config: _TABLE,
)
MISTRAL = Family(
    model_type="mistral",
    architectures=("MistralForCausalLM", "MistralModel"),
    base_architecture="MistralModel",
    defaults=_MISTRAL,
    config_from_hf=_read_mistral,
    config_to_hf=_write_mistral,
    table=lambda config: _TABLE,
)
QWEN2 = Family(
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM", "Qwen2Model"),
    base_architecture="Qwen2Model",
    defaults=_QWEN2,
    config_from_hf=_read_qwen2,
    config_to_hf=_write_qwen2,
    table=lambda config: _TABLE,
)
QWEN3 = Family(
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM", "Qwen3Model"),
    base_architecture="Qwen3Model",
    defaults=_QWEN3,
    config_from_hf=_read_qwen3,
    config_to_hf=_write_qwen3,
    table=lambda config: _TABLE,
)
