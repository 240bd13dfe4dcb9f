"""From a config to the features of its task."""

from typing import Any, Literal

from lmjax.config import (
    ClassifyConfig,
    Config,
    PromptedLMConfig,
    Seq2SeqConfig,
    SpanQAConfig,
    TagConfig,
    WritingConfig,
)
from lmjax.data.classify_features import Classify
from lmjax.data.features import Features, Writing
from lmjax.data.prompted_features import PromptedLM
from lmjax.data.seq2seq_features import Seq2Seq
from lmjax.data.span_qa_features import SpanQA
from lmjax.data.tag_features import Tag
from lmjax.model_config import AnyEncoderDecoder


def build(config: Config) -> Features:
    """Return the features of a task that learns from examples."""
    task, names, length = config.task, config.data.fields, config.data.length
    if isinstance(task, WritingConfig):
        return build_writing(config, task)
    # What reads from left to right alone has seen a word, or a row, at its last token.
    seen_at: Literal["first", "last"] = "first" if config.model.reads_ahead else "last"
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
    return Classify(fields=names, labels=task.labels, length=length)


def build_writing(config: Config, task: WritingConfig) -> Writing:
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
    assert isinstance(config.model, AnyEncoderDecoder), config.model
    return Seq2Seq(**common, start_id=config.model.start_id)
