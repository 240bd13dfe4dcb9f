"""T5 (Raffel et al. 2020) as first published and as version 1.1, and mT5 (Xue 2021)."""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

from lmjax.config.model import EncoderConfig, EncoderDecoderConfig
from lmjax.interop.families.bert import unused_fields
from lmjax.interop.family import Family
from lmjax.interop.hf_config import HFConfig
from lmjax.interop.table import HEADS, Entry, Table, linear, norm

AnyT5 = EncoderConfig | EncoderDecoderConfig

_DEFAULTS = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "pad_token_id": 0,
    "n_positions": 512,  # in the files; relative positions have no limit
    "tie_word_embeddings": True,
}
_MT5 = {
    **_DEFAULTS,
    "vocab_size": 250112,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
}
# feed_forward_proj: (gated, activation). "gated-gelu" is the tanh form.
_FEED_FORWARD = {
    "relu": (False, "relu"),
    "gelu": (False, "gelu"),
    "gelu_new": (False, "gelu_tanh"),
    "silu": (False, "silu"),
    "gated-relu": (True, "relu"),
    "gated-silu": (True, "silu"),
    "gated-gelu": (True, "gelu_tanh"),
}


def _read_encoder(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    """Return the fields of the encoder alone, whose hidden states are the output."""
    gated, activation = hf.look_up("feed_forward_proj", _FEED_FORWARD)
    return {
        "kind": "encoder",
        "mlm_head": False,
        "vocab_size": hf.get_int("vocab_size"),
        "dim": hf.get_int("d_model"),
        "num_layers": hf.get_int("num_layers"),
        "num_heads": hf.get_int("num_heads"),
        "head_dim": hf.get_int("d_kv"),
        "mlp_dim": hf.get_int("d_ff"),
        "max_length": hf.get_int("n_positions"),
        "position": "relative",
        "relative_buckets": hf.get_int("relative_attention_num_buckets"),
        "relative_max_distance": hf.get_int("relative_attention_max_distance"),
        "norm": "rmsnorm",
        "norm_epsilon": hf.get_float("layer_norm_epsilon"),
        "activation": activation,
        "gated": gated,
        "attention_scale": 1.0,
        "dropout": hf.get_float("dropout_rate"),
        "attention_dropout": hf.get_float("dropout_rate"),
    }


def _read_both(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    num_layers = hf.get_int("num_layers")
    fields = _read_encoder(hf, tensors) | {
        "kind": "encoder_decoder",
        "num_layers": hf.get_int("num_decoder_layers", num_layers),
        "num_encoder_layers": num_layers,
        "start_id": hf.get_int("decoder_start_token_id", hf.get_int("pad_token_id")),
    }
    fields.pop("mlm_head")
    return fields


def _read(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    return _read_both(hf, tensors) | _read_head(hf, tensors)


def _read_mt5(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    # Never scaled; tied only where the files have no other matrix.
    tied = "lm_head.weight" not in tensors and hf.architecture != "MT5Model"
    return _read_both(hf, tensors) | {"tie_embeddings": tied, "scale_logits": False}


def _read_head(hf: HFConfig, tensors: Collection[str]) -> dict[str, bool]:
    """Return whether the head is tied, and whether its inputs are scaled.

    Version 1.0 ties and scales, 1.1 does neither. transformers 4 has one key for both,
    `tie_word_embeddings`. In transformers 5 that is always true, and
    `scale_decoder_outputs` tells the versions apart.
    """
    tied = hf.get_bool("tie_word_embeddings")
    if hf.get("scale_decoder_outputs") is False:
        is_base = hf.architecture == "T5Model"  # its head is left out, not tied
        return {
            "tie_embeddings": "lm_head.weight" not in tensors and not is_base,
            "scale_logits": False,
        }
    return {"tie_embeddings": tied, "scale_logits": tied}


def _write_encoder(config: AnyT5, *, prefix: str = "T5") -> dict[str, Any]:
    feed_forward = {value: key for key, value in _FEED_FORWARD.items()}
    return {
        "architectures": [f"{prefix}EncoderModel"],
        "model_type": prefix.lower(),
        "vocab_size": config.vocab_size,
        "d_model": config.dim,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "n_positions": config.max_length,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_max_distance,
        "layer_norm_epsilon": config.norm_epsilon,
        # If T5 has no such layer, `choose_family` sees that "relu" is not the model's.
        "feed_forward_proj": feed_forward.get(
            (config.gated, config.activation), "relu"
        ),
        "tie_word_embeddings": config.tie_embeddings,
        "dropout_rate": config.dropout,
    }


def _write(config: EncoderDecoderConfig, *, prefix: str = "T5") -> dict[str, Any]:
    return _write_encoder(config, prefix=prefix) | {
        "architectures": [f"{prefix}ForConditionalGeneration"],
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_layers,
        "scale_decoder_outputs": config.scale_logits,
        "decoder_start_token_id": config.start_id,
        "is_encoder_decoder": True,
    }


def _attention(param: str, layer: str, name: str) -> tuple[Entry, ...]:
    return (
        *linear(f"{param}.query", f"{layer}.{name}.q"),
        *linear(f"{param}.key", f"{layer}.{name}.k"),
        *linear(f"{param}.value", f"{layer}.{name}.v"),
        *linear(f"{param}.out", f"{layer}.{name}.o", num_inputs=2),
        *norm(f"{param}_norm", f"{layer}.layer_norm"),
    )


def _stack(stack: str, *, gated: bool) -> tuple[Entry, ...]:
    """Return the entries of the encoder or the decoder."""
    blocks, layer = f"{stack}.blocks", f"{stack}.block." + "{layer}.layer"
    mlp = f"{layer}.{2 if stack == 'decoder' else 1}"
    inputs: tuple[Entry, ...] = (
        *linear(f"{blocks}.mlp.gate", f"{mlp}.DenseReluDense.wi_0"),
        *linear(f"{blocks}.mlp.up", f"{mlp}.DenseReluDense.wi_1"),
    )
    if not gated:
        inputs = linear(f"{blocks}.mlp.up", f"{mlp}.DenseReluDense.wi")
    return (
        Entry(
            f"{stack}.relative_bias.embedding",
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ),
        *_attention(f"{blocks}.attention", f"{layer}.0", "SelfAttention"),
        *_attention(f"{blocks}.cross_attention", f"{layer}.1", "EncDecAttention"),
        *inputs,
        *linear(f"{blocks}.mlp.down", f"{mlp}.DenseReluDense.wo"),
        *norm(f"{blocks}.mlp_norm", f"{mlp}.layer_norm"),
        *norm(f"{stack}.norm", f"{stack}.final_layer_norm"),
    )


def _table(config: AnyT5) -> Table:
    decoder = _stack("decoder", gated=config.gated)
    return Table(
        entries=(
            Entry("embed.embedding", "shared.weight"),
            *_stack("encoder", gated=config.gated),
            *(decoder if config.is_encoder_decoder else ()),
            Entry("head.embedding", "lm_head.weight"),
        ),
        # In the first files, but unused: cross-attention has no positions.
        ignored=(r"EncDecAttention\.relative_attention_bias\.weight$",),
        # The encoder alone may be among the files of the whole.
        heads=HEADS if config.is_encoder_decoder else (*HEADS, r"^decoder\."),
        copies=dict.fromkeys(
            (
                "encoder.embed_tokens.weight",
                "decoder.embed_tokens.weight",
                "lm_head.weight",
            ),
            "shared.weight",
        ),
    )


T5 = Family(
    model_type="t5",
    architectures=("T5ForConditionalGeneration", "T5WithLMHeadModel", "T5Model"),
    base_architecture="T5Model",
    defaults=_DEFAULTS,
    config_from_hf=_read,
    config_to_hf=_write,
    table=_table,
    kind="encoder_decoder",
)
MT5 = Family(
    model_type="mt5",
    architectures=("MT5ForConditionalGeneration", "MT5Model", *T5.architectures),
    base_architecture="MT5Model",
    defaults=_MT5,
    config_from_hf=_read_mt5,
    config_to_hf=functools.partial(_write, prefix="MT5"),
    table=_table,
    kind="encoder_decoder",
)
T5_ENCODER = Family(
    model_type="t5",
    architectures=("T5EncoderModel",),
    base_architecture="T5EncoderModel",
    defaults=_DEFAULTS,
    config_from_hf=_read_encoder,
    config_to_hf=_write_encoder,
    table=_table,
    kind="encoder",
    unused_fields=unused_fields,
)
MT5_ENCODER = dataclasses.replace(
    T5_ENCODER,
    model_type="mt5",
    architectures=("MT5EncoderModel", "T5EncoderModel"),
    base_architecture="MT5EncoderModel",
    defaults=_MT5,
    config_to_hf=functools.partial(_write_encoder, prefix="MT5"),
)
