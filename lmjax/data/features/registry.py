"""The table of features: how the examples of each task are read."""

from lmjax.config.experiment import Config
from lmjax.data.features.chat import ChatFeatures
from lmjax.data.features.classify import ClassifyFeatures
from lmjax.data.features.features import Features
from lmjax.data.features.preference import PreferenceFeatures
from lmjax.data.features.prompted_lm import PromptedLMFeatures
from lmjax.data.features.seq2seq import Seq2SeqFeatures
from lmjax.data.features.span_qa import SpanQAFeatures
from lmjax.data.features.tag import TagFeatures

FEATURES: dict[str, type[Features]] = {
    "classify": ClassifyFeatures,
    "tag": TagFeatures,
    "span_qa": SpanQAFeatures,
    "seq2seq": Seq2SeqFeatures,
    "prompted_lm": PromptedLMFeatures,
    "preference": PreferenceFeatures,
}


def make_features(config: Config) -> Features:
    """Return the features of a task that learns from examples."""
    if config.data.source == "chat":
        return ChatFeatures.from_config(config)
    return FEATURES[config.task.kind].from_config(config)
