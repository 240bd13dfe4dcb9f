"""BART (Lewis et al. 2020) and Marian (Junczys-Dowmunt et al. 2018)."""

from collections.abc import Collection
from typing import Any

from lmjax.config.model import EncoderDecoderConfig
from lmjax.interop.layout import Family, Row, Table, has, linear, norm
from lmjax.interop.settings import ACTIVATIONS, THEIR_ACTIVATIONS, Settings

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
_OFFSET = 2  # rows of BART's table of positions that none has


def _read(s: Settings, names: Collection[str]) -> dict[str, Any]:
    for key in ("normalize_before", "add_final_layer_norm", "is_decoder"):
        s.only(key, None, False)
    return {
        "kind": "encoder_decoder",
        "vocab_size": s.integer("vocab_size"),
        "dim": s.integer("d_model"),
        "num_layers": s.integer("decoder_layers"),
        "num_encoder_layers": s.integer("encoder_layers"),
        "num_heads": s.same("encoder_attention_heads", "decoder_attention_heads"),
        "mlp_dim": s.same("encoder_ffn_dim", "decoder_ffn_dim"),
        "max_length": s.integer("max_position_embeddings"),
        "norm": "layernorm",
        "norm_epsilon": 1e-5,
        "norm_place": "post",
        "scale_embeddings": s.flag("scale_embedding"),
        "activation": s.choose("activation_function", ACTIVATIONS),
        "gated": False,
        "use_bias": True,
        "tie_embeddings": s.flag("tie_word_embeddings"),
        "head_bias": has(names, "final_logits_bias"),
        "start_id": s.integer("decoder_start_token_id"),
        "dropout": s.number("dropout"),
        "attention_dropout": s.number("attention_dropout"),
    }


def _read_bart(s: Settings, names: Collection[str]) -> dict[str, Any]:
    s.only("normalize_embedding", None, True)
    s.only("static_position_embeddings", None, False)
    place = {"position": "learned", "position_offset": _OFFSET}
    # Its decoder has always read </s> <s> before the first word of a target.
    opening = s.integer("forced_bos_token_id", s.integer("bos_token_id"))
    more = {"embedding_norm": True, "opening": (opening,)}
    return _read(s, names) | place | more


def _read_marian(s: Settings, names: Collection[str]) -> dict[str, Any]:
    s.only("normalize_embedding", None, False)
    s.only("static_position_embeddings", None, True)
    s.only("share_encoder_decoder_embeddings", True)
    s.only("decoder_vocab_size", None, s.integer("vocab_size"))
    return _read(s, names) | {"position": "sinusoidal"}


def _write(c: EncoderDecoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": c.vocab_size,
        "d_model": c.dim,
        "decoder_layers": c.num_layers,
        "encoder_layers": c.num_encoder_layers,
        "encoder_attention_heads": c.num_heads,
        "decoder_attention_heads": c.num_heads,
        "encoder_ffn_dim": c.mlp_dim,
        "decoder_ffn_dim": c.mlp_dim,
        "max_position_embeddings": c.max_length,
        "scale_embedding": c.scale_embeddings,
        "activation_function": THEIR_ACTIVATIONS[c.activation],
        "tie_word_embeddings": c.tie_embeddings,
        "decoder_start_token_id": c.start_id,
        "is_encoder_decoder": True,
        "dropout": c.dropout,
        "attention_dropout": c.attention_dropout,
    }


def _write_bart(c: EncoderDecoderConfig) -> dict[str, Any]:
    names = {
        "architectures": ["BartForConditionalGeneration"],
        "model_type": "bart",
    }
    forced = {"forced_bos_token_id": c.opening[0]} if c.opening else {}
    return {**names, **_write(c), **forced}


def _write_marian(c: EncoderDecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        **_write(c),
        # Marian's decoder begins with padding; an id beyond the table is an error.
        "pad_token_id": c.start_id,
        "decoder_vocab_size": c.vocab_size,
        "share_encoder_decoder_embeddings": True,
    }


def _attention(ours: str, theirs: str) -> tuple[Row, ...]:
    return (
        *linear(f"{ours}.query", f"{theirs}.q_proj"),
        *linear(f"{ours}.key", f"{theirs}.k_proj"),
        *linear(f"{ours}.value", f"{theirs}.v_proj"),
        *linear(f"{ours}.out", f"{theirs}.out_proj", num_inputs=2),
        *norm(f"{ours}_norm", f"{theirs}_layer_norm"),
    )


def _trunk(trunk: str) -> tuple[Row, ...]:
    ours, theirs = f"{trunk}.blocks", f"model.{trunk}.layers." + "{layer}"
    return (
        Row(f"{trunk}.positions.embedding", f"model.{trunk}.embed_positions.weight"),
        *norm(f"{trunk}.embedding_norm", f"model.{trunk}.layernorm_embedding"),
        *_attention(f"{ours}.attention", f"{theirs}.self_attn"),
        *_attention(f"{ours}.cross_attention", f"{theirs}.encoder_attn"),
        *linear(f"{ours}.mlp.up", f"{theirs}.fc1"),
        *linear(f"{ours}.mlp.down", f"{theirs}.fc2"),
        *norm(f"{ours}.mlp_norm", f"{theirs}.final_layer_norm"),
    )


def _table(*ignorable: str) -> Table:
    shared = "model.shared.weight"
    return Table(
        rows=(
            Row("embed.embedding", shared),
            *_trunk("encoder"),
            *_trunk("decoder"),
            Row("head.bias", "final_logits_bias", "row"),
            Row("head.embedding", "lm_head.weight"),
        ),
        prefix="model.",
        ignorable=ignorable,
        copies=dict.fromkeys(
            (
                "model.encoder.embed_tokens.weight",
                "model.decoder.embed_tokens.weight",
                "lm_head.weight",
            ),
            shared,
        ),
    )


_BART_TABLE = _table()
_MARIAN_TABLE = _table(r"(en|de)coder\.embed_positions\.weight$")  # sinusoids

BART = Family(
    model_type="bart",
    architectures=("BartForConditionalGeneration", "BartModel"),
    defaults={**_BART, "bos_token_id": 0},
    config_from_hf=_read_bart,
    config_to_hf=_write_bart,
    table=lambda config: _BART_TABLE,
    kind="encoder_decoder",
)
MARIAN = Family(
    model_type="marian",
    architectures=("MarianMTModel", "MarianModel"),
    defaults=_MARIAN,
    config_from_hf=_read_marian,
    config_to_hf=_write_marian,
    table=lambda config: _MARIAN_TABLE,
    kind="encoder_decoder",
)
