"""BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019) and its descendants."""

import functools
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
_ROBERTA = {**_BERT, "pad_token_id": 1}


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


def write_label_head(prefix: str, config: EncoderConfig) -> dict[str, Any]:
    """Return the class of a model with a label head, and default labels."""
    head = labels.HEADS["classify" if config.pooler else "tag"]
    names = labels.write_labels(labels.default_labels(config.num_labels))
    return {"architectures": [prefix + head.class_suffix], **names}


def read_heads(
    hf: HFConfig, tensors: Collection[str], *, dense: str, pair: str = "-"
) -> dict[str, Any]:
    """Return the fields that say which heads the model has.

    A class with labels has its own head alone. Of the others `architectures` decides
    on the head for masked tokens; a pooler and a head for pairs that were pretrained
    are kept, if the files hold them, for runs that begin with them.

    Args:
      hf: the config.json.
      tensors: the names in the files.
      dense: a tensor of the head for masked tokens.
      pair: a tensor of the head for sentence pairs, if there may be one.
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
    return _read(hf) | read_heads(
        hf,
        tensors,
        dense="predictions.transform.dense.weight",
        pair="cls.seq_relationship.weight",
    )


def _read_roberta(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    heads = read_heads(hf, tensors, dense="lm_head.dense.weight")
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
    return values | (write_label_head("Bert", config) if config.num_labels else {})


def _write_roberta(
    config: EncoderConfig, *, model_type: str, prefix: str
) -> dict[str, Any]:
    values = {
        "architectures": [prefix + ("ForMaskedLM" if config.mlm_head else "Model")],
        "model_type": model_type,
        **_write(config),
        "pad_token_id": max(config.position_offset - 1, 0),
    }
    return values | (write_label_head(prefix, config) if config.num_labels else {})


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


def head_table(
    config: EncoderConfig,
    entries: tuple[Entry, ...],
    *,
    prefix: str,
    embedding: str,
    bias: str,
    decoder: str,
) -> Table:
    """Return the table of an encoder with the last layer of its masked tokens' head.

    Args:
      config: of the model.
      entries: all but those of this layer.
      prefix: of the tensors of the encoder.
      embedding: the tensor of token embeddings.
      bias: of this last layer. The files have it under a second name as well,
        the decoder's: tied heads have equal copies; in others the decoder's is used,
        and older files that lack it have `bias` alone.
      decoder: the prefix of the layer's tensors.
    """
    decoder_bias = f"{decoder}.bias"
    tied = config.tie_embeddings
    copies = {f"{decoder}.weight": embedding}
    if bias != decoder_bias:
        copies[decoder_bias] = bias
    if not config.mlm_head:  # one that the files hold is left out, equal or not
        copies = {}
    return Table(
        entries=(
            *entries,
            Entry("head.bias", bias if tied else decoder_bias),
            Entry("head.embedding", f"{decoder}.weight"),
        ),
        prefix=prefix,
        ignored=(r"embeddings\.position_ids$",),
        copies=copies if tied else {},
        aliases={} if tied or bias == decoder_bias else {bias: decoder_bias},
    )


def _bert_table(config: EncoderConfig) -> Table:
    head = (
        *linear("pooler", "bert.pooler.dense"),
        *linear("head.dense", "cls.predictions.transform.dense"),
        *norm("head.norm", "cls.predictions.transform.LayerNorm"),
        *linear("pair", "cls.seq_relationship"),
        *linear("classifier", "classifier"),
    )
    return head_table(
        config,
        (*_encoder("bert."), *head),
        prefix="bert.",
        embedding="bert.embeddings.word_embeddings.weight",
        bias="cls.predictions.bias",
        decoder="cls.predictions.decoder",
    )


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
    return head_table(
        config,
        (*_encoder("roberta."), *head),
        prefix="roberta.",
        embedding="roberta.embeddings.word_embeddings.weight",
        bias="lm_head.bias",
        decoder="lm_head.decoder",
    )


def unused_fields(config: EncoderConfig) -> tuple[str, ...]:
    """Return the fields of the heads that there are not."""
    no_head = ("tie_embeddings", "head_bias", "logit_softcap")
    unused = [] if config.mlm_head else [*no_head]
    unused += [] if config.pooler else ["pooler_activation"]
    unused += [] if config.num_labels else ["summary", "label_layer"]
    has_layer = config.mlm_head or (config.num_labels and config.label_layer)
    return (*unused, *(() if has_layer else ("head_layer_bias",)))


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
    unused_fields=unused_fields,
    base_architecture="BertModel",
)


def _make_roberta(model_type: str, prefix: str, *, vocab_size: int = 30522) -> Family:
    """Return a family whose models are RoBERTa's under names of their own.

    Args:
      model_type: as config.json has it.
      prefix: of the names of the classes.
      vocab_size: where config.json has none.
    """
    suffixes = (
        "Model",
        "ForMaskedLM",
        *(head.class_suffix for head in labels.HEADS.values()),
    )
    return Family(
        model_type=model_type,
        architectures=tuple(
            name + suffix
            for name in dict.fromkeys((prefix, "Roberta"))  # older files have both
            for suffix in suffixes
        ),
        defaults={**_ROBERTA, "vocab_size": vocab_size},
        config_from_hf=_read_roberta,
        config_to_hf=functools.partial(
            _write_roberta, model_type=model_type, prefix=prefix
        ),
        table=_roberta_table,
        kind="encoder",
        unused_fields=unused_fields,
        base_architecture=f"{prefix}Model",
    )


ROBERTA = _make_roberta("roberta", "Roberta", vocab_size=50265)
XLM_ROBERTA = _make_roberta("xlm-roberta", "XLMRoberta")  # Conneau et al. 2020
CAMEMBERT = _make_roberta("camembert", "Camembert")  # Martin et al. 2020
