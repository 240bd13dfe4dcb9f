"""ModernBERT (Warner et al. 2024)."""

import dataclasses
from collections.abc import Collection
from typing import Any

from lmjax.config.model import EncoderConfig
from lmjax.interop import labels
from lmjax.interop.families.bert import head_table, read_heads, unused_fields
from lmjax.interop.family import Family
from lmjax.interop.hf_config import ACTIVATIONS, HF_ACTIVATIONS, HFConfig
from lmjax.interop.table import HEADS, Entry, Table, linear, norm

_DEFAULTS = {
    "vocab_size": 50368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "decoder_bias": True,
    "classifier_bias": False,
    "classifier_activation": "gelu",
    "classifier_pooling": "cls",
    "local_attention": 128,
    "tie_word_embeddings": True,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_POOLING = {"cls": "first", "mean": "mean"}


def _read(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    for key in ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"):
        hf.require(key, False)
    hf.require("classifier_activation", hf.get("hidden_activation"))
    heads = read_heads(hf, tensors, dense="head.dense.weight")
    return {
        "kind": "encoder",
        "vocab_size": hf.get_int("vocab_size"),
        "dim": hf.get_int("hidden_size"),
        "num_layers": hf.get_int("num_hidden_layers"),
        "num_heads": hf.get_int("num_attention_heads"),
        "mlp_dim": hf.get_int("intermediate_size"),
        "max_length": hf.get_int("max_position_embeddings"),
        "position": "rope",
        "norm": "layernorm",
        "norm_epsilon": hf.get_float("norm_eps"),
        "norm_place": "pre",
        "first_norm": False,
        "embedding_norm": True,
        "activation": hf.look_up("hidden_activation", ACTIVATIONS),
        "gated": True,
        "use_bias": False,
        "dropout": hf.get_float("mlp_dropout"),
        "attention_dropout": hf.get_float("attention_dropout"),
        **heads,
        "head_bias": heads["mlm_head"] and hf.get_bool("decoder_bias"),
        "head_layer_bias": False,
        "pooler": False,
        "label_layer": heads["num_labels"] > 0,
        "summary": hf.look_up("classifier_pooling", _POOLING),
        **_read_layers(hf),
    }


def _read_layers(hf: HFConfig) -> dict[str, Any]:
    """Return which layers have a window, and the rotary positions of both kinds."""
    num_layers = hf.get_int("num_hidden_layers")
    types = hf.get("layer_types")
    if types is None:
        every = hf.get_int("global_attn_every_n_layers")
        if not every:
            raise hf.error("global_attn_every_n_layers", "expected 1 or more")
        types = [_SLIDING if i % every else _FULL for i in range(num_layers)]
    if not isinstance(types, list) or len(types) != num_layers:
        raise hf.error("layer_types", f"expected {num_layers} names")
    if {*map(str, types)} - {_FULL, _SLIDING}:
        raise hf.error("layer_types", f"allowed: {_FULL}, {_SLIDING}")
    has_window = _SLIDING in types
    theta = _read_theta(hf, _FULL, "global_rope_theta")
    fields: dict[str, Any] = {"rope_theta": theta}
    if not has_window:
        return fields
    local = _read_theta(hf, _SLIDING, "local_rope_theta")
    return {
        "rope_theta": theta,
        "rope_local_theta": 0.0 if local == theta else local,
        # Half of them on either side, and the token itself.
        "window": hf.get_int("local_attention") // 2 + 1,
        "global_layers": [i for i, kind in enumerate(types) if kind == _FULL],
    }


def _read_theta(hf: HFConfig, kind: str, older: str) -> float:
    """Return the base of the rotary positions of the layers of a kind."""
    both = hf.get("rope_parameters")
    if both is None:
        hf.require("rope_scaling", None)
        return hf.get_float(older, hf.get_float("global_rope_theta"))
    values = both.get(kind) if isinstance(both, dict) else None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise hf.error("rope_parameters", f"expected an object for {kind}")
    defaults = {"rope_theta": _DEFAULTS[older]}
    own = HFConfig(values, defaults, file=f"{hf.file}: rope_parameters: {kind}")
    own.require("rope_type", None, "default")
    return own.get_float("rope_theta")


def _write(config: EncoderConfig) -> dict[str, Any]:
    pooling = {ours: theirs for theirs, ours in _POOLING.items()}
    window = config.window
    flags = config.global_flags(config.num_layers)
    suffix = "ForMaskedLM" if config.mlm_head else "Model"
    if config.num_labels:
        suffix = labels.HEADS["tag"].class_suffix
    values: dict[str, Any] = {
        "architectures": [f"ModernBert{suffix}"],
        "model_type": "modernbert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_length,
        "norm_eps": config.norm_epsilon,
        "hidden_activation": HF_ACTIVATIONS[config.activation],
        "classifier_activation": HF_ACTIVATIONS[config.activation],
        "classifier_pooling": pooling.get(config.summary, "cls"),
        "mlp_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "decoder_bias": config.head_bias or not config.mlm_head,
        "tie_word_embeddings": config.tie_embeddings,
        "layer_types": [_FULL if is_global else _SLIDING for is_global in flags],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta}
            for kind, theta in (
                (_FULL, config.rope_theta),
                (_SLIDING, config.rope_local_theta or config.rope_theta),
            )
        },
    }
    if window:
        values["local_attention"] = 2 * (window - 1)
    if config.num_labels:
        values |= labels.write_labels(labels.default_labels(config.num_labels))
    return values


def _table(config: EncoderConfig) -> Table:
    blocks, layer = "encoder.blocks", "model.layers.{layer}"
    attention, wqkv = f"{blocks}.attention", f"{layer}.attn.Wqkv.weight"
    fused = [
        Entry(f"{attention}.{name}.kernel", wqkv, "linear", 1, i, 3)
        for i, name in enumerate(("query", "key", "value"))
    ]
    dense = "classifier.layer" if config.num_labels else "head"
    entries = (
        Entry("embed.embedding", "model.embeddings.tok_embeddings.weight"),
        *norm("encoder.embedding_norm", "model.embeddings.norm"),
        # The first layer has none: its row of the parameter has no effect.
        Entry(
            f"{blocks}.attention_norm.scale",
            f"{layer}.attn_norm.weight",
            first_layer=1,
        ),
        *fused,
        *linear(f"{attention}.out", f"{layer}.attn.Wo", num_inputs=2),
        *norm(f"{blocks}.mlp_norm", f"{layer}.mlp_norm"),
        Entry(f"{blocks}.mlp.gate.kernel", f"{layer}.mlp.Wi.weight", "linear", 1, 0, 2),
        Entry(f"{blocks}.mlp.up.kernel", f"{layer}.mlp.Wi.weight", "linear", 1, 1, 2),
        *linear(f"{blocks}.mlp.down", f"{layer}.mlp.Wo"),
        *norm("encoder.norm", "model.final_norm"),
        *linear(f"{dense}.dense", "head.dense"),
        *norm(f"{dense}.norm", "head.norm"),
        *linear("classifier", "classifier"),
    )
    table = head_table(
        config,
        entries,
        prefix="model.",
        embedding="model.embeddings.tok_embeddings.weight",
        bias="decoder.bias",
        decoder="decoder",
    )
    return dataclasses.replace(
        table, heads=(*HEADS, r"^(head|decoder)\."), answer_head="classifier"
    )


MODERNBERT = Family(
    model_type="modernbert",
    architectures=(
        "ModernBertModel",
        "ModernBertForMaskedLM",
        "ModernBertForSequenceClassification",
        "ModernBertForTokenClassification",
        "ModernBertForQuestionAnswering",
    ),
    defaults=_DEFAULTS,
    config_from_hf=_read,
    config_to_hf=_write,
    table=_table,
    kind="encoder",
    unused_fields=unused_fields,
    base_architecture="ModernBertModel",
)
