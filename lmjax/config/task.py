"""Tasks that learn from examples, and the union of all tasks.

To add a task, add its class to `TaskConfig`, its loss to `lmjax/tasks/registry.py`,
and, if it learns from examples, its features to `lmjax/data/features/registry.py`.
"""

import dataclasses
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from lmjax.config.data import NESTED_RECORDS, RECORDS
from lmjax.config.decoding import (
    SAMPLING_LEAVES,
    BleuTokenizer,
    DecodingConfig,
    Metric,
    decoding_conflicts,
)
from lmjax.config.leaf_types import NonNegativeInt, PositiveInt, runtime_field
from lmjax.config.model import CAUSAL_KINDS, SOURCE_KINDS
from lmjax.config.preference import PreferenceConfig
from lmjax.config.text_task import (
    CausalLMConfig,
    InfillingConfig,
    MaskedLMConfig,
    PrefixLMConfig,
    SpanCorruptionConfig,
    TaskBaseConfig,
    VocabularyTaskConfig,
    WordVectorsTaskConfig,
)

LABEL_KINDS = ("encoder", "decoder", "recurrent")  # models that have a classifier
MAX_SPECIAL_TOKENS = 8  # around texts; no known model has more than four
# How a word is spelled (Collobert et al. 2011): in small letters, in capitals, the
# first of them a capital, or another one; or it has no letters.
CASES = ("none", "lower", "upper", "title", "mixed")
# Of tags, each with its letters; BMES is also BMEWO.
Scheme = Literal["auto", "IOB1", "IOB2", "IOE1", "IOE2", "IOBES", "BILOU", "BMES"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionTaskConfig(TaskBaseConfig):
    """Tasks whose predictions are evaluated by whole examples."""

    # examples of valid that are predicted at each evaluation; 0: all
    num_answers: NonNegativeInt = runtime_field(0)
    compares_predictions = True

    def num_predicted(self, split: str) -> int:
        """Return `num_answers` for the valid split; all of the test split count."""
        return self.num_answers if split == "valid" else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationTaskConfig(PredictionTaskConfig, VocabularyTaskConfig):
    """Tasks whose predictions are texts, decoded token by token."""

    template: str = "{source}"  # the input of the model, such as "summarize: {source}"
    metrics: tuple[Metric, ...] = runtime_field(("bleu", "chrf"))  # of the predictions
    # Of the targets, such as "en" or "zh-CN", for the metrics; "": that of the name of
    # parallel files, else found by their script.
    language: str = runtime_field("")
    # sacrebleu's; "auto": by the language
    bleu_tokenizer: BleuTokenizer = runtime_field("auto")
    write: DecodingConfig = runtime_field(DecodingConfig())
    example_sources: ClassVar[tuple[str, ...]] = ("parallel", *RECORDS)
    has_target = True

    @property
    def decoding(self) -> DecodingConfig:
        """Return how predictions are decoded."""
        return self.write

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems of the fields."""
        yield from language_problems(self.language, path)

    def conflicts(self, config: Any, path: str) -> Iterator[str]:
        """Yield the conflicts of the task with other sections of a `Config`."""
        yield from decoding_conflicts(config, path)

    def prediction_conflicts(self, config: Any, path: str) -> Iterator[str]:
        """Yield settings of sampling, which predictions do not do."""
        for leaf in SAMPLING_LEAVES:
            value, neutral = getattr(self.write, leaf), getattr(DecodingConfig, leaf)
            if value != neutral:
                yield (
                    f"{path}.task.write.{leaf} = {value}: must be {neutral:g} for "
                    f"{path}.task.kind = {config.task.kind!r}, whose predictions are "
                    "not sampled"
                )


def language_problems(language: str, path: str) -> Iterator[str]:
    """Yield the problem of a code of a language, if it is none."""
    if language and not re.fullmatch("[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*", language):
        yield (
            f"{path}.language = {language!r}: must be the code of a language, such as "
            "en, zh-CN or jpn_Jpan, or empty"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig(GenerationTaskConfig):
    """Predict the target of each source: translation, summarization."""

    kind: Literal["seq2seq"] = "seq2seq"
    model_kinds = SOURCE_KINDS

    def default_target_length(
        self, length: int, decoder_prefix_ids: Sequence[int]
    ) -> int:
        """Return the length of sources."""
        return length


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptedLMConfig(GenerationTaskConfig):
    """Continue a prompt with its target: instruction tuning.

    Of a chat each turn of the assistant is a target.
    """

    kind: Literal["prompted_lm"] = "prompted_lm"
    model_kinds = CAUSAL_KINDS
    example_sources = (*GenerationTaskConfig.example_sources, "chat")
    packs_examples = True

    def default_target_length(
        self, length: int, decoder_prefix_ids: Sequence[int]
    ) -> int:
        """Return half a row."""
        return length // 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelTaskConfig(TaskBaseConfig):
    """Tasks with a set of labels."""

    labels: tuple[str, ...] = ()  # (): those of the training data, sorted
    model_kinds = LABEL_KINDS
    uses_classifier = True

    @property
    def has_labels(self) -> bool:
        """Return True: where they are not given, they come from the training data."""
        return True

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the labels."""
        return self.labels

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields."""
        if len(self.labels) == 1:
            yield f"{path}.labels = {self.labels}: must be at least two"
        for label in dict.fromkeys(self.labels):
            if self.labels.count(label) > 1:
                yield f"{path}.labels: {label!r} is there more than once"
            if fault := label_fault(label):
                yield f"{path}.labels: {label!r} {fault}"


def label_fault(label: str) -> str:
    """Return why a text cannot be a label, or "" if it can."""
    if not label.strip():
        return "is empty"
    if label != label.strip() or len(label.splitlines()) > 1:
        return "has white space around it, or a line end in it"
    half = any("\ud800" <= character <= "\udfff" for character in label)
    return "has half of a surrogate pair" if half else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyConfig(LabelTaskConfig):
    """Predict the label of each text, or pair of texts."""

    kind: Literal["classify"] = "classify"
    # The part of a text that is kept if it is too long; both: half of either (Sun et
    # al. 2019).
    keep: Literal["start", "end", "both"] = "start"
    example_sources = RECORDS
    example_fields = ("text", "pair", "label")

    def conflicts(self, config: Any, path: str) -> Iterator[str]:
        """Yield the conflicts of the task with other sections of a `Config`."""
        model = config.model
        if model.kind == "encoder" and model.summary == "pooler" and not model.pooler:
            yield (
                f"{path}.model.pooler = False: {path}.task.kind = 'classify' needs it, "
                f"unless {path}.model.summary is 'first' or 'mean'"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TagConfig(LabelTaskConfig, PredictionTaskConfig):
    """Predict a label for each word of a sentence, at one of its tokens."""

    kind: Literal["tag"] = "tag"
    repair: bool = True  # predictions: an I- that continues no span begins one
    casing: bool = False  # a token's type is the case of its word, one of CASES
    # How a predicate is marked: its tokens are of type 1, or between separators.
    mark_predicate: Literal["token_types", "separators"] = "token_types"
    # What the letters of tags mean; "auto": found by the labels and the training data.
    scheme: Scheme = runtime_field("auto")
    # Spans are read as by seqeval's mode="strict", else as in the scoring of CoNLL.
    strict: bool = runtime_field(default=False)
    # Types of spans that precision, recall and F1 leave out.
    unscored: tuple[str, ...] = ()
    example_sources = ("conll", "props", *NESTED_RECORDS)
    example_fields = ("tokens", "predicate", "tags")

    def conflicts(self, config: Any, path: str) -> Iterator[str]:
        """Yield the conflicts of the task with other sections of a `Config`."""
        num_types = getattr(config.model, "num_token_types", 0)
        if self.casing and num_types < len(CASES):
            yield (
                f"{path}.task.casing = True: needs {path}.model.num_token_types of at "
                f"least {len(CASES)}, not {num_types}"
            )
        if not config.data.fields.predicate or self.mark_predicate != "token_types":
            return
        why = f"{path}.task.mark_predicate = 'token_types'"
        if self.casing:
            yield (
                f"{why}: must be 'separators' with {path}.task.casing, which uses the "
                "token types"
            )
        if num_types < 2:
            yield (
                f"{why}: needs {path}.model.num_token_types of at least 2, not "
                f"{num_types}; 'separators' works with any model"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanQAConfig(PredictionTaskConfig):
    """Find the answer to a question in a text, which is read through windows."""

    kind: Literal["span_qa"] = "span_qa"
    max_question_tokens: PositiveInt = 64  # a longer question is cut
    stride: PositiveInt = 128  # tokens from the start of a window to that of the next
    max_answer_tokens: PositiveInt = runtime_field(30)  # of a prediction
    negative_windows: bool = True  # train on windows without the answer, too
    no_answer: bool = False  # some questions have none (SQuAD 2.0)
    # Of the answers, such as "de" or "zh-CN", for the metrics; "": by their script.
    language: str = runtime_field("")
    # lead of "no answer" over the best span
    no_answer_threshold: float = runtime_field(0.0)
    model_kinds = LABEL_KINDS
    example_sources = ("squad", *NESTED_RECORDS)
    example_fields = ("question", "context", "answers")
    uses_classifier = True
    can_distill = False

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the two ends of an answer."""
        return ("start", "end")

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems of the fields."""
        yield from language_problems(self.language, path)

    def prediction_conflicts(self, config: Any, path: str) -> Iterator[str]:
        """Yield lengths with which an answer could be split between two windows."""
        leaves = ("max_question_tokens", "stride", "max_answer_tokens")
        needed = sum(getattr(self, leaf) for leaf in leaves) + MAX_SPECIAL_TOKENS
        if config.data.length < needed:
            terms = " + ".join(f"{path}.task.{leaf}" for leaf in leaves)
            yield (
                f"{path}.data.length = {config.data.length}: must be at least "
                f"{needed}, which is {terms} + {MAX_SPECIAL_TOKENS}"
            )


TaskConfig = (
    CausalLMConfig
    | MaskedLMConfig
    | SpanCorruptionConfig
    | PrefixLMConfig
    | InfillingConfig
    | WordVectorsTaskConfig
    | Seq2SeqConfig
    | PromptedLMConfig
    | PreferenceConfig
    | ClassifyConfig
    | TagConfig
    | SpanQAConfig
)


def example_task_kinds() -> list[str]:
    """Return the kinds of the tasks that learn from examples."""
    return [task.kind for task in typing.get_args(TaskConfig) if task.example_sources]
