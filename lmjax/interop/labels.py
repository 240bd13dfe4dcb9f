"""Heads that predict labels: a model's in transformers, a task's in lmjax."""

import dataclasses
from typing import Any

import jax

from lmjax import models
from lmjax.config.model import EncoderConfig
from lmjax.config.task import TaskConfig
from lmjax.errors import ConfigError
from lmjax.interop.hf_config import HFConfig
from lmjax.interop.table import Table
from lmjax.models import Model
from lmjax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelHead:
    """How transformers has the head of a task.

    Attributes:
      class_suffix: of the model class.
      tensor: the prefix of the names of the head's tensors.
      uses_pooler: whether the head is on top of the pooler.
      names_labels: whether config.json names the labels.
    """

    class_suffix: str
    tensor: str = "classifier"
    uses_pooler: bool = False
    names_labels: bool = True


# By the kind of the task.
HEADS = {
    "classify": LabelHead(class_suffix="ForSequenceClassification", uses_pooler=True),
    "tag": LabelHead(class_suffix="ForTokenClassification"),
    "span_qa": LabelHead(
        class_suffix="ForQuestionAnswering", tensor="qa_outputs", names_labels=False
    ),
}


def read_labels(hf: HFConfig) -> tuple[str, ...]:
    """Return the labels that a config.json names, in the order of their numbers.

    Raises:
      UserError: they are not numbered from 0.
    """
    id2label = hf.get("id2label")
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
      architecture: that the family wrote for the model; a tagger, if the task's head
        has another class but the same parameters.
    """
    head = HEADS.get(task.kind)
    if head is None:
        return {}
    if head.names_labels:
        return write_labels(task.output_names)
    name = architecture.removesuffix(HEADS["tag"].class_suffix) + head.class_suffix
    return {"architectures": [name]}


def name_head(table: Table, task: TaskConfig) -> Table:
    """Return the table in which the label head has the tensor names of a task."""
    head = HEADS.get(task.kind)
    if head is None:
        return table
    entries = (
        dataclasses.replace(
            entry, tensor=entry.tensor.replace("classifier.", f"{head.tensor}.")
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
      ConfigError: the model has a label head, but the task has no labels.
    """
    config = model.config
    if not isinstance(config, EncoderConfig) or not config.num_labels:
        return model, params
    if not task.output_names:
        raise ConfigError(
            f"config.task.kind = {task.kind!r}: has no labels, but config.model."
            f"num_labels = {config.num_labels}"
        )
    pooler = HEADS[task.kind].uses_pooler
    config = dataclasses.replace(
        config, mlm_head=False, pair_head=False, pooler=pooler, head_bias=False
    )
    unused = {"head", "pair"} if pooler else {"head", "pair", "pooler"}
    params = {name: tree for name, tree in params.items() if name not in unused}
    return models.build(config, platform=jax.default_backend()), params
