"""GPT-2 (Radford et al. 2019)."""

from collections.abc import Collection
from typing import Any

from lmjax.config.model import DecoderConfig
from lmjax.interop.layout import Family, Row, Table, norm
from lmjax.interop.settings import ACTIVATIONS, THEIR_ACTIVATIONS, Settings

_DEFAULTS = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def _read(s: Settings, names: Collection[str]) -> dict[str, Any]:
    s.only("scale_attn_weights", True)
    s.only("scale_attn_by_inverse_layer_idx", False)
    s.only("add_cross_attention", False)
    dim = s.integer("n_embd")
    return {
        "vocab_size": s.integer("vocab_size"),
        "dim": dim,
        "num_layers": s.integer("n_layer"),
        "num_heads": s.integer("n_head"),
        "mlp_dim": s.integer("n_inner", 4 * dim),
        "max_length": s.integer("n_positions"),
        "position": "learned",
        "norm": "layernorm",
        "norm_epsilon": s.number("layer_norm_epsilon"),
        "activation": s.choose("activation_function", ACTIVATIONS),
        "gated": False,
        "use_bias": True,
        "tie_embeddings": s.flag("tie_word_embeddings"),
        "dropout": s.number("resid_pdrop"),
        "attention_dropout": s.number("attn_pdrop"),
    }


def _write(c: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": c.vocab_size,
        "n_embd": c.dim,
        "n_layer": c.num_layers,
        "n_head": c.num_heads,
        "n_inner": c.mlp_dim,
        "n_positions": c.max_length,
        "layer_norm_epsilon": c.norm_epsilon,
        "activation_function": THEIR_ACTIVATIONS[c.activation],
        "tie_word_embeddings": c.tie_embeddings,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": c.attention_dropout,
    }


def _conv1d(ours: str, theirs: str, *, num_inputs: int = 1) -> tuple[Row, Row]:
    return (
        Row(f"{ours}.kernel", f"{theirs}.weight", "conv1d", num_inputs),
        Row(f"{ours}.bias", f"{theirs}.bias", "flat"),
    )


def _fused(theirs: str, *ours: str) -> tuple[Row, ...]:
    kernels = (
        Row(f"{name}.kernel", f"{theirs}.weight", "conv1d", 1, i, len(ours))
        for i, name in enumerate(ours)
    )
    biases = (
        Row(f"{name}.bias", f"{theirs}.bias", "flat", 1, i, len(ours))
        for i, name in enumerate(ours)
    )
    return (*kernels, *biases)


_OURS, _THEIRS = "decoder.blocks", "transformer.h.{layer}"
_TABLE = Table(
    rows=(
        Row("embed.embedding", "transformer.wte.weight"),
        Row("decoder.positions.embedding", "transformer.wpe.weight"),
        *norm(f"{_OURS}.attention_norm", f"{_THEIRS}.ln_1"),
        *_fused(
            f"{_THEIRS}.attn.c_attn",
            f"{_OURS}.attention.query",
            f"{_OURS}.attention.key",
            f"{_OURS}.attention.value",
        ),
        *_conv1d(f"{_OURS}.attention.out", f"{_THEIRS}.attn.c_proj", num_inputs=2),
        *norm(f"{_OURS}.mlp_norm", f"{_THEIRS}.ln_2"),
        *_conv1d(f"{_OURS}.mlp.up", f"{_THEIRS}.mlp.c_fc"),
        *_conv1d(f"{_OURS}.mlp.down", f"{_THEIRS}.mlp.c_proj"),
        *norm("decoder.norm", "transformer.ln_f"),
        Row("head.embedding", "lm_head.weight"),
    ),
    prefix="transformer.",
    ignorable=(r"\.attn\.(bias|masked_bias)$",),  # the causal mask
    copies={"lm_head.weight": "transformer.wte.weight"},
)

GPT2 = Family(
    model_type="gpt2",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    defaults=_DEFAULTS,
    config_from_hf=_read,
    config_to_hf=_write,
    table=lambda config: _TABLE,
)
