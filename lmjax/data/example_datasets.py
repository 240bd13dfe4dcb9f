"""Open the examples of a config, and find their labels."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from lmjax.config.experiment import Config, resolve_num_labels
from lmjax.data.features.dataset import ExamplePart
from lmjax.data.features.registry import make_features
from lmjax.data.formats.examples import Examples, add_location, explain_bad_example
from lmjax.data.formats.registry import open_examples
from lmjax.data.formats.tfds import TfdsExamples
from lmjax.data.sources.find import Split
from lmjax.errors import ConfigError, UserError
from lmjax.metrics import spans

_NUM_TAGGED = 1000  # sentences that show the scheme of tags


def reads_examples(config: Config) -> bool:
    """Return whether the task of a run is trained on examples, not on documents."""
    return config.task.reads_examples


def resolve_labels(config: Config) -> Config:
    """Set `task.labels` from the training data, and `model.num_labels` from them.

    Raises:
      UserError: an example cannot be read, or there are fewer than two labels, or only
        some of them are labels of spans.
    """
    task: Any = config.task
    if not task.has_labels:
        return config
    if not task.labels:
        examples = _open_split(config, "train")
        assert examples is not None
        task = dataclasses.replace(task, labels=_find_labels(config, examples))
        task = _resolve_scheme(dataclasses.replace(config, task=task), examples)
    model = resolve_num_labels(config.model, task)
    config = dataclasses.replace(config, task=task, model=model)
    make_features(config).check_labels()
    return config


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
            keeps_examples=split != "train" and config.task.compares_predictions,
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


def _resolve_scheme(config: Config, examples: Examples) -> Any:
    """Return the task with the scheme of the tags of some training examples."""
    task: Any = config.task
    if task.kind != "tag" or task.scheme != "auto":
        return task
    features = make_features(config)
    sentences = []
    for i in range(min(len(examples), _NUM_TAGGED)):
        with contextlib.suppress(UserError):  # reported where labels are collected
            sentences.append(features.labels_of(examples[i]))
    scheme = spans.find_scheme(task.labels, sentences)
    return dataclasses.replace(task, scheme=scheme or task.scheme)


def _find_labels(config: Config, examples: Examples) -> tuple[str, ...]:
    """Return the labels of the training data, sorted.

    For a TFDS dataset that declares class names, these, in its order.
    """
    features = make_features(config)
    field = features.label_field
    if isinstance(examples, TfdsExamples) and examples.class_names(field):
        return examples.class_names(field)
    labels, bad = set[str](), list[str]()
    for i in range(len(examples)):
        try:
            labels.update(features.labels_of(examples[i]))
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


def _sort_key(label: str) -> tuple[bool, int, str]:
    """Sort labels that are integers by their value, before all others."""
    number = label.removeprefix("-").isdecimal() and label.isascii()
    return (False, int(label), label) if number else (True, 0, label)
