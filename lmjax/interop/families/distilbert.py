"""DistilBERT (Sanh et al. 2019)."""

from collections.abc import Collection
from typing import Any

from lmjax.config.model import EncoderConfig
from lmjax.interop.families.bert import (
    head_table,
    read_heads,
    unused_fields,
    write_label_head,
)
from lmjax.interop.family import Family
from lmjax.interop.hf_config import ACTIVATIONS, HF_ACTIVATIONS, HFConfig
from lmjax.interop.table import Entry, Table, linear, norm

_DEFAULTS = {
    "vocab_size": 30522,
    "dim": 768,
    "n_layers": 6,
    "n_heads": 12,
    "hidden_dim": 3072,
    "activation": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
# transformers has other names for some keys, which older files use.
_NAMES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
}
_EPSILON = 1e-12


def _read(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    own = {_NAMES.get(key, key): value for key, value in hf.values.items()}
    hf = HFConfig(own | dict(hf.values), hf.defaults, file=hf.file)
    heads = read_heads(hf, tensors, dense="vocab_transform.weight")
    return {
        "kind": "encoder",
        "vocab_size": hf.get_int("vocab_size"),
        "dim": hf.get_int("dim"),
        "num_layers": hf.get_int("n_layers"),
        "num_heads": hf.get_int("n_heads"),
        "mlp_dim": hf.get_int("hidden_dim"),
        "max_length": hf.get_int("max_position_embeddings"),
        "position": "learned",  # sinusoids are in the files as well
        "norm": "layernorm",
        "norm_epsilon": _EPSILON,
        "norm_place": "post",
        "embedding_norm": True,
        "activation": hf.look_up("activation", ACTIVATIONS),
        "gated": False,
        "use_bias": True,
        "dropout": hf.get_float("dropout"),
        "attention_dropout": hf.get_float("attention_dropout"),
        **heads,
        "pooler_activation": "relu",
    }


def _write(config: EncoderConfig) -> dict[str, Any]:
    name = "DistilBertForMaskedLM" if config.mlm_head else "DistilBertModel"
    values = {
        "architectures": [name],
        "model_type": "distilbert",
        "vocab_size": config.vocab_size,
        "dim": config.dim,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "hidden_dim": config.mlp_dim,
        "max_position_embeddings": config.max_length,
        "activation": HF_ACTIVATIONS[config.activation],
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }
    if not config.num_labels:
        return values
    return values | write_label_head("DistilBert", config)


def _table(config: EncoderConfig) -> Table:
    blocks, embeddings = "encoder.blocks", "distilbert.embeddings"
    layer = "distilbert.transformer.layer.{layer}"
    entries = (
        Entry("embed.embedding", f"{embeddings}.word_embeddings.weight"),
        Entry(
            "encoder.positions.embedding", f"{embeddings}.position_embeddings.weight"
        ),
        *norm("encoder.embedding_norm", f"{embeddings}.LayerNorm"),
        *linear(f"{blocks}.attention.query", f"{layer}.attention.q_lin"),
        *linear(f"{blocks}.attention.key", f"{layer}.attention.k_lin"),
        *linear(f"{blocks}.attention.value", f"{layer}.attention.v_lin"),
        *linear(f"{blocks}.attention.out", f"{layer}.attention.out_lin", num_inputs=2),
        *norm(f"{blocks}.attention_norm", f"{layer}.sa_layer_norm"),
        *linear(f"{blocks}.mlp.up", f"{layer}.ffn.lin1"),
        *linear(f"{blocks}.mlp.down", f"{layer}.ffn.lin2"),
        *norm(f"{blocks}.mlp_norm", f"{layer}.output_layer_norm"),
        *linear("head.dense", "vocab_transform"),
        *norm("head.norm", "vocab_layer_norm"),
        *linear("pooler", "pre_classifier"),
        *linear("classifier", "classifier"),
    )
    return head_table(
        config,
        entries,
        prefix="distilbert.",
        embedding=f"{embeddings}.word_embeddings.weight",
        bias="vocab_projector.bias",
        decoder="vocab_projector",
    )


DISTILBERT = Family(
    model_type="distilbert",
    architectures=(
        "DistilBertModel",
        "DistilBertForMaskedLM",
        "DistilBertForSequenceClassification",
        "DistilBertForTokenClassification",
        "DistilBertForQuestionAnswering",
    ),
    defaults=_DEFAULTS,
    config_from_hf=_read,
    config_to_hf=_write,
    table=_table,
    kind="encoder",
    unused_fields=unused_fields,
    base_architecture="DistilBertModel",
)
