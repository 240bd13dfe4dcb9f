"""What is learned, as config sections: one class for each objective."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from lmjax.model_config import CAUSAL_KINDS, CountOrZero, Fraction, NonNegative
from lmjax.parsing import Range, runtime
from lmjax.write_config import Metric, WriteConfig, writing_mistakes


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What all losses over tokens have."""

    label_smoothing: Fraction = 0.0
    z_loss: NonNegative = 0.0


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

    def mistakes(self, path: str) -> Iterator[str]:
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
    noise_density: Annotated[float, Range(0.01, 0.99)] = 0.15  # of tokens to drop
    mean_span_length: Annotated[float, Range(1)] = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLMConfig(LossConfig):
    """Write what follows the source (Raffel et al. 2020, section 3.3.1)."""

    kind: Literal["prefix_lm"] = "prefix_lm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfillingConfig(LossConfig):
    """Write the whole text, from one with holes in it (BART, Lewis et al. 2020)."""

    kind: Literal["infilling"] = "infilling"
    mask_rate: Annotated[float, Range(0.01, 0.99)] = 0.3  # of tokens to take out
    mean_span_length: Annotated[float, Range(0.1)] = 3.0  # of a Poisson distribution
    sentence_permutation: bool = False  # also put sentences in another order


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExamplesConfig(LossConfig):
    """What all tasks have that learn from examples, not from a stream of text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgedConfig(ExamplesConfig):
    """What tasks have whose answers are texts: evaluation makes and compares them."""

    num_answers: CountOrZero = runtime(0)  # of valid, at each evaluation; 0: all


@dataclasses.dataclass(frozen=True, kw_only=True)
class WritingConfig(JudgedConfig):
    """What tasks have whose answers are written, token by token."""

    template: str = "{source}"  # what the model reads, such as "summarize: {source}"
    metrics: tuple[Metric, ...] = runtime(("bleu", "chrf"))  # of the answers
    write: WriteConfig = runtime(WriteConfig())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig(WritingConfig):
    """Write the target of each source: translation, summarization."""

    kind: Literal["seq2seq"] = "seq2seq"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptedLMConfig(WritingConfig):
    """Go on from a prompt with its target: instruction tuning."""

    kind: Literal["prompted_lm"] = "prompted_lm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledConfig(ExamplesConfig):
    """What tasks with a set of labels have."""

    labels: tuple[str, ...] = ()  # (): those of the training data, sorted

    def mistakes(self, path: str) -> Iterator[str]:
        """Yield what is wrong between fields."""
        if len(self.labels) == 1:
            yield f"{path}.labels = {self.labels}: must be at least two"
        for label in dict.fromkeys(self.labels):
            if self.labels.count(label) > 1:
                yield f"{path}.labels: {label!r} is there more than once"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyConfig(LabelledConfig):
    """Give each text, or pair of texts, one of some labels."""

    kind: Literal["classify"] = "classify"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TagConfig(LabelledConfig):
    """Give each word of a sentence a label: that of its first token."""

    kind: Literal["tag"] = "tag"
    repair: bool = True  # predictions: an I- that continues nothing begins a span


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
)
# Objectives whose source and target are cut from one window of text.
WindowPairConfig = SpanCorruptionConfig | PrefixLMConfig | InfillingConfig


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


def seq2seq_lengths(length: int, config: WindowPairConfig) -> tuple[int, int]:
    """Return how many tokens make a source of `length` at most, and a target."""
    if isinstance(config, SpanCorruptionConfig):
        return span_corruption_lengths(length, config)
    if isinstance(config, InfillingConfig):
        return length - 1, length  # the target is all of them, and an end
    return length, length  # between them, and an end for each


def default_target_length(length: int, config: TaskConfig) -> int:
    """Return how long targets are where a config does not say; 0: there are none."""
    if isinstance(config, WindowPairConfig):
        return seq2seq_lengths(length, config)[1]
    if isinstance(config, Seq2SeqConfig):
        return length
    return length // 2 if isinstance(config, PromptedLMConfig) else 0


# The shapes of network that each objective is for.
MODEL_KINDS = {
    "causal_lm": CAUSAL_KINDS,
    "masked_lm": ("encoder",),
    "span_corruption": ("encoder_decoder",),
    "prefix_lm": ("encoder_decoder",),
    "infilling": ("encoder_decoder",),
    "seq2seq": ("encoder_decoder",),
    "prompted_lm": CAUSAL_KINDS,
    "classify": ("encoder", "decoder"),
    "tag": ("encoder", "decoder"),
}
# Where each task's examples may come from, and the sources of nothing else.
EXAMPLE_SOURCES = {
    "seq2seq": ("parallel", "jsonl", "tsv", "csv"),
    "prompted_lm": ("parallel", "jsonl", "tsv", "csv"),
    "classify": ("jsonl", "tsv", "csv"),
    "tag": ("conll", "jsonl"),
}
ONLY_EXAMPLES = ("tsv", "csv", "conll", "parallel")
SHORTEST = 8  # tokens, of which the ends and a span still leave some


def objective_mistakes(config: Any, path: str) -> Iterator[str]:
    """Yield what keeps a `Config`'s model, data and samples from serving its task.

    Where there are no data there is nothing to learn: an imported model may be of any
    kind.
    """
    task, model, data = config.task, config.model, config.data
    if data.source == "none":
        return
    if model.kind not in MODEL_KINDS[task.kind]:
        kinds = " or ".join(map(repr, MODEL_KINDS[task.kind]))
        yield (
            f"{path}.task.kind = {task.kind!r}: needs {path}.model.kind = {kinds}, "
            f"not {model.kind!r}"
        )
        return
    yield from _source_mistakes(config, path)
    if model.kind == "encoder" and config.sample.prompts:
        yield (
            f"{path}.sample.prompts = {config.sample.prompts}: must be empty: an "
            "encoder does not write"
        )
    if task.kind != "causal_lm" and data.length < SHORTEST:
        yield (
            f"{path}.data.length = {data.length}: must be at least {SHORTEST} for "
            f"{path}.task.kind = {task.kind!r}"
        )
    yield from _sample_mistakes(config, path)
    if data.order == "contiguous":
        yield from _contiguous_mistakes(config, path)
    if isinstance(task, MaskedLMConfig):
        yield from _masked_lm_mistakes(config, path)
    if isinstance(task, LabelledConfig):
        yield from _labelled_mistakes(config, path)
    if isinstance(task, WindowPairConfig):
        yield from _window_pair_mistakes(config, path)
    elif isinstance(task, WritingConfig):
        yield from writing_mistakes(config, path)
    elif data.target_length:
        yield (
            f"{path}.data.target_length = {data.target_length}: must be 0: "
            f"{path}.task.kind = {task.kind!r} has no target apart from its row"
        )


def _source_mistakes(config: Any, path: str) -> Iterator[str]:
    """Yield what keeps the data from being what the task learns from."""
    kind, source = config.task.kind, config.data.source
    allowed = EXAMPLE_SOURCES.get(kind, ())
    if allowed and source not in allowed:
        yield (
            f"{path}.data.source = {source!r}: must be one of {', '.join(allowed)} for "
            f"{path}.task.kind = {kind!r}"
        )
    sources = [source, *(part.source for part in config.data.mixture)]
    for name in sources if not allowed else ():
        if name in ONLY_EXAMPLES:
            yield (
                f"{path}.data.source = {name!r}: holds examples, not the text "
                f"that {path}.task.kind = {kind!r} learns from"
            )


def _labelled_mistakes(config: Any, path: str) -> Iterator[str]:
    task, model = config.task, config.model
    if model.kind == "encoder" and task.kind == "classify" and not model.pooler:
        yield f"{path}.model.pooler = False: {path}.task.kind = 'classify' needs it"
    if model.num_labels and model.num_labels != len(task.labels):
        yield (
            f"{path}.model.num_labels = {model.num_labels}: must be 0, or as many as "
            f"{path}.task.labels has: {len(task.labels)}"
        )
    if config.sample.prompts and model.kind != "encoder":  # said of all encoders
        yield (
            f"{path}.sample.prompts = {config.sample.prompts}: must be empty: "
            f"{path}.task.kind = {task.kind!r} does not write"
        )


def _sample_mistakes(config: Any, path: str) -> Iterator[str]:
    """Yield what would keep the trained model from continuing the prompts.

    Of other tokenizers than bytes a prompt's length is not known before they are made:
    it is at least a token, and what is too long is found before training.
    """
    sample, tokenizer, longest = config.sample, config.tokenizer, 1
    if not sample.prompts or config.model.kind == "recurrent":  # of any length
        return
    if tokenizer.kind == "bytes" and config.model.kind == "decoder":
        longest = tokenizer.bos + max(len(text.encode()) for text in sample.prompts)
    room = config.model.max_length - longest
    if sample.max_tokens > room:
        yield (
            f"{path}.sample.max_tokens = {sample.max_tokens}: with a prompt of "
            f"{longest} tokens must be at most {max(room, 0)} "
            f"({path}.model.max_length = {config.model.max_length})"
        )


def _contiguous_mistakes(config: Any, path: str) -> Iterator[str]:
    """Yield what keeps the rows of a batch from going on in the next."""
    why = f"{path}.data.order = 'contiguous'"
    if (kind := config.task.kind) in EXAMPLE_SOURCES:
        yield f"{why}: {path}.task.kind = {kind!r} reads examples, not a stream"
    if config.model.kind != "recurrent":
        yield (
            f"{why}: needs {path}.model.kind = 'recurrent', not {config.model.kind!r}"
        )
    if config.data.source == "mixture":
        yield f"{why}: takes one source, not {path}.data.source = 'mixture'"
    if config.eval.num_batches:
        yield (
            f"{path}.eval.num_batches = {config.eval.num_batches}: must be 0: with "
            f"{why} a split is read from its beginning to its end"
        )


def _masked_lm_mistakes(config: Any, path: str) -> Iterator[str]:
    task, model = config.task, config.model
    if not model.mlm_head:
        yield f"{path}.model.mlm_head = False: {path}.task.kind = 'masked_lm' needs it"
    if not task.sentence_order:
        return
    why = f"{path}.task.sentence_order = True needs"
    if not model.pair_head:
        yield f"{path}.model.pair_head = False: {why} it"
    if model.num_token_types < 2:
        yield (
            f"{path}.model.num_token_types = {model.num_token_types}: {why} at least 2"
        )
    if config.data.isolate_documents:
        yield f"{path}.data.isolate_documents = True: {why} texts that see each other"


def _window_pair_mistakes(config: Any, path: str) -> Iterator[str]:
    task, model, data = config.task, config.model, config.data
    needed = seq2seq_lengths(data.length, task)[1]
    if data.target_length < needed:
        yield (
            f"{path}.data.target_length = {data.target_length}: must be 0 or at least "
            f"{needed}, for {path}.data.length = {data.length}"
        )
    if data.target_length > model.max_length:
        yield (
            f"{path}.data.target_length = {data.target_length}: must be at most "
            f"{path}.model.max_length = {model.max_length}"
        )
    if data.isolate_documents:
        yield (
            f"{path}.data.isolate_documents = True: must be False for "
            f"{path}.task.kind = {task.kind!r}: source and target are one window"
        )
