"""All families, and which of them a model belongs to, in either direction."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lmjax.config.experiment import Config, parse
from lmjax.config.model import DecoderConfig, ModelConfig, TransformerConfig
from lmjax.errors import ConfigError, UserError, nearest
from lmjax.interop import labels
from lmjax.interop.families.bart import BART, MARIAN, MBART, PEGASUS
from lmjax.interop.families.bert import BERT, CAMEMBERT, ROBERTA, XLM_ROBERTA
from lmjax.interop.families.distilbert import DISTILBERT
from lmjax.interop.families.gemma import GEMMA, GEMMA2, GEMMA3
from lmjax.interop.families.gpt2 import GPT2
from lmjax.interop.families.gpt_neox import GPT_NEOX
from lmjax.interop.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from lmjax.interop.families.modernbert import MODERNBERT
from lmjax.interop.families.olmo import OLMO2
from lmjax.interop.families.phi3 import PHI3
from lmjax.interop.families.t5 import MT5, MT5_ENCODER, T5, T5_ENCODER
from lmjax.interop.family import Family
from lmjax.interop.hf_config import HFConfig
from lmjax.interop.text_length import fit_windows
from lmjax.models import Model
from lmjax.types import named_leaves

FAMILIES: tuple[Family, ...] = (
    GPT2,
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    PHI3,
    OLMO2,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GPT_NEOX,
    BERT,
    ROBERTA,
    XLM_ROBERTA,
    CAMEMBERT,
    DISTILBERT,
    MODERNBERT,
    T5_ENCODER,
    MT5_ENCODER,
    BART,
    MARIAN,
    MBART,
    PEGASUS,
    T5,
    MT5,
)
# Fields that do not change the logits of a model that is trained already.
_TRAINING_FIELDS = ("dropout", "attention_dropout", "opening", "text_embedding")


def find_family(values: Mapping[str, Any], *, file: str) -> Family:
    """Return the family of a config.json, by its `architectures` or `model_type`.

    Args:
      values: of the config.json.
      file: how errors name it.

    Raises:
      UserError: it is not supported, and the text lists what is; or the two keys
        contradict each other.
    """
    architecture = HFConfig(values, {}, file=file).architecture
    model_type = values.get("model_type")
    if not architecture:
        for family in FAMILIES:
            if family.model_type == model_type:
                return family
        supported = [family.model_type for family in FAMILIES]
        raise _unsupported(file, "model_type", model_type, supported)
    classes = lambda family: (*family.architectures, *family.label_architectures)
    families = [family for family in FAMILIES if architecture in classes(family)]
    if not families:
        supported = [name for family in FAMILIES for name in classes(family)]
        raise _unsupported(file, "architectures", architecture, supported)
    if model_type is None:
        return families[0]
    for family in families:
        if family.model_type == model_type:
            return family
    raise UserError(
        f"{file}: model_type = {model_type!r}: has no class {architecture!r}, which "
        f"architectures names; expected {families[0].model_type!r}"
    )


def _unsupported(
    file: str, key: str, value: Any, supported: Sequence[str]
) -> UserError:
    supported = list(dict.fromkeys(supported))
    return UserError(
        f"{file}: {key} = {value!r}: not supported{nearest(str(value), supported)}; "
        f"supported: {', '.join(supported)}"
    )


def read_config(
    family: Family,
    values: Mapping[str, Any],
    tensors: Collection[str],
    *,
    file: str,
    max_length: int = 0,
) -> Config:
    """Return the config of a Hugging Face model.

    Args:
      family: of the model.
      values: of its config.json.
      tensors: their names in its files.
      file: how errors name the config.json.
      max_length: at which its tokenizer cuts texts; 0: nowhere.

    Raises:
      UserError: lmjax does not support the value of a key.
    """
    hf = HFConfig(values, family.defaults, file=file)
    hf.require("quantization_config", None)
    model = {"family": family.model_type, **family.config_from_hf(hf, tensors)}
    task = _read_task(family, hf, tensors)
    if task and family.kind == "decoder":
        model["num_labels"], model["lm_head"] = len(task["labels"]), False
        model["tie_embeddings"] = False  # there is nothing to tie
        model["label_bias"] = task["kind"] == "tag"
    is_base = hf.architecture == family.base_architecture
    if is_base and family.kind != "encoder" and not model["tie_embeddings"]:
        model["lm_head"] = False
    length = min(model["max_length"], max_length or 1024)
    sections = {
        "model": model,
        "tokenizer": {"kind": "ids", "vocab_size": model["vocab_size"]},
        "data": {"source": "none", "length": length},
        "task": fit_windows(task, length),
    }
    try:
        return parse(sections)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def choose_family(model: Model) -> tuple[Family, dict[str, Any]]:
    """Return a family that computes exactly what a model does, and its config.json.

    Each family of the model's kind writes a config.json, which is read again and
    compared with the model: fields that the family cannot express differ.

    Raises:
      ConfigError: there is none; the text says how the nearest one differs.
    """
    kind = model.config.kind
    differences: dict[str, list[str]] = {}
    for family in _preferred_first(getattr(model.config, "family", "")):
        if family.kind != kind:
            continue
        values = family.config_to_hf(model.config)
        values |= _write_head(family, model.config)
        differences[family.model_type] = _find_differences(family, values, model)
        if not differences[family.model_type]:
            return family, values
    if not differences:
        raise ConfigError(
            f"config.model.kind = {kind!r}: transformers has no such architecture"
        )
    name = min(differences, key=lambda name: len(differences[name]))
    raise ConfigError(
        "config.model: transformers has no such architecture; the nearest is "
        f"{name}, which differs: {'; '.join(differences[name])}"
    )


def _read_task(
    family: Family, hf: HFConfig, tensors: Collection[str]
) -> dict[str, Any]:
    """Return fields of the task config, none if the class has no label head."""
    if family.kind == "encoder":
        return labels.read_task(hf, tensors)
    if hf.architecture in family.label_architectures:
        return labels.read_task(hf, tensors)
    return {}


def _write_head(family: Family, config: ModelConfig) -> dict[str, Any]:
    """Return the keys of config.json of a model without a head over the vocabulary."""
    if getattr(config, "lm_head", True):
        return {}
    if isinstance(config, DecoderConfig) and config.num_labels:
        names = labels.write_labels(labels.default_labels(config.num_labels))
        classes = family.label_architectures[config.label_bias :]
        return {"architectures": [*classes[:1]], **names}
    return {"architectures": [family.base_architecture]}


def _preferred_first(name: str) -> list[Family]:
    """Return all families, that of `config.model.family` before the others.

    Raises:
      ConfigError: it is unknown.
    """
    names = [family.model_type for family in FAMILIES]
    if name and name not in names:
        raise ConfigError(
            f"config.model.family = {name!r}: allowed: {', '.join(names)}"
            f"{nearest(name, names)}"
        )
    return sorted(FAMILIES, key=lambda family: family.model_type != name)


def _find_differences(
    family: Family, values: dict[str, Any], model: Model
) -> list[str]:
    """Return how the model that a family reads from `values` differs from `model`."""
    params = named_leaves(model.shapes)
    entries = family.table(model.config).entries
    tensors = {entry.tensor for entry in entries if entry.param in params}
    try:
        read = read_config(family, values, tensors, file=family.model_type).model
    except UserError as error:
        return [str(error)]
    a, b = _effective_fields(model.config, family), _effective_fields(read, family)
    return [
        f"{name} = {a[name]!r} (there {b[name]!r})" for name in a if a[name] != b[name]
    ]


def _effective_fields(config: ModelConfig, family: Family) -> dict[str, Any]:
    """Return the fields that decide the logits; unused ones have their defaults."""
    fields = {
        field.name: field
        for field in dataclasses.fields(config)
        if not field.metadata.get("runtime") and field.name not in _TRAINING_FIELDS
    }
    values = {name: getattr(config, name) for name in fields}
    if isinstance(config, TransformerConfig):  # two ways to say what has no window
        values["global_layers"] = config.global_flags(config.num_layers)
        values["global_every"] = 0
    if values["attention_scale"] == values["head_dim"] ** -0.5:
        values["attention_scale"] = 0.0  # the default
    unused = [*_unused_fields(values), *family.unused_fields(config)]
    if not getattr(config, "lm_head", True):
        unused += ["tie_embeddings", "head_bias", "logit_softcap"]
    if not getattr(config, "num_labels", 0):
        unused.append("label_bias")
    unused = [name for name in unused if name in fields]
    for name in unused:
        values[name] = fields[name].default
    return values


def _unused_fields(values: Mapping[str, Any]) -> list[str]:
    """Return the fields that have no effect, given the values of others."""
    unused = []
    scaling = values["rope_scaling"] if values["position"] == "rope" else ""
    if not scaling:
        unused += ["rope_theta", "rope_scaling"]
    if scaling in ("", "none"):
        unused.append("rope_factor")
    if scaling in ("", "none", "linear"):
        unused.append("rope_original_length")
    if scaling != "llama3":
        unused += ["rope_low_frequency_factor", "rope_high_frequency_factor"]
    if values["position"] != "relative":
        unused += ["relative_buckets", "relative_max_distance"]
    if values["attention_bias"]:
        unused.append("qkv_bias")
    if values["norm"] != "layernorm":  # the others have no bias
        unused.append("use_bias")
    return unused
