"""GPT-2 (Radford et al. 2019)."""

from collections.abc import Collection
from typing import Any

from lmjax.config.model import DecoderConfig
from lmjax.interop.family import Family
from lmjax.interop.hf_config import ACTIVATIONS, HF_ACTIVATIONS, HFConfig
from lmjax.interop.table import Entry, Table, norm

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


def _read(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    hf.require("scale_attn_weights", True)
    hf.require("scale_attn_by_inverse_layer_idx", False)
    hf.require("add_cross_attention", False)
    dim = hf.get_int("n_embd")
    return {
        "vocab_size": hf.get_int("vocab_size"),
        "dim": dim,
        "num_layers": hf.get_int("n_layer"),
        "num_heads": hf.get_int("n_head"),
        "mlp_dim": hf.get_int("n_inner", 4 * dim),
        "max_length": hf.get_int("n_positions"),
        "position": "learned",
        "norm": "layernorm",
        "norm_epsilon": hf.get_float("layer_norm_epsilon"),
        "activation": hf.look_up("activation_function", ACTIVATIONS),
        "gated": False,
        "use_bias": True,
        "tie_embeddings": hf.get_bool("tie_word_embeddings"),
        "dropout": hf.get_float("resid_pdrop"),
        "attention_dropout": hf.get_float("attn_pdrop"),
    }


def _write(config: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.dim,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.mlp_dim,
        "n_positions": config.max_length,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": HF_ACTIVATIONS[config.activation],
        "tie_word_embeddings": config.tie_embeddings,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
    }


def _conv1d(param: str, tensor: str, *, num_inputs: int = 1) -> tuple[Entry, Entry]:
    """Return the entries of one `Conv1D`."""
    return (
        Entry(f"{param}.kernel", f"{tensor}.weight", "conv1d", num_inputs),
        Entry(f"{param}.bias", f"{tensor}.bias", "flat"),
    )


def _fused_conv1d(tensor: str, *params: str) -> tuple[Entry, ...]:
    """Return the entries of several layers that are one `Conv1D` in the files."""
    kernels = (
        Entry(f"{param}.kernel", f"{tensor}.weight", "conv1d", 1, i, len(params))
        for i, param in enumerate(params)
    )
    biases = (
        Entry(f"{param}.bias", f"{tensor}.bias", "flat", 1, i, len(params))
        for i, param in enumerate(params)
    )
    return (*kernels, *biases)


_BLOCKS, _LAYER = "decoder.blocks", "transformer.h.{layer}"
_TABLE = Table(
    entries=(
        Entry("embed.embedding", "transformer.wte.weight"),
        Entry("decoder.positions.embedding", "transformer.wpe.weight"),
        *norm(f"{_BLOCKS}.attention_norm", f"{_LAYER}.ln_1"),
        *_fused_conv1d(
            f"{_LAYER}.attn.c_attn",
            f"{_BLOCKS}.attention.query",
            f"{_BLOCKS}.attention.key",
            f"{_BLOCKS}.attention.value",
        ),
        *_conv1d(f"{_BLOCKS}.attention.out", f"{_LAYER}.attn.c_proj", num_inputs=2),
        *norm(f"{_BLOCKS}.mlp_norm", f"{_LAYER}.ln_2"),
        *_conv1d(f"{_BLOCKS}.mlp.up", f"{_LAYER}.mlp.c_fc"),
        *_conv1d(f"{_BLOCKS}.mlp.down", f"{_LAYER}.mlp.c_proj"),
        *norm("decoder.norm", "transformer.ln_f"),
        Entry("head.embedding", "lm_head.weight"),
    ),
    prefix="transformer.",
    ignored=(r"\.attn\.(bias|masked_bias)$",),  # the causal mask
    copies={"lm_head.weight": "transformer.wte.weight"},
    tag_head="classifier",
)

GPT2 = Family(
    model_type="gpt2",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    base_architecture="GPT2Model",
    defaults=_DEFAULTS,
    config_from_hf=_read,
    config_to_hf=_write,
    table=lambda config: _TABLE,
)
