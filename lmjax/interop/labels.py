"""Heads that predict labels: a model's in transformers, a task's in lmjax."""

import dataclasses
import logging
from collections.abc import Collection
from typing import Any

import jax

from lmjax import models
from lmjax.config.model import DecoderConfig, EncoderConfig, ModelConfig
from lmjax.config.task import TaskConfig
from lmjax.errors import ConfigError
from lmjax.interop.family import has_tensor
from lmjax.interop.hf_config import HFConfig
from lmjax.interop.table import Table, linear
from lmjax.models import Model
from lmjax.types import Params

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelHead:
    """How transformers has the head of a task.

    Attributes:
      class_suffix: of the model class.
      text: what it does.
      uses_pooler: whether the head is on top of the pooler.
      names_labels: whether config.json names the labels.
    """

    class_suffix: str
    text: str
    uses_pooler: bool = False
    names_labels: bool = True

    def is_of(self, architecture: str) -> bool:
        """Return whether a class of transformers has this head."""
        return architecture.endswith(self.class_suffix)


# By the kind of the task.
HEADS = {
    "classify": LabelHead(
        class_suffix="ForSequenceClassification",
        text="it classifies texts",
        uses_pooler=True,
    ),
    "tag": LabelHead(class_suffix="ForTokenClassification", text="it labels tokens"),
    "span_qa": LabelHead(
        class_suffix="ForQuestionAnswering",
        text="it finds answers",
        names_labels=False,
    ),
}


def find_task(hf: HFConfig, tensors: Collection[str]) -> str:
    """Return the kind of the task whose head a model has; "" if it has none.

    `architectures` of config.json says it. Only where that is missing do the names of
    the tensors: other heads may be among them, which the class does not use.
    """
    if name := hf.architecture:
        kinds = (kind for kind, head in HEADS.items() if head.is_of(name))
        return next(kinds, "")
    if has_tensor(tensors, "qa_outputs.weight"):
        return "span_qa"
    if not has_tensor(tensors, "classifier.weight"):
        return ""
    return "classify" if has_tensor(tensors, "pooler.dense.weight") else "tag"


def read_task(hf: HFConfig, tensors: Collection[str]) -> dict[str, Any]:
    """Return fields of the task config, none if the model has no label head.

    Raises:
      UserError: the head is not trained to choose one of several labels.
    """
    kind = find_task(hf, tensors)
    if kind and not hf.architecture:
        text = HEADS[kind].text
        log.warning("%s: has no `architectures`: by its tensors %s", hf.file, text)
    if not kind or not HEADS[kind].names_labels:
        return {"kind": kind} if kind else {}
    if kind == "classify":
        hf.require("problem_type", None, "single_label_classification")
    labels = read_labels(hf)
    if len(labels) < 2:
        key = "id2label" if hf.get("id2label") else "num_labels"
        raise hf.error(key, "one output is a regression; expected 2 labels or more")
    return {"kind": kind, "labels": labels}


def count_labels(hf: HFConfig, tensors: Collection[str]) -> int:
    """Return the number of outputs of the label head; 0 if there is none."""
    kind = find_task(hf, tensors)
    if not kind:
        return 0
    # span_qa predicts the start and the end of an answer.
    return len(read_labels(hf)) if HEADS[kind].names_labels else 2


def read_labels(hf: HFConfig) -> tuple[str, ...]:
    """Return the labels that a config.json names, in the order of their numbers.

    Without names there are `num_labels`, by default 2, named as transformers does.

    Raises:
      UserError: they are not numbered from 0.
    """
    id2label = hf.get("id2label")
    if id2label is None:
        return default_labels(hf.get_int("num_labels", 2))
    try:
        labels = {int(number): str(label) for number, label in id2label.items()}
    except (AttributeError, ValueError) as error:
        why = "expected an object that maps numbers to labels"
        raise hf.error("id2label", why) from error
    if sorted(labels) != [*range(len(labels))]:
        raise hf.error("id2label", "expected numbers from 0, without a gap")
    return tuple(labels[i] for i in range(len(labels)))


def write_labels(labels: tuple[str, ...]) -> dict[str, Any]:
    """Return the keys of config.json that name labels."""
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def default_labels(count: int) -> tuple[str, ...]:
    """Return the names that transformers gives to labels by default."""
    return tuple(f"LABEL_{i}" for i in range(count))


def write_task(task: TaskConfig, architecture: str) -> dict[str, Any]:
    """Return the keys of config.json that depend on the task.

    Args:
      task: of the run.
      architecture: that the family wrote for the model; of another task, if its head
        has the same parameters.
    """
    head = HEADS.get(task.kind)
    if head is None:
        return {}
    values = write_labels(task.output_names) if head.names_labels else {}
    for other in HEADS.values():
        if other.is_of(architecture):
            name = architecture.removesuffix(other.class_suffix) + head.class_suffix
            values["architectures"] = [name]
    return values


def name_heads(table: Table, model: ModelConfig, task: TaskConfig) -> Table:
    """Return the table in which the label head has the tensor names of a task.

    A model without a head over the vocabulary has no tensor that is tied to one.
    """
    if not getattr(model, "lm_head", True):
        heads = ("lm_head.weight", "embed_out.weight")
        copies = {k: v for k, v in table.copies.items() if k not in heads}
        table = dataclasses.replace(table, copies=copies)
    if isinstance(model, DecoderConfig) and model.num_labels:
        name = table.tag_head if task.kind == "tag" else "score"
        own = linear("classifier", name)
        return dataclasses.replace(table, entries=(*table.entries, *own))
    if task.kind != "span_qa":
        return table
    tensor = table.answer_head
    entries = (
        dataclasses.replace(
            entry, tensor=entry.tensor.replace("classifier.", f"{tensor}.")
        )
        if entry.param.startswith("classifier.")
        else entry
        for entry in table.entries
    )
    return dataclasses.replace(table, entries=tuple(entries))


def drop_unused_heads(
    model: Model, params: Params, task: TaskConfig
) -> tuple[Model, Params]:
    """Remove the other heads of a model that has a label head.

    The classes of transformers have a single head. Those that classify texts have a
    pooler as well.

    Raises:
      ConfigError: the model has a label head, but the task has no labels, or there is
        no class of transformers for a decoder with it.
    """
    config: ModelConfig = model.config
    if not isinstance(config, EncoderConfig | DecoderConfig) or not config.num_labels:
        return model, params
    if not task.output_names:
        raise ConfigError(
            f"config.task.kind = {task.kind!r}: has no labels, but config.model."
            f"num_labels = {config.num_labels}"
        )
    unused = {"head"}
    if isinstance(config, DecoderConfig):
        _check_decoder_head(config, task)
        config = dataclasses.replace(config, lm_head=False)
    else:
        pooler = HEADS[task.kind].uses_pooler and config.summary == "pooler"
        config = dataclasses.replace(
            config, mlm_head=False, pair_head=False, pooler=pooler, head_bias=False
        )
        unused |= {"pair"} if pooler else {"pair", "pooler"}
    params = {name: tree for name, tree in params.items() if name not in unused}
    return models.build(config, platform=jax.default_backend()), params


def _check_decoder_head(config: DecoderConfig, task: TaskConfig) -> None:
    if task.kind not in ("classify", "tag"):
        raise ConfigError(
            f"config.task.kind = {task.kind!r}: transformers has no such head for this "
            "decoder that lmjax can write"
        )
    has_bias = task.kind == "tag"
    if config.label_bias != has_bias:
        raise ConfigError(
            f"config.model.label_bias = {config.label_bias}: must be {has_bias} to "
            f"export a decoder with config.task.kind = {task.kind!r}"
        )
