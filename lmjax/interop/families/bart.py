"""BART, mBART, Marian and Pegasus.

Lewis et al. 2020, Liu et al. 2020, Junczys-Dowmunt et al. 2018, Zhang et al. 2020.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

from lmjax.config.model import EncoderDecoderConfig
from lmjax.interop.family import Family, has_tensor
from lmjax.interop.hf_config import ACTIVATIONS, HF_ACTIVATIONS, HFConfig
from lmjax.interop.table import Entry, Table, linear, norm
from lmjax.nn.position import sinusoids

_BART = {
    "vocab_size": 50265,
    "max_position_embeddings": 1024,
    "encoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_layers": 12,
    "decoder_ffn_dim": 4096,
    "decoder_attention_heads": 16,
    "activation_function": "gelu",
    "d_model": 1024,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "scale_embedding": False,
    "decoder_start_token_id": 2,
    "tie_word_embeddings": True,
}
_MARIAN = {
    **_BART,
    "vocab_size": 58101,
    "decoder_start_token_id": 58100,
    "share_encoder_decoder_embeddings": True,
}
_MBART = {
    **_BART,
    "eos_token_id": 2,
    "decoder_start_token_id": None,
}
_PEGASUS = {**_BART, "decoder_start_token_id": 0}
_OFFSET = 2  # unused positions, before the first one


def _read(
    hf: HFConfig, tensors: Collection[str], *, norm_place: str = "post"
) -> dict[str, Any]:
    hf.require("is_decoder", None, False)
    for key in ("normalize_before", "add_final_layer_norm"):
        hf.require(key, None, norm_place == "pre")
    return {
        "kind": "encoder_decoder",
        "vocab_size": hf.get_int("vocab_size"),
        "dim": hf.get_int("d_model"),
        "num_layers": hf.get_int("decoder_layers"),
        "num_encoder_layers": hf.get_int("encoder_layers"),
        "num_heads": hf.get_equal_int(
            "encoder_attention_heads", "decoder_attention_heads"
        ),
        "mlp_dim": hf.get_equal_int("encoder_ffn_dim", "decoder_ffn_dim"),
        "max_length": hf.get_int("max_position_embeddings"),
        "norm": "layernorm",
        "norm_epsilon": 1e-5,
        "norm_place": norm_place,
        "scale_embeddings": hf.get_bool("scale_embedding"),
        "activation": hf.look_up("activation_function", ACTIVATIONS),
        "gated": False,
        "use_bias": True,
        "tie_embeddings": hf.get_bool("tie_word_embeddings"),
        "head_bias": has_tensor(tensors, "final_logits_bias"),
        "start_id": hf.get_int("decoder_start_token_id", 0),
        "dropout": hf.get_float("dropout"),
        "attention_dropout": hf.get_float("attention_dropout"),
    }


def _read_bart(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    hf.require("normalize_embedding", None, True)
    hf.require("static_position_embeddings", None, False)
    # Targets were trained with </s> <s> before the first word.
    opening = hf.get_int("forced_bos_token_id", hf.get_int("bos_token_id"))
    return _read(hf, tensors) | {
        "position": "learned",
        "position_offset": _OFFSET,
        "embedding_norm": True,
        "opening": (opening,),
    }


def _read_marian(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    hf.require("normalize_embedding", None, False)
    hf.require("static_position_embeddings", None, True)
    hf.require("share_encoder_decoder_embeddings", True)
    hf.require("decoder_vocab_size", None, hf.get_int("vocab_size"))
    return _read(hf, tensors) | {"position": "sinusoidal"}


def _read_mbart(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    hf.require("normalize_embedding", None, True)
    hf.require("static_position_embeddings", None, False)
    # Targets begin with the id of their language, which is given for each text.
    forced = hf.get("forced_bos_token_id")
    start = hf.get_int("decoder_start_token_id", hf.get_int("eos_token_id"))
    return _read(hf, tensors, norm_place="pre") | {
        "position": "learned",
        "position_offset": _OFFSET,
        "embedding_norm": True,
        "start_id": start,
        "opening": () if forced is None else (hf.get_int("forced_bos_token_id"),),
    }


def _read_pegasus(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    hf.require("normalize_embedding", None, False)
    hf.require("static_position_embeddings", None, True)
    return _read(hf, tensors, norm_place="pre") | {"position": "sinusoidal"}


def _write(config: EncoderDecoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.dim,
        "decoder_layers": config.num_layers,
        "encoder_layers": config.num_encoder_layers,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.mlp_dim,
        "decoder_ffn_dim": config.mlp_dim,
        "max_position_embeddings": config.max_length,
        "scale_embedding": config.scale_embeddings,
        "activation_function": HF_ACTIVATIONS[config.activation],
        "tie_word_embeddings": config.tie_embeddings,
        "decoder_start_token_id": config.start_id,
        "is_encoder_decoder": True,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
    }


def _write_bart(config: EncoderDecoderConfig) -> dict[str, Any]:
    forced = {"forced_bos_token_id": config.opening[0]} if config.opening else {}
    return {
        "architectures": ["BartForConditionalGeneration"],
        "model_type": "bart",
        **_write(config),
        **forced,
    }


def _write_marian(config: EncoderDecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        **_write(config),
        # transformers starts the decoder with padding; the default id is too large.
        "pad_token_id": config.start_id,
        "decoder_vocab_size": config.vocab_size,
        "share_encoder_decoder_embeddings": True,
    }


def _write_mbart(config: EncoderDecoderConfig) -> dict[str, Any]:
    names = {"architectures": ["MBartForConditionalGeneration"], "model_type": "mbart"}
    return _write_bart(config) | names


def _write_pegasus(config: EncoderDecoderConfig) -> dict[str, Any]:
    name = "PegasusForConditionalGeneration"
    return _write(config) | {"architectures": [name], "model_type": "pegasus"}


def _attention(param: str, tensor: str) -> tuple[Entry, ...]:
    return (
        *linear(f"{param}.query", f"{tensor}.q_proj"),
        *linear(f"{param}.key", f"{tensor}.k_proj"),
        *linear(f"{param}.value", f"{tensor}.v_proj"),
        *linear(f"{param}.out", f"{tensor}.out_proj", num_inputs=2),
        *norm(f"{param}_norm", f"{tensor}_layer_norm"),
    )


def _stack(stack: str) -> tuple[Entry, ...]:
    """Return the entries of the encoder or the decoder."""
    blocks, layer = f"{stack}.blocks", f"model.{stack}.layers." + "{layer}"
    return (
        Entry(f"{stack}.positions.embedding", f"model.{stack}.embed_positions.weight"),
        *norm(f"{stack}.embedding_norm", f"model.{stack}.layernorm_embedding"),
        *_attention(f"{blocks}.attention", f"{layer}.self_attn"),
        *_attention(f"{blocks}.cross_attention", f"{layer}.encoder_attn"),
        *linear(f"{blocks}.mlp.up", f"{layer}.fc1"),
        *linear(f"{blocks}.mlp.down", f"{layer}.fc2"),
        *norm(f"{blocks}.mlp_norm", f"{layer}.final_layer_norm"),
        *norm(f"{stack}.norm", f"model.{stack}.layer_norm"),
    )


def _table(*ignored: str) -> Table:
    shared = "model.shared.weight"
    return Table(
        entries=(
            Entry("embed.embedding", shared),
            *_stack("encoder"),
            *_stack("decoder"),
            Entry("head.bias", "final_logits_bias", "unsqueezed"),
            Entry("head.embedding", "lm_head.weight"),
        ),
        prefix="model.",
        ignored=ignored,
        copies=dict.fromkeys(
            (
                "model.encoder.embed_tokens.weight",
                "model.decoder.embed_tokens.weight",
                "lm_head.weight",
            ),
            shared,
        ),
    )


def _pegasus_table(config: EncoderDecoderConfig) -> Table:
    table = sinusoids(config.max_length, config.dim)
    names = ("model.encoder.embed_positions", "model.decoder.embed_positions")
    constants = {f"{name}.weight": table for name in names}
    return dataclasses.replace(_SINUSOIDS_TABLE, constants=constants)


_BART_TABLE = _table()
_SINUSOIDS_TABLE = _table(r"(en|de)coder\.embed_positions\.weight$")

BART = Family(
    model_type="bart",
    architectures=("BartForConditionalGeneration", "BartModel"),
    base_architecture="BartModel",
    defaults={**_BART, "bos_token_id": 0},
    config_from_hf=_read_bart,
    config_to_hf=_write_bart,
    table=lambda config: _BART_TABLE,
    kind="encoder_decoder",
)
MARIAN = Family(
    model_type="marian",
    architectures=("MarianMTModel", "MarianModel"),
    base_architecture="MarianModel",
    defaults=_MARIAN,
    config_from_hf=_read_marian,
    config_to_hf=_write_marian,
    table=lambda config: _SINUSOIDS_TABLE,
    kind="encoder_decoder",
)
MBART = Family(
    model_type="mbart",
    architectures=("MBartForConditionalGeneration", "MBartModel"),
    base_architecture="MBartModel",
    defaults=_MBART,
    config_from_hf=_read_mbart,
    config_to_hf=_write_mbart,
    table=lambda config: _BART_TABLE,
    kind="encoder_decoder",
)
PEGASUS = Family(
    model_type="pegasus",
    architectures=("PegasusForConditionalGeneration", "PegasusModel"),
    base_architecture="PegasusModel",
    defaults=_PEGASUS,
    config_from_hf=_read_pegasus,
    config_to_hf=_write_pegasus,
    table=_pegasus_table,
    kind="encoder_decoder",
)
