"""From a config to the features of its task."""

from lmjax.config import ClassifyConfig, Config, SpanQAConfig, TagConfig
from lmjax.data.classify_features import Classify
from lmjax.data.features import Features
from lmjax.data.span_qa_features import SpanQA
from lmjax.data.tag_features import Tag
from lmjax.model_config import CAUSAL_KINDS


def build(config: Config) -> Features:
    """Return the features of a task that learns from examples."""
    task, names, length = config.task, config.data.fields, config.data.length
    if isinstance(task, TagConfig):
        # What reads from left to right has seen a word only at its last token.
        causal = config.model.kind in CAUSAL_KINDS
        return Tag(
            fields=names,
            labels=task.labels,
            length=length,
            repair=task.repair,
            casing=task.casing,
            mark=task.mark_predicate,
            label_at="last" if causal else "first",
        )
    if isinstance(task, SpanQAConfig):
        return SpanQA(fields=names, task=task, length=length)
    assert isinstance(task, ClassifyConfig), task
    return Classify(fields=names, labels=task.labels, length=length)
