"""The table of tasks."""

from lmjax.config.task import TaskConfig
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.classify import Classify
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tasks.preference import Preference
from lmjax.tasks.seq2seq import PromptedLM, Seq2Seq
from lmjax.tasks.span_qa import SpanQA
from lmjax.tasks.tag import Tag
from lmjax.tasks.task import Task
from lmjax.tasks.word_vectors import WordVectors

TASKS: dict[str, type[Task]] = {
    "causal_lm": CausalLM,
    "masked_lm": MaskedLM,
    "span_corruption": Seq2Seq,
    "prefix_lm": Seq2Seq,
    "infilling": Seq2Seq,
    "word_vectors": WordVectors,
    "seq2seq": Seq2Seq,
    "prompted_lm": PromptedLM,
    "preference": Preference,
    "classify": Classify,
    "tag": Tag,
    "span_qa": SpanQA,
}


def build(config: TaskConfig) -> Task:
    """Return the task of a config."""
    return TASKS[config.kind](config)
