"""From a config to examples: what the labels are, and what each task reads."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lmjax.config.experiment import Config, with_classifier
from lmjax.data.features.dataset import ExamplePart
from lmjax.data.features.registry import make_features
from lmjax.data.formats.examples import Examples, add_location, explain_bad_example
from lmjax.data.formats.registry import open_examples
from lmjax.data.formats.tfds import TfdsExamples
from lmjax.data.sources.registry import Split
from lmjax.errors import ConfigError, UserError


def reads_examples(config: Config) -> bool:
    """Return whether a run learns from examples, not from a stream of text."""
    return config.task.reads_examples


def with_labels(config: Config) -> Config:
    """Return the config with the labels of the training data, where it names none.

    Raises:
      ConfigError: an example cannot be read, or there are fewer than two labels, or
        some of them are of spans and some are not.
    """
    task: Any = config.task
    if not task.has_labels:
        return config
    if not task.labels:
        task = dataclasses.replace(task, labels=_found(config))
    model = with_classifier(config.model, task)
    config = dataclasses.replace(config, task=task, model=model)
    make_features(config).check_labels()
    return config


def open_parts(config: Config, *, splits: Sequence[Split]) -> dict[Split, ExamplePart]:
    """Open the examples of each split there is.

    Raises:
      ConfigError: a file cannot be read.
    """
    config = with_labels(config)
    features = make_features(config)
    opened = {split: _opened(config, split) for split in splits}
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
    features = make_features(config)
    examples = _opened(config, "train")
    if isinstance(examples, TfdsExamples) and examples.class_names(
        features.label_field
    ):
        return examples.class_names(features.label_field)
    assert examples is not None
    found, bad = set[str](), list[str]()
    for i in range(len(examples)):
        try:
            found.update(features.labels_of(examples[i]))
        except UserError as error:
            if config.data.on_bad_example == "error":
                raise explain_bad_example(error, examples.where(i)) from error
            bad.append(str(add_location(error, examples.where(i))))
    if len(found) < 2:
        alone = "".join(f", {label!r}," for label in found)
        skipped = "".join(f" (the first left out: {why})" for why in bad[:1])
        raise ConfigError(
            f"config.data.path = {config.data.path!r}: has {len(found)} label{alone} "
            f"in {features.label_field!r}; there must be at least two{skipped}"
        )
    return tuple(sorted(found, key=_by_number))


def _by_number(label: str) -> tuple[bool, int, str]:
    """Sort labels that are numbers as such, before others."""
    number = label.removeprefix("-").isdecimal() and label.isascii()
    return (False, int(label), label) if number else (True, 0, label)
