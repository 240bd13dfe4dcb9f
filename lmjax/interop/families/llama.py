"""Llama (Touvron et al. 2023) and its like: Mistral, Qwen 2 and 3, SmolLM2."""

from collections.abc import Collection
from typing import Any

from lmjax.config.model import DecoderConfig
from lmjax.interop.families.rope import read_rope, write_rope
from lmjax.interop.layout import Family, Row, Table, linear, norm
from lmjax.interop.settings import ACTIVATIONS, THEIR_ACTIVATIONS, Settings

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


def read_shared(s: Settings) -> dict[str, Any]:
    """Return the fields that have the same keys in all such models."""
    dim, num_heads = s.integer("hidden_size"), s.integer("num_attention_heads")
    return {
        "vocab_size": s.integer("vocab_size"),
        "dim": dim,
        "num_layers": s.integer("num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": s.integer("num_key_value_heads", num_heads),
        "head_dim": s.integer("head_dim", dim // max(num_heads, 1)),
        "mlp_dim": s.integer("intermediate_size"),
        "max_length": s.integer("max_position_embeddings"),
        **read_rope(s),
        "norm": "rmsnorm",
        "norm_epsilon": s.number("rms_norm_eps"),
        "gated": True,
        "tie_embeddings": s.flag("tie_word_embeddings"),
        "attention_dropout": s.number("attention_dropout", 0.0),
    }


def read_windows(s: Settings, types: list[str]) -> dict[str, Any]:
    """Return the fields that say which layers see how far.

    Args:
      s: the settings, whose `layer_types` come before `types`.
      types: "sliding_attention" or "full_attention", for each layer.

    Raises:
      ConfigError: layers that see all, but are not every n-th.
    """
    types = s.get("layer_types") or types
    known = {"sliding_attention", "full_attention"}
    if len(types) != s.integer("num_hidden_layers") or not set(types) <= known:
        raise s.error("layer_types", f"must be one of {sorted(known)} for each layer")
    full = [i for i, kind in enumerate(types, start=1) if kind == "full_attention"]
    if len(full) == len(types) or s.get("sliding_window") is None:
        return {}
    window = {"window": s.integer("sliding_window")}
    if not full:
        return window
    if full != list(range(full[0], len(types) + 1, full[0])):
        raise s.error("layer_types", "every n-th layer alone may be full_attention")
    return {**window, "global_every": full[0]}


def write_shared(c: DecoderConfig) -> dict[str, Any]:
    """Return the settings that have the same keys in all such models."""
    return {
        "vocab_size": c.vocab_size,
        "hidden_size": c.dim,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.mlp_dim,
        "max_position_embeddings": c.max_length,
        **write_rope(c),
        "rms_norm_eps": c.norm_epsilon,
        "tie_word_embeddings": c.tie_embeddings,
        "attention_dropout": c.attention_dropout,
    }


def _read_llama(s: Settings, names: Collection[str]) -> dict[str, Any]:
    s.only("mlp_bias", s.flag("attention_bias"))  # ours are all or none
    return {
        **read_shared(s),
        "activation": s.choose("hidden_act", ACTIVATIONS),
        "use_bias": s.flag("attention_bias"),
    }


def _read_mistral(s: Settings, names: Collection[str]) -> dict[str, Any]:
    return {
        **read_shared(s),
        "activation": s.choose("hidden_act", ACTIVATIONS),
        **read_windows(s, ["sliding_attention"] * s.integer("num_hidden_layers")),
    }


def _read_qwen(s: Settings) -> dict[str, Any]:
    fields = {**read_shared(s), "activation": s.choose("hidden_act", ACTIVATIONS)}
    if not s.flag("use_sliding_window"):
        return fields
    first, num_layers = s.integer("max_window_layers"), s.integer("num_hidden_layers")
    types = [
        "sliding_attention" if i >= first else "full_attention"
        for i in range(num_layers)
    ]
    return {**fields, **read_windows(s, types)}


def _read_qwen2(s: Settings, names: Collection[str]) -> dict[str, Any]:
    return {**_read_qwen(s), "qkv_bias": True}


def _read_qwen3(s: Settings, names: Collection[str]) -> dict[str, Any]:
    s.only("attention_bias", False)
    return {**_read_qwen(s), "qk_norm": True}


def _write_llama(c: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **write_shared(c),
        "hidden_act": THEIR_ACTIVATIONS[c.activation],
        "attention_bias": c.use_bias,
        "mlp_bias": c.use_bias,
    }


def _write_mistral(c: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        **write_shared(c),
        "hidden_act": THEIR_ACTIVATIONS[c.activation],
        "sliding_window": c.window or None,
    }


def _write_qwen(c: DecoderConfig) -> dict[str, Any]:
    types = [
        "sliding_attention"
        if c.window and not (c.global_every and i % c.global_every == 0)
        else "full_attention"
        for i in range(1, c.num_layers + 1)
    ]
    return {
        **write_shared(c),
        "hidden_act": THEIR_ACTIVATIONS[c.activation],
        "use_sliding_window": c.window > 0,
        "sliding_window": c.window or None,
        "max_window_layers": 0,
        "layer_types": types,
    }


def _write_qwen2(c: DecoderConfig) -> dict[str, Any]:
    names = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    return {**names, **_write_qwen(c)}


def _write_qwen3(c: DecoderConfig) -> dict[str, Any]:
    names = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    return {**names, **_write_qwen(c)}


_OURS, _THEIRS = "decoder.blocks", "model.layers.{layer}"
ATTENTION_AND_MLP = (
    *linear(f"{_OURS}.attention.query", f"{_THEIRS}.self_attn.q_proj"),
    *linear(f"{_OURS}.attention.key", f"{_THEIRS}.self_attn.k_proj"),
    *linear(f"{_OURS}.attention.value", f"{_THEIRS}.self_attn.v_proj"),
    *linear(f"{_OURS}.attention.out", f"{_THEIRS}.self_attn.o_proj", num_inputs=2),
    Row(f"{_OURS}.attention.query_norm.scale", f"{_THEIRS}.self_attn.q_norm.weight"),
    Row(f"{_OURS}.attention.key_norm.scale", f"{_THEIRS}.self_attn.k_norm.weight"),
    *linear(f"{_OURS}.mlp.gate", f"{_THEIRS}.mlp.gate_proj"),
    *linear(f"{_OURS}.mlp.up", f"{_THEIRS}.mlp.up_proj"),
    *linear(f"{_OURS}.mlp.down", f"{_THEIRS}.mlp.down_proj"),
)
ENDS = (
    Row("embed.embedding", "model.embed_tokens.weight"),
    *norm("decoder.norm", "model.norm"),
    Row("head.embedding", "lm_head.weight"),
)


def table(*norms: Row) -> Table:
    """Return the table of such a model, which differ in the norms of their blocks."""
    return Table(
        rows=(*ENDS, *norms, *ATTENTION_AND_MLP),
        prefix="model.",
        ignorable=(r"rotary_emb\.inv_freq$",),
        copies={"lm_head.weight": "model.embed_tokens.weight"},
    )


NORMS = (
    *norm(f"{_OURS}.attention_norm", f"{_THEIRS}.input_layernorm"),
    *norm(f"{_OURS}.mlp_norm", f"{_THEIRS}.post_attention_layernorm"),
)
_TABLE = table(*NORMS)

LLAMA = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LlamaModel"),
    defaults=_LLAMA,
    config_from_hf=_read_llama,
    config_to_hf=_write_llama,
    table=lambda config: _TABLE,
)
MISTRAL = Family(
    model_type="mistral",
    architectures=("MistralForCausalLM", "MistralModel"),
    defaults=_MISTRAL,
    config_from_hf=_read_mistral,
    config_to_hf=_write_mistral,
    table=lambda config: _TABLE,
)
QWEN2 = Family(
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM", "Qwen2Model"),
    defaults=_QWEN2,
    config_from_hf=_read_qwen2,
    config_to_hf=_write_qwen2,
    table=lambda config: _TABLE,
)
QWEN3 = Family(
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM", "Qwen3Model"),
    defaults=_QWEN3,
    config_from_hf=_read_qwen3,
    config_to_hf=_write_qwen3,
    table=lambda config: _TABLE,
)
