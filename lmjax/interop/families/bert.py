"""BERT (Devlin et al. 2019) and RoBERTa (Liu et al. 2019)."""

from collections.abc import Collection
from typing import Any

from lmjax.config.model import EncoderConfig
from lmjax.interop import labels
from lmjax.interop.family import Family, has_tensor
from lmjax.interop.hf_config import ACTIVATIONS, HF_ACTIVATIONS, HFConfig
from lmjax.interop.table import Entry, Table, linear, norm

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
}
_ROBERTA = {**_BERT, "vocab_size": 50265, "pad_token_id": 1}


def _read(hf: HFConfig) -> dict[str, Any]:
    hf.require("is_decoder", False)
    hf.require("add_cross_attention", False)
    hf.require("position_embedding_type", "absolute")
    if hf.get_int("type_vocab_size") < 1:
        raise hf.error("type_vocab_size", "expected >= 1")
    return {
        "kind": "encoder",
        "vocab_size": hf.get_int("vocab_size"),
        "dim": hf.get_int("hidden_size"),
        "num_layers": hf.get_int("num_hidden_layers"),
        "num_heads": hf.get_int("num_attention_heads"),
        "mlp_dim": hf.get_int("intermediate_size"),
        "max_length": hf.get_int("max_position_embeddings"),
        "num_token_types": hf.get_int("type_vocab_size"),
        "position": "learned",
        "norm": "layernorm",
        "norm_epsilon": hf.get_float("layer_norm_eps"),
        "norm_place": "post",
        "embedding_norm": True,
        "activation": hf.look_up("hidden_act", ACTIVATIONS),
        "gated": False,
        "use_bias": True,
        "dropout": hf.get_float("hidden_dropout_prob"),
        "attention_dropout": hf.get_float("attention_probs_dropout_prob"),
    }


def _write_label_head(prefix: str, config: EncoderConfig) -> dict[str, Any]:
    """Return the class of a model with a label head, and default labels."""
    head = labels.HEADS["classify" if config.pooler else "tag"]
    names = labels.write_labels(labels.default_labels(config.num_labels))
    return {"architectures": [prefix + head.class_suffix], **names}


def _read_heads(
    hf: HFConfig, tensors: Collection[str], *, dense: str, pair: str
) -> dict[str, Any]:
    """Return the fields that say which heads the model has.

    A class with labels has its own head alone. Of the others `architectures` decides
    on the head for masked tokens; a pooler and a head for pairs that were pretrained
    are kept, if the files hold them, for runs that begin with them.

    Args:
      hf: the config.json.
      tensors: the names in the files.
      dense: a tensor of the head for masked tokens.
      pair: a tensor of the head for sentence pairs.
    """
    task, name = labels.find_task(hf, tensors), hf.architecture
    masked = has_tensor(tensors, dense)
    if name:
        masked = name.endswith(("ForMaskedLM", "ForPreTraining"))
    pairs = name.endswith(("ForPreTraining", "ForNextSentencePrediction"))
    pooler = pairs or has_tensor(tensors, "pooler.dense.weight")
    mlm_head = masked and not task
    return {
        "mlm_head": mlm_head,
        "head_bias": mlm_head,
        "tie_embeddings": hf.get_bool("tie_word_embeddings") or not mlm_head,
        "pooler": labels.HEADS[task].uses_pooler if task else pooler,
        "pair_head": not task and pooler and (pairs or has_tensor(tensors, pair)),
        "num_labels": labels.count_labels(hf, tensors),
    }


def _read_bert(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    return _read(hf) | _read_heads(
        hf,
        tensors,
        dense="predictions.transform.dense.weight",
        pair="cls.seq_relationship.weight",
    )


def _read_roberta(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    heads = _read_heads(hf, tensors, dense="lm_head.dense.weight", pair="-")
    if heads["mlm_head"]:
        hf.require("hidden_act", "gelu")  # the head always uses gelu
    # The first position is pad_token_id + 1.
    offset = hf.get_int("pad_token_id") + 1
    length = hf.get_int("max_position_embeddings") - offset
    return _read(hf) | heads | {"max_length": length, "position_offset": offset}


def _write(config: EncoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_length + config.position_offset,
        "type_vocab_size": config.num_token_types,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": HF_ACTIVATIONS[config.activation],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _write_bert(config: EncoderConfig) -> dict[str, Any]:
    name = "BertForMaskedLM" if config.mlm_head else "BertModel"
    if config.pair_head:
        name = (
            f"BertFor{'PreTraining' if config.mlm_head else 'NextSentencePrediction'}"
        )
    values = {"architectures": [name], "model_type": "bert", **_write(config)}
    return values | (_write_label_head("Bert", config) if config.num_labels else {})


def _write_roberta(config: EncoderConfig) -> dict[str, Any]:
    values = {
        "architectures": ["RobertaForMaskedLM" if config.mlm_head else "RobertaModel"],
        "model_type": "roberta",
        **_write(config),
        "pad_token_id": max(config.position_offset - 1, 0),
    }
    return values | (_write_label_head("Roberta", config) if config.num_labels else {})


def _encoder(prefix: str) -> tuple[Entry, ...]:
    blocks, layer = "encoder.blocks", f"{prefix}encoder.layer." + "{layer}"
    attention, embeddings = f"{layer}.attention", f"{prefix}embeddings"
    return (
        Entry("embed.embedding", f"{embeddings}.word_embeddings.weight"),
        Entry(
            "encoder.positions.embedding", f"{embeddings}.position_embeddings.weight"
        ),
        Entry("token_types.embedding", f"{embeddings}.token_type_embeddings.weight"),
        *norm("encoder.embedding_norm", f"{embeddings}.LayerNorm"),
        *linear(f"{blocks}.attention.query", f"{attention}.self.query"),
        *linear(f"{blocks}.attention.key", f"{attention}.self.key"),
        *linear(f"{blocks}.attention.value", f"{attention}.self.value"),
        *linear(f"{blocks}.attention.out", f"{attention}.output.dense", num_inputs=2),
        *norm(f"{blocks}.attention_norm", f"{attention}.output.LayerNorm"),
        *linear(f"{blocks}.mlp.up", f"{layer}.intermediate.dense"),
        *linear(f"{blocks}.mlp.down", f"{layer}.output.dense"),
        *norm(f"{blocks}.mlp_norm", f"{layer}.output.LayerNorm"),
    )


def _table(
    config: EncoderConfig, *, prefix: str, head: tuple[Entry, ...], bias: str
) -> Table:
    """Return the table of a model with the head for masked tokens or without.

    Args:
      config: of the model.
      prefix: of the tensors of the encoder.
      head: the entries of the heads, but for the last layer of that for masked tokens.
      bias: of this last layer. The files have it under a second name as well,
        `decoder.bias`: tied heads have equal copies; in others `decoder.bias` is used,
        and older files that lack it have `bias` alone.
    """
    module, own = bias.rsplit(".", 1)
    decoder_bias = f"{module}.decoder.{own}"
    embedding = f"{prefix}embeddings.word_embeddings.weight"
    tied = config.tie_embeddings
    copies = {f"{module}.decoder.weight": embedding, decoder_bias: bias}
    if not config.mlm_head:  # one that the files hold is left out, equal or not
        copies = {}
    return Table(
        entries=(
            *_encoder(prefix),
            *head,
            Entry("head.bias", bias if tied else decoder_bias),
            Entry("head.embedding", f"{module}.decoder.weight"),
        ),
        prefix=prefix,
        ignored=(r"embeddings\.position_ids$",),
        copies=copies if tied else {},
        aliases={} if tied else {bias: decoder_bias},
    )


def _bert_table(config: EncoderConfig) -> Table:
    head = (
        *linear("pooler", "bert.pooler.dense"),
        *linear("head.dense", "cls.predictions.transform.dense"),
        *norm("head.norm", "cls.predictions.transform.LayerNorm"),
        *linear("pair", "cls.seq_relationship"),
        *linear("classifier", "classifier"),
    )
    return _table(config, prefix="bert.", head=head, bias="cls.predictions.bias")


def _roberta_table(config: EncoderConfig) -> Table:
    # A classifier of texts has a layer of its own in place of the pooler.
    pooler, classifier = "roberta.pooler.dense", "classifier"
    if config.num_labels and config.pooler:
        pooler, classifier = "classifier.dense", "classifier.out_proj"
    head = (
        *linear("pooler", pooler),
        *linear("head.dense", "lm_head.dense"),
        *norm("head.norm", "lm_head.layer_norm"),
        *linear("classifier", classifier),
    )
    return _table(config, prefix="roberta.", head=head, bias="lm_head.bias")


def _unused_fields(config: EncoderConfig) -> tuple[str, ...]:
    """Return the fields of the head for masked tokens if there is none."""
    no_head = ("tie_embeddings", "head_bias", "logit_softcap")
    return () if config.mlm_head else no_head


BERT = Family(
    model_type="bert",
    architectures=(
        "BertModel",
        "BertForMaskedLM",
        "BertForPreTraining",
        "BertForNextSentencePrediction",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
    ),
    defaults=_BERT,
    config_from_hf=_read_bert,
    config_to_hf=_write_bert,
    table=_bert_table,
    kind="encoder",
    task_from_hf=labels.read_task,
    unused_fields=_unused_fields,
    base_architecture="BertModel",
)
ROBERTA = Family(
    model_type="roberta",
    architectures=(
        "RobertaModel",
        "RobertaForMaskedLM",
        "RobertaForSequenceClassification",
        "RobertaForTokenClassification",
        "RobertaForQuestionAnswering",
    ),
    defaults=_ROBERTA,
    config_from_hf=_read_roberta,
    config_to_hf=_write_roberta,
    table=_roberta_table,
    kind="encoder",
    task_from_hf=labels.read_task,
    unused_fields=_unused_fields,
    base_architecture="RobertaModel",
)
