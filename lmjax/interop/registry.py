"""Which family a Hugging Face model is of, and which one of ours could be."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from lmjax.config.experiment import Config, parse
from lmjax.config.model import AnyTransformer, TransformerConfig
from lmjax.errors import ConfigError, UserError, nearest
from lmjax.interop.families.bart import BART, MARIAN
from lmjax.interop.families.bert import BERT, ROBERTA
from lmjax.interop.families.gemma import GEMMA, GEMMA2
from lmjax.interop.families.gpt2 import GPT2
from lmjax.interop.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from lmjax.interop.families.t5 import T5
from lmjax.interop.layout import Family
from lmjax.models import Model
from lmjax.types import named_leaves

FAMILIES: tuple[Family, ...] = (
    GPT2,
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    GEMMA,
    GEMMA2,
    BERT,
    ROBERTA,
    BART,
    MARIAN,
    T5,
)
# Fields that do not change what a trained model computes.
_TRAINING = ("dropout", "attention_dropout", "opening")


def find_family(values: Mapping[str, Any], *, where: str) -> Family:
    """Return the family of a config.json, by its `architectures` or `model_type`.

    Raises:
      ConfigError: none that lmjax knows; the text lists those it does.
    """
    architectures = values.get("architectures") or ()
    model_type = values.get("model_type")
    for family in FAMILIES:
        if set(architectures) & set(family.architectures):
            return family
        if not architectures and model_type == family.model_type:
            return family
    if architectures:
        known = [name for family in FAMILIES for name in family.architectures]
        key, value = "architectures", architectures[0]
    else:
        known = [family.model_type for family in FAMILIES]
        key, value = "model_type", model_type
    raise ConfigError(
        f"{where}: {key} = {value!r}: not supported{nearest(str(value), known)}; "
        f"supported: {', '.join(known)}"
    )


def read_config(
    family: Family,
    values: Mapping[str, Any],
    names: Collection[str],
    *,
    where: str,
) -> Config:
    """Return our config of a model, given its config.json and its tensors' names.

    Raises:
      ConfigError: a setting that lmjax cannot honour.
    """
    settings = family.settings(values, where=where)
    settings.only("quantization_config", None)
    fields = family.config_from_hf(settings, names)
    sections = {
        "model": fields,
        "tokenizer": {"kind": "ids", "vocab_size": fields["vocab_size"]},
        "data": {"source": "none", "length": min(fields["max_length"], 1024)},
        "task": family.task_from_hf(settings, names),
    }
    try:
        return parse(sections)
    except UserError as error:
        raise ConfigError(f"{where}: {error}") from error


def choose_family(model: Model) -> tuple[Family, dict[str, Any]]:
    """Return a family that computes just what a model does, and its config.json.

    Settings are written, read back, and compared: what a family cannot say differs.

    Raises:
      ConfigError: there is none; the text says what the nearest one lacks.
    """
    if not isinstance(model.config, TransformerConfig):
        raise ConfigError(
            f"config.model.kind = {model.config.kind!r}: no model of transformers is "
            "like this"
        )
    obstacles: dict[str, list[str]] = {}
    for family in FAMILIES:
        if family.kind != model.config.kind:
            continue
        values = family.config_to_hf(model.config)
        obstacles[family.model_type] = found = _obstacles(family, values, model)
        if not found:
            return family, values
    name = min(obstacles, key=lambda name: len(obstacles[name]))
    raise ConfigError(
        f"config.model: no model of transformers is like this; the nearest, {name}, "
        f"differs: {'; '.join(obstacles[name])}"
    )


def _obstacles(family: Family, values: dict[str, Any], model: Model) -> list[str]:
    """Return in which fields a family's reading of `values` is not the model's."""
    ours = named_leaves(model.shapes)
    rows = family.table(model.config).rows
    names = {row.theirs for row in rows if row.ours in ours}
    try:
        back = read_config(family, values, names, where=family.model_type).model
    except UserError as error:
        return [str(error)]
    assert isinstance(model.config, TransformerConfig)
    assert isinstance(back, TransformerConfig)
    a, b = _essence(model.config), _essence(back)
    return [
        f"{name} = {a[name]!r}, there {b[name]!r}" for name in a if a[name] != b[name]
    ]


def _essence(config: AnyTransformer) -> dict[str, Any]:
    """Return the fields that decide what a model computes; idle ones have defaults."""
    fields = {
        field.name: field
        for field in dataclasses.fields(config)
        if not field.metadata.get("runtime") and field.name not in _TRAINING
    }
    values = {name: getattr(config, name) for name in fields}
    if config.attention_scale == config.head_dim**-0.5:
        values["attention_scale"] = 0.0
    for name in _idle(config):
        values[name] = fields[name].default
    return values


def _idle(config: AnyTransformer) -> list[str]:
    """Return the fields that others leave without a meaning."""
    idle = []
    scaling = config.rope_scaling if config.position == "rope" else ""
    if not scaling:
        idle += ["rope_theta", "rope_scaling"]
    if scaling in ("", "none"):
        idle.append("rope_factor")
    if scaling != "llama3":
        idle += ["rope_low_frequency_factor", "rope_high_frequency_factor"]
        idle.append("rope_original_length")
    if config.position != "relative":
        idle += ["relative_buckets", "relative_max_distance"]
    if config.use_bias:
        idle.append("qkv_bias")
    if config.kind == "encoder" and not config.mlm_head:
        idle += ["tie_embeddings", "head_bias", "logit_softcap"]
    return idle
