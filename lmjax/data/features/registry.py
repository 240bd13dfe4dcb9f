"""From a config to the features of its task."""

from typing import Any, Literal

from lmjax.config.experiment import Config
from lmjax.config.task import (
    ClassifyConfig,
    GenerationTaskConfig,
    PromptedLMConfig,
    Seq2SeqConfig,
    SpanQAConfig,
    TagConfig,
)
from lmjax.data.features.classify import Classify
from lmjax.data.features.features import Features, Writing
from lmjax.data.features.prompted_lm import PromptedLM
from lmjax.data.features.seq2seq import Seq2Seq
from lmjax.data.features.span_qa import SpanQA
from lmjax.data.features.tag import Tag


def make_features(config: Config) -> Features:
    """Return the features of a task that learns from examples."""
    task, names, length = config.task, config.data.fields, config.data.length
    if isinstance(task, GenerationTaskConfig):
        return make_text_features(config, task)
    # What reads from left to right alone has seen a word, or a row, at its last token.
    seen_at: Literal["first", "last"] = (
        "first" if config.model.is_bidirectional else "last"
    )
    if isinstance(task, TagConfig):
        return Tag(
            fields=names,
            labels=task.labels,
            length=length,
            repair=task.repair,
            unscored=task.unscored,
            casing=task.casing,
            mark=task.mark_predicate,
            label_at=seen_at,
        )
    if isinstance(task, SpanQAConfig):
        return SpanQA(fields=names, task=task, length=length, none_at=seen_at)
    assert isinstance(task, ClassifyConfig), task
    return Classify(fields=names, labels=task.labels, length=length, keep=task.keep)


def make_text_features(config: Config, task: GenerationTaskConfig) -> Writing:
    """Return the features of a task whose answers the model writes."""
    common: dict[str, Any] = {
        "fields": config.data.fields,
        "template": task.template,
        "metrics": task.metrics,
        "length": config.data.length,
        "target_length": config.data.target_length,
    }
    if isinstance(task, PromptedLMConfig):
        return PromptedLM(**common)
    assert isinstance(task, Seq2SeqConfig), task
    return Seq2Seq(**common, decoder_prefix_ids=config.model.decoder_prefix_ids)
