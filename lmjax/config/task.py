"""What is learned, as config sections: one class for each objective."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from lmjax.config.decoding import DecodingConfig, Metric
from lmjax.config.leaf_types import (
    Fraction,
    Interval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    runtime_field,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What all losses over tokens have."""

    label_smoothing: Fraction = 0.0
    z_loss: NonNegativeFloat = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLMConfig(LossConfig):
    """Predict each token from those before it."""

    kind: Literal["causal_lm"] = "causal_lm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLMConfig(LossConfig):
    """Predict masked tokens from all others (BERT, Devlin et al. 2019)."""

    kind: Literal["masked_lm"] = "masked_lm"
    mask_rate: Fraction = 0.15  # of tokens to predict
    mask_share: Fraction = 0.8  # of those, replaced by the mask token
    random_share: Fraction = 0.1  # of those, by a random one; the rest stay
    whole_words: bool = False  # a word's pieces are predicted all or none
    sentence_order: bool = False  # also tell which half came first (ALBERT)

    def validate(self, path: str) -> Iterator[str]:
        """Yield what is wrong between fields."""
        if self.mask_share + self.random_share > 1:
            yield (
                f"{path}.random_share = {self.random_share}: must be at most 1 - "
                f"{path}.mask_share = {1 - self.mask_share:g}"
            )
        if not self.mask_rate:
            yield f"{path}.mask_rate = 0.0: must be > 0, for something to predict"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruptionConfig(LossConfig):
    """Write what was dropped from the source (T5, Raffel et al. 2020)."""

    kind: Literal["span_corruption"] = "span_corruption"
    noise_density: Annotated[float, Interval(0.01, 0.99)] = 0.15  # of tokens to drop
    mean_span_length: Annotated[float, Interval(1)] = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLMConfig(LossConfig):
    """Write what follows the source (Raffel et al. 2020, section 3.3.1)."""

    kind: Literal["prefix_lm"] = "prefix_lm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfillingConfig(LossConfig):
    """Write the whole text, from one with holes in it (BART, Lewis et al. 2020)."""

    kind: Literal["infilling"] = "infilling"
    mask_rate: Annotated[float, Interval(0.01, 0.99)] = 0.3  # of tokens to take out
    mean_span_length: Annotated[float, Interval(0.1)] = 3.0  # of a Poisson distribution
    sentence_permutation: bool = False  # also put sentences in another order


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleTaskConfig(LossConfig):
    """What all tasks have that learn from examples, not from a stream of text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionTaskConfig(ExampleTaskConfig):
    """What tasks have whose answers evaluation makes, and compares to what is right."""

    num_answers: NonNegativeInt = runtime_field(
        0
    )  # of valid, at each evaluation; 0: all


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationTaskConfig(PredictionTaskConfig):
    """What tasks have whose answers are written, token by token."""

    template: str = "{source}"  # what the model reads, such as "summarize: {source}"
    metrics: tuple[Metric, ...] = runtime_field(("bleu", "chrf"))  # of the answers
    write: DecodingConfig = runtime_field(DecodingConfig())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig(GenerationTaskConfig):
    """Write the target of each source: translation, summarization."""

    kind: Literal["seq2seq"] = "seq2seq"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptedLMConfig(GenerationTaskConfig):
    """Go on from a prompt with its target: instruction tuning."""

    kind: Literal["prompted_lm"] = "prompted_lm"


# How a word is spelled (Collobert et al. 2011): its letters are small, capitals, the
# first of them one, or another one; or there is none.
CASES = ("none", "lower", "upper", "title", "mixed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelTaskConfig(ExampleTaskConfig):
    """What tasks with a set of labels have."""

    labels: tuple[str, ...] = ()  # (): those of the training data, sorted

    def validate(self, path: str) -> Iterator[str]:
        """Yield what is wrong between fields."""
        if len(self.labels) == 1:
            yield f"{path}.labels = {self.labels}: must be at least two"
        for label in dict.fromkeys(self.labels):
            if self.labels.count(label) > 1:
                yield f"{path}.labels: {label!r} is there more than once"
            if fault := label_fault(label):
                yield f"{path}.labels: {label!r} {fault}"


def label_fault(label: str) -> str:
    """Return what keeps a text from being a label, or "" of one that is."""
    if not label.strip():
        return "is empty"
    if label != label.strip() or len(label.splitlines()) > 1:
        return "has white space around it, or a line end in it"
    half = any("\ud800" <= character <= "\udfff" for character in label)
    return "has half of a surrogate pair" if half else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyConfig(LabelTaskConfig):
    """Give each text, or pair of texts, one of some labels."""

    kind: Literal["classify"] = "classify"
    # what stays of a text that is too long; both: half of either (Sun et al. 2019)
    keep: Literal["start", "end", "both"] = "start"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TagConfig(LabelTaskConfig, PredictionTaskConfig):
    """Give each word of a sentence a label: that of one of its tokens."""

    kind: Literal["tag"] = "tag"
    repair: bool = True  # predictions: an I- that continues nothing begins a span
    casing: bool = False  # a token's type tells its word's capitals, one of CASES
    # how a predicate is shown: its tokens are of type 1, or stand between separators
    mark_predicate: Literal["token_types", "separators"] = "token_types"
    # types of spans that precision, recall and F1 leave out
    unscored: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanQAConfig(PredictionTaskConfig):
    """Find the answer to a question in a text, which is read through windows."""

    kind: Literal["span_qa"] = "span_qa"
    max_question_tokens: PositiveInt = 64  # a longer question is cut
    stride: PositiveInt = (
        128  # tokens from the beginning of a window to that of the next
    )
    max_answer_tokens: PositiveInt = runtime_field(30)  # that a prediction has
    negative_windows: bool = True  # learn from windows without the answer, too
    no_answer: bool = False  # some questions have none (SQuAD 2.0)
    no_answer_threshold: float = runtime_field(
        0.0
    )  # what none must score above the best


TaskConfig = (
    CausalLMConfig
    | MaskedLMConfig
    | SpanCorruptionConfig
    | PrefixLMConfig
    | InfillingConfig
    | Seq2SeqConfig
    | PromptedLMConfig
    | ClassifyConfig
    | TagConfig
    | SpanQAConfig
)
# What the model's classifier answers, of each text or of each token.
ClassifierTask = ClassifyConfig | TagConfig | SpanQAConfig
# Objectives whose source and target are cut from one window of text.
WindowPairConfig = SpanCorruptionConfig | PrefixLMConfig | InfillingConfig


def outputs(task: TaskConfig) -> tuple[str, ...]:
    """Return what a task's own logits stand for; (): it has none, or not yet."""
    if isinstance(task, SpanQAConfig):
        return ("start", "end")
    return task.labels if isinstance(task, LabelTaskConfig) else ()


def num_predictions(length: int, *, rate: float) -> int:
    """Return how many of `length` tokens are predicted: the nearest, at least one."""
    return min(length, max(1, round(length * rate)))


def span_counts(length: int, config: SpanCorruptionConfig) -> tuple[int, int]:
    """Return how many of `length` tokens are dropped, and in how many spans.

    As in T5's `random_spans_noise_mask`: at least one token and one span, and at
    least one token stays. A single token counts as two.
    """
    length = max(length, 2)
    num_noise = min(max(round(length * config.noise_density), 1), length - 1)
    # A span begins after a kept token: no more spans than there are of those.
    num_spans = max(round(num_noise / config.mean_span_length), 1)
    return num_noise, min(num_spans, length - num_noise)


def span_corruption_lengths(
    length: int, config: SpanCorruptionConfig
) -> tuple[int, int]:
    """Return how many tokens give a source of at most `length`, and their target's.

    As T5's `random_spans_helper`: source and target hold a sentinel for each span,
    and an end.
    """

    def corrupted(window: int) -> tuple[int, int]:
        num_noise, num_spans = span_counts(window, config)
        return window - num_noise + num_spans + 1, num_noise + num_spans + 1

    window = 1
    while corrupted(window + 1)[0] <= length:
        window += 1
    return window, corrupted(window)[1]


def window_pair_lengths(
    length: int, config: WindowPairConfig, decoder_prefix_ids: Sequence[int] = (0,)
) -> tuple[int, int]:
    """Return how many tokens make a source of `length` at most, and a target.

    Args:
      length: of sources.
      config: how both are made.
      decoder_prefix_ids: of the model; targets begin with all but one of them.
    """
    opening = len(decoder_prefix_ids) - 1
    if isinstance(config, SpanCorruptionConfig):
        window, target = span_corruption_lengths(length, config)
        return window, opening + target
    if isinstance(config, InfillingConfig):
        return length - 1, opening + length  # the target is all of them, and an end
    return length, opening + length  # between them, and an end for each


def default_target_length(
    length: int, config: TaskConfig, decoder_prefix_ids: Sequence[int]
) -> int:
    """Return how long targets are where a config does not say; 0: there are none."""
    if isinstance(config, WindowPairConfig):
        return window_pair_lengths(length, config, decoder_prefix_ids)[1]
    if isinstance(config, Seq2SeqConfig):
        return length
    return length // 2 if isinstance(config, PromptedLMConfig) else 0
