"""Labels and their heads: with the model in Hugging Face, with the task in ours."""

import dataclasses
from typing import Any

import jax

from lmjax import models
from lmjax.config.model import EncoderConfig
from lmjax.config.task import TaskConfig
from lmjax.errors import ConfigError
from lmjax.interop.layout import Table
from lmjax.interop.settings import Settings
from lmjax.models import Model
from lmjax.types import Params

# Their class of an encoder, by our task.
ENDINGS = {
    "classify": "ForSequenceClassification",
    "tag": "ForTokenClassification",
    "span_qa": "ForQuestionAnswering",
}
HEAD = "classifier"
_HEADS = {"span_qa": "qa_outputs"}  # by our task, where it is called otherwise


def read(settings: Settings) -> tuple[str, ...]:
    """Return the labels that a config.json names, in the order of their numbers.

    Raises:
      ConfigError: they are not numbered from 0.
    """
    named = settings.get("id2label")
    try:
        by_number = {int(number): str(label) for number, label in named.items()}
    except (AttributeError, ValueError) as error:
        why = "must be an object of numbers and labels"
        raise settings.error("id2label", why) from error
    if sorted(by_number) != [*range(len(by_number))]:
        raise settings.error("id2label", "must be numbered from 0, without a gap")
    return tuple(by_number[i] for i in range(len(by_number)))


def numbered(labels: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings that name labels."""
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def placeholders(count: int) -> tuple[str, ...]:
    """Return what transformers calls labels that nobody has named."""
    return tuple(f"LABEL_{i}" for i in range(count))


def settings_of(task: TaskConfig, architecture: str) -> dict[str, Any]:
    """Return the settings that tell of a task: its labels, or the class it needs."""
    if task.has_labels:
        return numbered(task.output_names)
    if task.kind == "span_qa":  # a tagger of two labels, but for the names
        name = architecture.removesuffix(ENDINGS["tag"]) + ENDINGS["span_qa"]
        return {"architectures": [name]}
    return {}


def named(table: Table, task: TaskConfig) -> Table:
    """Return the table with the head for labels called as the task's class does it."""
    head = _HEADS.get(task.kind, HEAD)
    rows = (
        dataclasses.replace(row, theirs=row.theirs.replace(f"{HEAD}.", f"{head}."))
        if row.ours.startswith("classifier.")
        else row
        for row in table.rows
    )
    return dataclasses.replace(table, rows=tuple(rows))


def used(model: Model, params: Params, task: TaskConfig) -> tuple[Model, Params]:
    """Return the model without the heads that its task does not use.

    Their classes have the one for labels alone, over the pooler to classify texts, and
    without one to tag and to find answers.

    Raises:
      ConfigError: the model has a classifier, but no task to go with it.
    """
    config = model.config
    if not isinstance(config, EncoderConfig) or not config.num_labels:
        return model, params
    if not task.output_names:
        raise ConfigError(
            f"config.task.kind = {task.kind!r}: does not say what config.model."
            f"num_labels = {config.num_labels} are labels of"
        )
    pooler = task.kind == "classify"
    config = dataclasses.replace(
        config, mlm_head=False, pair_head=False, pooler=pooler, head_bias=False
    )
    idle = {"head", "pair"} if pooler else {"head", "pair", "pooler"}
    kept = {name: part for name, part in params.items() if name not in idle}
    return models.build(config, platform=jax.default_backend()), kept
