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
    labelling,
)
from lmjax.data import task_features
from lmjax.data.example_store import ExamplePart, placed
from lmjax.data.examples import Examples, open_examples
from lmjax.data.sources import Split


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
        examples = _opened(config, "train")
        assert examples is not None
        task = dataclasses.replace(task, labels=_found(config, examples))
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
    return open_examples(config.data, split=split)


def _found(config: Config, examples: Examples) -> tuple[str, ...]:
    """Return the labels there are, in an order that only they decide."""
    read: Any = task_features.build(config)
    found = set[str]()
    for i in range(len(examples)):
        try:
            found.update(read.label(examples[i]))
        except ConfigError as error:
            if config.data.on_bad_example == "skip":
                continue
            raise placed(error, examples.where(i)) from error
    if len(found) < 2:
        raise ConfigError(
            f"config.data.path = {config.data.path!r}: needs examples of at least two "
            f"labels; found {', '.join(found) or 'none'}"
        )
    return tuple(sorted(found, key=_by_number))


def _by_number(label: str) -> tuple[bool, int, str]:
    """Sort labels that are numbers as such, before others."""
    number = label.removeprefix("-").isdecimal() and label.isascii()
    return (False, int(label), label) if number else (True, 0, label)
