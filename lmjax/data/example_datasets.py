"""Open the examples of a config, and find their labels."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lmjax.config.experiment import Config, resolve_num_labels
from lmjax.config.task import (
    ExampleTaskConfig,
    LabelTaskConfig,
    PredictionTaskConfig,
    TagConfig,
)
from lmjax.data.features.dataset import ExamplePart
from lmjax.data.features.registry import make_features
from lmjax.data.formats.examples import Examples, add_location, explain_bad_example
from lmjax.data.formats.registry import open_examples
from lmjax.data.formats.tfds import TfdsExamples
from lmjax.data.sources.registry import Split
from lmjax.errors import ConfigError, UserError, nearest
from lmjax.metrics import spans


def reads_examples(config: Config) -> bool:
    """Return whether the task of a run is trained on examples, not on documents."""
    return isinstance(config.task, ExampleTaskConfig)


def resolve_labels(config: Config) -> Config:
    """Set `task.labels` from the training data, and `model.num_labels` from them.

    Raises:
      UserError: an example cannot be read, or there are fewer than two labels, or only
        some of them are labels of spans.
    """
    task = config.task
    if not isinstance(task, LabelTaskConfig):
        return config
    if not task.labels:
        task = dataclasses.replace(task, labels=_find_labels(config))
    if isinstance(task, TagConfig):
        _check_spans(task)
    model = resolve_num_labels(config.model, task)
    return dataclasses.replace(config, task=task, model=model)


def open_splits(config: Config, *, splits: Sequence[Split]) -> dict[Split, ExamplePart]:
    """Open the examples of each split that the data has.

    Raises:
      UserError: a file cannot be read.
    """
    config = resolve_labels(config)
    features = make_features(config)
    opened = {split: _open_split(config, split) for split in splits}
    return {
        split: ExamplePart(
            examples=examples,
            features=features,
            on_bad_example=config.data.on_bad_example,
            kept=split != "train" and isinstance(config.task, PredictionTaskConfig),
        )
        for split, examples in opened.items()
        if examples is not None
    }


def _open_split(config: Config, split: Split) -> Examples | None:
    if config.data.source == "none":
        raise ConfigError(
            "config.data.source = 'none': an imported model has no examples; set "
            "--config.data.source and --config.data.path"
        )
    examples = open_examples(config.data, split=split)
    if examples is None and split == "train":
        raise ConfigError("config.data.train_split = '': must name a split")
    return examples


def _find_labels(config: Config) -> tuple[str, ...]:
    """Return the labels of the training data, sorted.

    For a TFDS dataset that declares class names, these, in its order.
    """
    features: Any = make_features(config)
    examples = _open_split(config, "train")
    assert examples is not None
    field = features.label_field
    if isinstance(examples, TfdsExamples) and examples.class_names(field):
        return examples.class_names(field)
    labels, bad = set[str](), list[str]()
    for i in range(len(examples)):
        try:
            labels.update(features.label(examples[i]))
        except UserError as error:
            if config.data.on_bad_example == "error":
                raise explain_bad_example(error, examples.where(i)) from error
            bad.append(str(add_location(error, examples.where(i))))
    if len(labels) < 2:
        only = "".join(f", {label!r}," for label in labels)
        skipped = "".join(f" (the first example skipped: {why})" for why in bad[:1])
        raise ConfigError(
            f"config.data.path = {config.data.path!r}: has {len(labels)} label{only} "
            f"in {field!r}; there must be at least two{skipped}"
        )
    return tuple(sorted(labels, key=_sort_key))


def _check_spans(task: TagConfig) -> None:
    """Raise if only some of the labels are labels of spans."""
    kinds = spans.kinds(task.labels)
    for label in task.labels if kinds else ():
        if not spans.are([label]):
            others = [other for other in task.labels if spans.are([other])]
            raise ConfigError(
                f"config.task.labels: {label!r} is neither O nor B-, I-, E- or S- with "
                f"a type, but {others[0]!r} is{nearest(label, others)}"
            )
    for kind in task.unscored:
        if kind not in kinds:
            raise ConfigError(
                f"config.task.unscored: {kind!r} is no type of span"
                f"{nearest(kind, kinds)}; the labels are {', '.join(kinds) or 'none'}"
            )


def _sort_key(label: str) -> tuple[bool, int, str]:
    """Sort labels that are integers by their value, before all others."""
    number = label.removeprefix("-").isdecimal() and label.isascii()
    return (False, int(label), label) if number else (True, 0, label)
