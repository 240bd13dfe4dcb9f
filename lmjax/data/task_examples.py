"""From a config to examples: what the labels are, and what each task reads."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lmjax.config import (
    Config,
    ConfigError,
    ExamplesConfig,
    JudgedConfig,
    LabelledConfig,
    TagConfig,
    labelling,
    nearest,
)
from lmjax.data import spans, task_features
from lmjax.data.example_formats import open_examples
from lmjax.data.example_store import ExamplePart, refused
from lmjax.data.examples import Examples
from lmjax.data.sources import Split
from lmjax.data.tfds_examples import TfdsExamples


def reads_examples(config: Config) -> bool:
    """Return whether a run learns from examples, not from a stream of text."""
    return isinstance(config.task, ExamplesConfig)


def with_labels(config: Config) -> Config:
    """Return the config with the labels of the training data, where it names none.

    Raises:
      ConfigError: an example cannot be read, or there are fewer than two labels.
    """
    task = config.task
    if not isinstance(task, LabelledConfig):
        return config
    if not task.labels:
        task = dataclasses.replace(task, labels=_found(config))
    if isinstance(task, TagConfig):
        _check_unscored(task)
    return dataclasses.replace(config, task=task, model=labelling(config.model, task))


def open_parts(config: Config, *, splits: Sequence[Split]) -> dict[Split, ExamplePart]:
    """Open the examples of each split there is.

    Raises:
      ConfigError: a file cannot be read.
    """
    config = with_labels(config)
    read = task_features.build(config)
    opened = {split: _opened(config, split) for split in splits}
    return {
        split: ExamplePart(
            examples=examples,
            features=read,
            on_bad_example=config.data.on_bad_example,
            kept=split != "train" and isinstance(config.task, JudgedConfig),
        )
        for split, examples in opened.items()
        if examples is not None
    }


def _opened(config: Config, split: Split) -> Examples | None:
    if config.data.source == "none":
        raise ConfigError(
            "config.data.source = 'none': an imported model has no examples; give "
            "--config.data.source, and what it needs"
        )
    opened = open_examples(config.data, split=split)
    if opened is None and split == "train":
        raise ConfigError("config.data.train_split = '': there must be one")
    return opened


def _found(config: Config) -> tuple[str, ...]:
    """Return the labels there are, in an order that only they decide.

    Of a dataset that knows its own they are these, in its order.
    """
    read: Any = task_features.build(config)
    examples = _opened(config, "train")
    if isinstance(examples, TfdsExamples) and examples.class_names(read.label_field):
        return examples.class_names(read.label_field)
    assert examples is not None
    found = set[str]()
    for i in range(len(examples)):
        try:
            found.update(read.label(examples[i]))
        except ConfigError as error:
            if config.data.on_bad_example == "skip":
                continue
            raise refused(error, examples.where(i)) from error
    if len(found) < 2:
        raise ConfigError(
            f"config.data.path = {config.data.path!r}: needs examples of at least two "
            f"labels; found {', '.join(found) or 'none'}"
        )
    return tuple(sorted(found, key=_by_number))


def _check_unscored(task: TagConfig) -> None:
    kinds = spans.kinds(task.labels)
    for kind in task.unscored:
        if kind not in kinds:
            raise ConfigError(
                f"config.task.unscored: {kind!r} is no type of span"
                f"{nearest(kind, kinds)}; there are {', '.join(kinds) or 'none'}"
            )


def _by_number(label: str) -> tuple[bool, int, str]:
    """Sort labels that are numbers as such, before others."""
    number = label.removeprefix("-").isdecimal() and label.isascii()
    return (False, int(label), label) if number else (True, 0, label)
