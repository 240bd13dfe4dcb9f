"""T5 (Raffel et al. 2020), as first published and as version 1.1."""

from collections.abc import Collection
from typing import Any

from lmjax.config.model import EncoderDecoderConfig, ModelConfig
from lmjax.interop.layout import Family, Row, Table, linear, norm
from lmjax.interop.settings import Settings

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
    "n_positions": 512,  # in the files, though nothing is limited by it
    "tie_word_embeddings": True,
}
# feed_forward_proj: (gated, activation). "gated-gelu" has always meant the tanh form.
_FEED_FORWARD = {
    "relu": (False, "relu"),
    "gelu": (False, "gelu"),
    "gelu_new": (False, "gelu_tanh"),
    "silu": (False, "silu"),
    "gated-relu": (True, "relu"),
    "gated-silu": (True, "silu"),
    "gated-gelu": (True, "gelu_tanh"),
}


def _read(s: Settings, names: Collection[str]) -> dict[str, Any]:
    gated, activation = s.choose("feed_forward_proj", _FEED_FORWARD)
    num_layers = s.integer("num_layers")
    return {
        "kind": "encoder_decoder",
        "vocab_size": s.integer("vocab_size"),
        "dim": s.integer("d_model"),
        "num_layers": s.integer("num_decoder_layers", num_layers),
        "num_encoder_layers": num_layers,
        "num_heads": s.integer("num_heads"),
        "head_dim": s.integer("d_kv"),
        "mlp_dim": s.integer("d_ff"),
        "max_length": s.integer("n_positions"),
        "position": "relative",
        "relative_buckets": s.integer("relative_attention_num_buckets"),
        "relative_max_distance": s.integer("relative_attention_max_distance"),
        "norm": "rmsnorm",
        "norm_epsilon": s.number("layer_norm_epsilon"),
        "activation": activation,
        "gated": gated,
        "attention_scale": 1.0,
        "start_id": s.integer("decoder_start_token_id", s.integer("pad_token_id")),
        **_read_head(s, names),
        "dropout": s.number("dropout_rate"),
        "attention_dropout": s.number("dropout_rate"),
    }


def _read_head(s: Settings, names: Collection[str]) -> dict[str, bool]:
    """Return whether the head is tied, and whether what it sees is scaled.

    Version 1.0 ties and scales, 1.1 does neither. transformers 5 says so in
    `scale_decoder_outputs`, and `tie_word_embeddings` is then always true.
    """
    tied = s.flag("tie_word_embeddings")
    if s.get("scale_decoder_outputs") is False:
        return {"tie_embeddings": "lm_head.weight" not in names, "scale_logits": False}
    return {"tie_embeddings": tied, "scale_logits": tied}


def _write(c: EncoderDecoderConfig) -> dict[str, Any]:
    feed_forward = {value: key for key, value in _FEED_FORWARD.items()}
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": c.vocab_size,
        "d_model": c.dim,
        "num_layers": c.num_encoder_layers,
        "num_decoder_layers": c.num_layers,
        "num_heads": c.num_heads,
        "d_kv": c.head_dim,
        "d_ff": c.mlp_dim,
        "n_positions": c.max_length,
        "relative_attention_num_buckets": c.relative_buckets,
        "relative_attention_max_distance": c.relative_max_distance,
        "layer_norm_epsilon": c.norm_epsilon,
        # One that T5 has no word for is found out when this is read back.
        "feed_forward_proj": feed_forward.get((c.gated, c.activation), "relu"),
        # transformers 4 scales what it ties; 5 says so apart.
        "tie_word_embeddings": c.tie_embeddings,
        "scale_decoder_outputs": c.scale_logits,
        "decoder_start_token_id": c.start_id,
        "is_encoder_decoder": True,
        "dropout_rate": c.dropout,
    }


def _attention(ours: str, theirs: str, name: str) -> tuple[Row, ...]:
    return (
        *linear(f"{ours}.query", f"{theirs}.{name}.q"),
        *linear(f"{ours}.key", f"{theirs}.{name}.k"),
        *linear(f"{ours}.value", f"{theirs}.{name}.v"),
        *linear(f"{ours}.out", f"{theirs}.{name}.o", num_inputs=2),
        *norm(f"{ours}_norm", f"{theirs}.layer_norm"),
    )


def _trunk(trunk: str, *, gated: bool) -> tuple[Row, ...]:
    ours, theirs = f"{trunk}.blocks", f"{trunk}.block." + "{layer}.layer"
    mlp = f"{theirs}.{2 if trunk == 'decoder' else 1}"
    inputs: tuple[Row, ...] = (
        *linear(f"{ours}.mlp.gate", f"{mlp}.DenseReluDense.wi_0"),
        *linear(f"{ours}.mlp.up", f"{mlp}.DenseReluDense.wi_1"),
    )
    if not gated:
        inputs = linear(f"{ours}.mlp.up", f"{mlp}.DenseReluDense.wi")
    return (
        Row(
            f"{trunk}.relative_bias.embedding",
            f"{trunk}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ),
        *_attention(f"{ours}.attention", f"{theirs}.0", "SelfAttention"),
        *_attention(f"{ours}.cross_attention", f"{theirs}.1", "EncDecAttention"),
        *inputs,
        *linear(f"{ours}.mlp.down", f"{mlp}.DenseReluDense.wo"),
        *norm(f"{ours}.mlp_norm", f"{mlp}.layer_norm"),
        *norm(f"{trunk}.norm", f"{trunk}.final_layer_norm"),
    )


def _table(config: ModelConfig) -> Table:
    assert isinstance(config, EncoderDecoderConfig), config.kind
    return Table(
        rows=(
            Row("embed.embedding", "shared.weight"),
            *_trunk("encoder", gated=config.gated),
            *_trunk("decoder", gated=config.gated),
            Row("head.embedding", "lm_head.weight"),
        ),
        # In the first files, though cross-attention never had positions.
        ignorable=(r"EncDecAttention\.relative_attention_bias\.weight$",),
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
    architectures=("T5ForConditionalGeneration", "T5WithLMHeadModel"),
    defaults=_DEFAULTS,
    config_from_hf=_read,
    config_to_hf=_write,
    table=_table,
    kind="encoder_decoder",
)
