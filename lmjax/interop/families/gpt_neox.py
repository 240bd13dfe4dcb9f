"""GPT-NeoX (Black et al. 2022) and Pythia (Biderman et al. 2023)."""

from collections.abc import Collection
from typing import Any

from lmjax.config.model import DecoderConfig
from lmjax.interop.families.rope import read_rope, write_rope
from lmjax.interop.family import Family
from lmjax.interop.hf_config import ACTIVATIONS, HF_ACTIVATIONS, HFConfig
from lmjax.interop.table import Entry, Table, linear, norm

_DEFAULTS = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "intermediate_size": 24576,
    "hidden_act": "gelu",
    "rotary_pct": 0.25,
    "rotary_emb_base": 10_000,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "attention_bias": True,
}


def _read(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    return {
        "vocab_size": hf.get_int("vocab_size"),
        "dim": hf.get_int("hidden_size"),
        "num_layers": hf.get_int("num_hidden_layers"),
        "num_heads": hf.get_int("num_attention_heads"),
        "mlp_dim": hf.get_int("intermediate_size"),
        "max_length": hf.get_int("max_position_embeddings"),
        **read_rope(hf, theta_key="rotary_emb_base", fraction_key="rotary_pct"),
        "norm": "layernorm",
        "norm_epsilon": hf.get_float("layer_norm_eps"),
        "parallel_residual": hf.get_bool("use_parallel_residual"),
        "activation": hf.look_up("hidden_act", ACTIVATIONS),
        "gated": False,
        "use_bias": True,
        "attention_bias": hf.get_bool("attention_bias"),
        "dropout": hf.get_float("hidden_dropout"),
        "attention_dropout": hf.get_float("attention_dropout"),
        "tie_embeddings": hf.get_bool("tie_word_embeddings"),
    }


def _write(config: DecoderConfig) -> dict[str, Any]:
    rope = write_rope(config)
    theta = rope.pop("rope_theta")
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_length,
        "rotary_pct": config.rope_fraction,
        "rotary_emb_base": theta,
        **rope,
        "layer_norm_eps": config.norm_epsilon,
        "use_parallel_residual": config.parallel_residual,
        "hidden_act": HF_ACTIVATIONS[config.activation],
        "attention_bias": config.attention_bias,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


_BLOCKS, _LAYER = "decoder.blocks", "gpt_neox.layers.{layer}"
_ENTRIES = (
    Entry("embed.embedding", "gpt_neox.embed_in.weight"),
    *norm(f"{_BLOCKS}.attention_norm", f"{_LAYER}.input_layernorm"),
    *norm(f"{_BLOCKS}.mlp_norm", f"{_LAYER}.post_attention_layernorm"),
    *linear(f"{_BLOCKS}.attention.out", f"{_LAYER}.attention.dense", num_inputs=2),
    *linear(f"{_BLOCKS}.mlp.up", f"{_LAYER}.mlp.dense_h_to_4h"),
    *linear(f"{_BLOCKS}.mlp.down", f"{_LAYER}.mlp.dense_4h_to_h"),
    *norm("decoder.norm", "gpt_neox.final_layer_norm"),
    Entry("head.embedding", "embed_out.weight"),
)


def _fused(part: int, name: str, num_heads: int) -> tuple[Entry, Entry]:
    """Return the entries of queries, keys or values: of one tensor, head by head."""
    param, tensor = f"{_BLOCKS}.attention.{name}", f"{_LAYER}.attention.query_key_value"
    where = (1, part, 3, 1, num_heads)
    return (
        Entry(f"{param}.kernel", f"{tensor}.weight", "linear", *where),
        Entry(f"{param}.bias", f"{tensor}.bias", "flat", *where),
    )


def _table(config: DecoderConfig) -> Table:
    fused = (
        entry
        for part, name in enumerate(("query", "key", "value"))
        for entry in _fused(part, name, config.num_heads)
    )
    # The output layer has two names in transformers.
    output, other = "embed_out.weight", "lm_head.weight"
    tied = dict.fromkeys((output, other), "gpt_neox.embed_in.weight")
    return Table(
        entries=(*_ENTRIES, *fused),
        prefix="gpt_neox.",
        tag_head="classifier",
        ignored=(r"\.attention\.(bias|masked_bias)$", r"rotary_emb\.inv_freq$"),
        copies=tied if config.tie_embeddings else {},
        names={} if config.tie_embeddings else {other: output},
    )


GPT_NEOX = Family(
    model_type="gpt_neox",
    architectures=("GPTNeoXForCausalLM", "GPTNeoXModel"),
    defaults=_DEFAULTS,
    config_from_hf=_read,
    config_to_hf=_write,
    table=_table,
    base_architecture="GPTNeoXModel",
)
