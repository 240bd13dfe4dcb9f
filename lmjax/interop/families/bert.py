"""BERT (Devlin et al. 2019) and RoBERTa (Liu et al. 2019)."""

from collections.abc import Collection, Mapping
from typing import Any

from lmjax.config.model import EncoderConfig, ModelConfig
from lmjax.interop import labels
from lmjax.interop.layout import Family, Row, Table, has, linear, norm
from lmjax.interop.settings import ACTIVATIONS, THEIR_ACTIVATIONS, Settings

_BERT = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
}
_ROBERTA = {**_BERT, "vocab_size": 50265, "pad_token_id": 1}


def _read(s: Settings) -> dict[str, Any]:
    s.only("is_decoder", False)
    s.only("add_cross_attention", False)
    s.only("position_embedding_type", "absolute")
    if s.integer("type_vocab_size") < 1:
        raise s.error("type_vocab_size", "must be >= 1")
    return {
        "kind": "encoder",
        "vocab_size": s.integer("vocab_size"),
        "dim": s.integer("hidden_size"),
        "num_layers": s.integer("num_hidden_layers"),
        "num_heads": s.integer("num_attention_heads"),
        "mlp_dim": s.integer("intermediate_size"),
        "max_length": s.integer("max_position_embeddings"),
        "num_token_types": s.integer("type_vocab_size"),
        "position": "learned",
        "norm": "layernorm",
        "norm_epsilon": s.number("layer_norm_eps"),
        "norm_place": "post",
        "embedding_norm": True,
        "activation": s.choose("hidden_act", ACTIVATIONS),
        "gated": False,
        "use_bias": True,
        "dropout": s.number("hidden_dropout_prob"),
        "attention_dropout": s.number("attention_probs_dropout_prob"),
    }


def _labelled(s: Settings, names: Collection[str]) -> dict[str, Any]:
    """Return the task of the head for labels, if the files hold one.

    It is of texts if there is a pooler, else of tokens.
    """
    if has(names, "qa_outputs.weight"):
        return {"kind": "span_qa"}
    if not has(names, "classifier.weight"):
        return {}
    s.only("problem_type", None, "single_label_classification")
    kind = "classify" if has(names, "pooler.dense.weight") else "tag"
    return {"kind": kind, "labels": labels.read(s)}


def _num_labels(task: Mapping[str, Any]) -> int:
    return 2 if task.get("kind") == "span_qa" else len(task.get("labels", ()))


def _named(prefix: str, c: EncoderConfig) -> dict[str, Any]:
    """Return the class of a model with a head for labels, and what it calls them."""
    ending = labels.ENDINGS["classify" if c.pooler else "tag"]
    labelled = labels.numbered(labels.placeholders(c.num_labels))
    return {"architectures": [prefix + ending], **labelled}


def _heads(
    s: Settings, names: Collection[str], *, dense: str, pair: str
) -> dict[str, bool]:
    """Return which heads the files hold; `architectures` may not tell of all."""
    mlm_head = has(names, dense)
    return {
        "mlm_head": mlm_head,
        "head_bias": mlm_head,
        "tie_embeddings": s.flag("tie_word_embeddings") or not mlm_head,
        "pooler": has(names, "pooler.dense.weight"),
        "pair_head": has(names, pair),
    }


_BERT_DENSE = "predictions.transform.dense.weight"
_BERT_PAIR = "cls.seq_relationship.weight"


def _read_bert(s: Settings, names: Collection[str]) -> dict[str, Any]:
    fields = _read(s) | _heads(s, names, dense=_BERT_DENSE, pair=_BERT_PAIR)
    return fields | {"num_labels": _num_labels(_labelled(s, names))}


def _read_roberta(s: Settings, names: Collection[str]) -> dict[str, Any]:
    heads = _heads(s, names, dense="lm_head.dense.weight", pair="-")
    if heads["mlm_head"]:
        s.only("hidden_act", "gelu")  # the head's, which the setting does not reach
    # Positions are counted from the one after that of padding.
    offset = s.integer("pad_token_id") + 1
    length = s.integer("max_position_embeddings") - offset
    fields = _read(s) | heads | {"max_length": length, "position_offset": offset}
    return fields | {"num_labels": _num_labels(_roberta_task(s, names))}


def _roberta_task(s: Settings, names: Collection[str]) -> dict[str, Any]:
    """Return the task of a head over tokens; that over texts has a layer more."""
    task = _labelled(s, names)
    return {} if task.get("kind") == "classify" else task


def _write(c: EncoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": c.vocab_size,
        "hidden_size": c.dim,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.mlp_dim,
        "max_position_embeddings": c.max_length + c.position_offset,
        "type_vocab_size": c.num_token_types,
        "layer_norm_eps": c.norm_epsilon,
        "hidden_act": THEIR_ACTIVATIONS[c.activation],
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.attention_dropout,
        "tie_word_embeddings": c.tie_embeddings,
    }


def _write_bert(c: EncoderConfig) -> dict[str, Any]:
    name = "BertForMaskedLM" if c.mlm_head else "BertModel"
    if c.pair_head:
        name = "BertForPreTraining"
    values = {"architectures": [name], "model_type": "bert", **_write(c)}
    return values | (_named("Bert", c) if c.num_labels else {})


def _write_roberta(c: EncoderConfig) -> dict[str, Any]:
    values = {
        "architectures": ["RobertaForMaskedLM" if c.mlm_head else "RobertaModel"],
        "model_type": "roberta",
        **_write(c),
        "pad_token_id": max(c.position_offset - 1, 0),
    }
    return values | (_named("Roberta", c) if c.num_labels else {})


def _trunk(prefix: str) -> tuple[Row, ...]:
    ours, theirs = "encoder.blocks", f"{prefix}encoder.layer." + "{layer}"
    attention, embeddings = f"{theirs}.attention", f"{prefix}embeddings"
    return (
        Row("embed.embedding", f"{embeddings}.word_embeddings.weight"),
        Row("encoder.positions.embedding", f"{embeddings}.position_embeddings.weight"),
        Row("token_types.embedding", f"{embeddings}.token_type_embeddings.weight"),
        *norm("encoder.embedding_norm", f"{embeddings}.LayerNorm"),
        *linear(f"{ours}.attention.query", f"{attention}.self.query"),
        *linear(f"{ours}.attention.key", f"{attention}.self.key"),
        *linear(f"{ours}.attention.value", f"{attention}.self.value"),
        *linear(f"{ours}.attention.out", f"{attention}.output.dense", num_inputs=2),
        *norm(f"{ours}.attention_norm", f"{attention}.output.LayerNorm"),
        *linear(f"{ours}.mlp.up", f"{theirs}.intermediate.dense"),
        *linear(f"{ours}.mlp.down", f"{theirs}.output.dense"),
        *norm(f"{ours}.mlp_norm", f"{theirs}.output.LayerNorm"),
        *linear("pooler", f"{prefix}pooler.dense"),
    )


def _table(
    config: ModelConfig, *, prefix: str, head: tuple[Row, ...], bias: str
) -> Table:
    """Return the table of a model, whose head's bias may have two names.

    A tied head's are copies of one another. Else the decoder's is what counts, and
    the other is idle, though older files may hold it alone.
    """
    directory, own = bias.rsplit(".", 1)
    inner = f"{directory}.decoder.{own}"
    words = f"{prefix}embeddings.word_embeddings.weight"
    tied = config.tie_embeddings
    return Table(
        rows=(
            *_trunk(prefix),
            *head,
            Row("head.bias", bias if tied else inner),
            Row("head.embedding", f"{directory}.decoder.weight"),
        ),
        prefix=prefix,
        ignorable=(r"embeddings\.position_ids$",),
        copies={f"{directory}.decoder.weight": words, inner: bias} if tied else {},
        stand_ins={} if tied else {bias: inner},
    )


def _bert_table(config: ModelConfig) -> Table:
    head = (
        *linear("head.dense", "cls.predictions.transform.dense"),
        *norm("head.norm", "cls.predictions.transform.LayerNorm"),
        *linear("pair", "cls.seq_relationship"),
        *linear("classifier", labels.HEAD),
    )
    return _table(config, prefix="bert.", head=head, bias="cls.predictions.bias")


def _roberta_table(config: ModelConfig) -> Table:
    head = (
        *linear("head.dense", "lm_head.dense"),
        *norm("head.norm", "lm_head.layer_norm"),
        *linear("classifier", labels.HEAD),
    )
    return _table(config, prefix="roberta.", head=head, bias="lm_head.bias")


BERT = Family(
    model_type="bert",
    architectures=(
        "BertModel",
        "BertForMaskedLM",
        "BertForPreTraining",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
    ),
    defaults=_BERT,
    config_from_hf=_read_bert,
    config_to_hf=_write_bert,
    table=_bert_table,
    kind="encoder",
    task_from_hf=_labelled,
)
ROBERTA = Family(
    model_type="roberta",
    architectures=(
        "RobertaModel",
        "RobertaForMaskedLM",
        "RobertaForTokenClassification",
        "RobertaForQuestionAnswering",
    ),
    defaults=_ROBERTA,
    config_from_hf=_read_roberta,
    config_to_hf=_write_roberta,
    table=_roberta_table,
    kind="encoder",
    task_from_hf=_roberta_task,
)
