"""Tasks that learn from a stream of text, and the base class of all tasks.

The class variables and methods of a task state its needs of the other sections; the
rules that all tasks share are in `compatibility.py`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from lmjax.config.decoding import DecodingConfig, SamplingConfig
from lmjax.config.distill import DistillConfig
from lmjax.config.leaf_types import (
    Fraction,
    Interval,
    NonNegativeFloat,
    PositiveInt,
    runtime_field,
)
from lmjax.config.model import CAUSAL_KINDS, SOURCE_KINDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskBaseConfig:
    """A task: by default one that learns from a stream of text."""

    label_smoothing: Fraction = 0.0
    z_loss: NonNegativeFloat = 0.0
    distill: DistillConfig = DistillConfig()

    model_kinds: ClassVar[tuple[str, ...]]  # of `config.model`, that can be trained
    # `config.data.source` of its examples; () where it learns from a stream of text.
    example_sources: ClassVar[tuple[str, ...]] = ()
    # Leaves of `config.data.fields` that it reads, no two of which may be the same.
    example_fields: ClassVar[tuple[str, ...]] = ()
    uses_classifier: ClassVar[bool] = False  # the model's head for labels
    # Whether evaluation compares the predictions for whole examples with the truth.
    compares_predictions: ClassVar[bool] = False
    has_target: ClassVar[bool] = False  # of `config.data.target_length`
    packs_examples: ClassVar[bool] = False  # a row may hold several
    can_distill: ClassVar[bool] = True  # it can learn from a teacher

    @property
    def reads_examples(self) -> bool:
        """Return True if it learns from examples, False if from a stream of text."""
        return bool(self.example_sources)

    @property
    def has_labels(self) -> bool:
        """Return True if it has a set of labels, known or still to be collected."""
        return False

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the names of the classifier's logits; () if not known, or none."""
        return ()

    @property
    def decoding(self) -> DecodingConfig | None:
        """Return how predictions are decoded token by token; None if they are not."""
        return None

    def num_predicted(self, split: str) -> int:
        """Return how many examples of a split evaluation predicts; 0: all."""
        return 0

    def default_target_length(
        self, length: int, decoder_prefix_ids: Sequence[int]
    ) -> int:
        """Return `config.data.target_length` where it is not given; 0: no target.

        Args:
          length: `config.data.length`.
          decoder_prefix_ids: of the model; targets begin with all but the first.
        """
        return 0

    def conflicts(self, config: Any, path: str) -> Iterator[str]:
        """Yield the conflicts of the task with other sections of a `Config`.

        Only where there are data to train on; the model is of one of `model_kinds`.
        """
        yield from ()

    def prediction_conflicts(self, config: Any, path: str) -> Iterator[str]:
        """Yield the same, also for a model that is imported and makes predictions."""
        yield from ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyTaskConfig(TaskBaseConfig):
    """A task whose targets are tokens of the vocabulary."""

    # the most logits over the vocabulary that a device keeps for a batch, in float32:
    # beyond, the loss is computed for some tokens at a time; 0: no limit
    logits_gigabytes: NonNegativeFloat = runtime_field(8.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLMConfig(VocabularyTaskConfig):
    """Predict each token from those before it."""

    kind: Literal["causal_lm"] = "causal_lm"
    write: SamplingConfig = runtime_field(SamplingConfig())  # texts that continue one
    model_kinds = CAUSAL_KINDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLMConfig(VocabularyTaskConfig):
    """Predict masked tokens from all others (BERT, Devlin et al. 2019)."""

    kind: Literal["masked_lm"] = "masked_lm"
    mask_rate: Fraction = 0.15  # of tokens to predict
    mask_share: Fraction = 0.8  # of those, replaced by the mask token
    random_share: Fraction = 0.1  # of those, by a random one; the rest stay
    whole_words: bool = False  # a word's pieces are predicted all or none
    sentence_order: bool = False  # also predict which half came first (ALBERT)
    model_kinds = ("encoder",)

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields."""
        if self.mask_share + self.random_share > 1:
            yield (
                f"{path}.random_share = {self.random_share}: must be at most 1 - "
                f"{path}.mask_share = {1 - self.mask_share:g}"
            )
        if not self.mask_rate:
            yield f"{path}.mask_rate = 0.0: must be > 0, for something to predict"

    def conflicts(self, config: Any, path: str) -> Iterator[str]:
        """Yield the conflicts of the task with other sections of a `Config`."""
        model = config.model
        if not model.mlm_head:
            yield (
                f"{path}.model.mlm_head = False: {path}.task.kind = 'masked_lm' "
                "needs it"
            )
        if not self.sentence_order:
            return
        why = f"{path}.task.sentence_order = True needs"
        if not model.pair_head:
            yield f"{path}.model.pair_head = False: {why} it"
        if model.num_token_types < 2:
            yield (
                f"{path}.model.num_token_types = {model.num_token_types}: {why} at "
                "least 2"
            )
        if config.data.isolate_documents:
            yield (
                f"{path}.data.isolate_documents = True: {why} texts that attend to "
                "each other"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowPairConfig(VocabularyTaskConfig):
    """Objectives whose source and target are cut from one window of text."""

    write: SamplingConfig = runtime_field(SamplingConfig())  # targets of sources
    model_kinds = SOURCE_KINDS
    has_target = True

    def lengths(
        self, length: int, decoder_prefix_ids: Sequence[int] = (0,)
    ) -> tuple[int, int]:
        """Return how many tokens make a source of at most `length`, and a target.

        Args:
          length: of sources.
          decoder_prefix_ids: of the model; targets begin with all but the first.
        """
        window, target = self._window_and_target(length)
        return window, target + len(decoder_prefix_ids) - 1

    def default_target_length(
        self, length: int, decoder_prefix_ids: Sequence[int]
    ) -> int:
        """Return the length of a full target."""
        return self.lengths(length, decoder_prefix_ids)[1]

    def conflicts(self, config: Any, path: str) -> Iterator[str]:
        """Yield the conflicts of the task with other sections of a `Config`."""
        model, data = config.model, config.data
        needed = self.lengths(data.length, model.decoder_prefix_ids)[1]
        if data.target_length < needed:
            yield (
                f"{path}.data.target_length = {data.target_length}: must be 0 or at "
                f"least {needed}, for {path}.data.length = {data.length}"
            )
        if data.target_length > model.max_length:
            yield (
                f"{path}.data.target_length = {data.target_length}: must be at most "
                f"{path}.model.max_length = {model.max_length}"
            )
        if data.isolate_documents:
            yield (
                f"{path}.data.isolate_documents = True: must be False for "
                f"{path}.task.kind = {config.task.kind!r}: source and target are one "
                "window"
            )

    def _window_and_target(self, length: int) -> tuple[int, int]:
        """Return the same as `lengths`, but for the prefix of the decoder."""
        return length, length  # a part each, and an end


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruptionConfig(WindowPairConfig):
    """Predict the spans that were dropped from the source (T5, Raffel et al. 2020)."""

    kind: Literal["span_corruption"] = "span_corruption"
    noise_density: Annotated[float, Interval(0.01, 0.99)] = 0.15  # of tokens to drop
    mean_span_length: Annotated[float, Interval(1)] = 3.0

    def _window_and_target(self, length: int) -> tuple[int, int]:
        return span_corruption_lengths(length, self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLMConfig(WindowPairConfig):
    """Predict the continuation of the source (Raffel et al. 2020, section 3.3.1)."""

    kind: Literal["prefix_lm"] = "prefix_lm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfillingConfig(WindowPairConfig):
    """Predict the whole text from one with gaps in it (BART, Lewis et al. 2020)."""

    kind: Literal["infilling"] = "infilling"
    mask_rate: Annotated[float, Interval(0.01, 0.99)] = 0.3  # of tokens to take out
    mean_span_length: Annotated[float, Interval(0.1)] = 3.0  # of a Poisson distribution
    sentence_permutation: bool = False  # also put sentences in another order

    def _window_and_target(self, length: int) -> tuple[int, int]:
        return length - 1, length  # the target is the window, and an end


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordVectorsTaskConfig(TaskBaseConfig):
    """Tell the neighbours of each word from noise (word2vec, Mikolov et al. 2013)."""

    kind: Literal["word_vectors"] = "word_vectors"
    # skip_gram: each neighbour is told from the word; cbow: the word is told from the
    # mean of its neighbours
    objective: Literal["skip_gram", "cbow"] = "skip_gram"
    # neighbours on each side: for each word a number drawn from 1 to this one
    window: PositiveInt = 5
    num_negatives: PositiveInt = 5  # the weight of the noise against a neighbour
    # words of noise drawn for a row, which all its words share
    num_noise: PositiveInt = 32
    # noise is drawn by the number of each word's occurrences to this power
    noise_power: NonNegativeFloat = 0.75
    # words with a larger share of the text than this are often left out, the more the
    # larger it is; 0: none
    subsample: NonNegativeFloat = 1e-4
    # files of pairs of words and their similarity as people judge it, and of analogies
    # (questions-words.txt); each is a metric
    similarity_files: tuple[str, ...] = runtime_field(())
    analogy_files: tuple[str, ...] = runtime_field(())
    model_kinds = ("word_vectors",)
    can_distill = False

    def validate(self, path: str) -> Iterator[str]:
        """Yield the settings of other tasks' losses."""
        for leaf in ("label_smoothing", "z_loss"):
            if value := getattr(self, leaf):
                yield (
                    f"{path}.{leaf} = {value}: must be 0 for {path}.kind = "
                    f"{self.kind!r}"
                )


def num_predictions(length: int, *, rate: float) -> int:
    """Return how many of `length` tokens are predicted: the nearest, at least one."""
    return min(length, max(1, round(length * rate)))


def span_counts(length: int, config: SpanCorruptionConfig) -> tuple[int, int]:
    """Return how many of `length` tokens are dropped, and in how many spans.

    As in T5's `random_spans_noise_mask`: at least one token in one span, and not all
    tokens. A single token counts as two.
    """
    length = max(length, 2)
    num_noise = min(max(round(length * config.noise_density), 1), length - 1)
    # A span begins after a kept token: no more spans than there are of those.
    num_spans = max(round(num_noise / config.mean_span_length), 1)
    return num_noise, min(num_spans, length - num_noise)


def span_corruption_lengths(
    length: int, config: SpanCorruptionConfig
) -> tuple[int, int]:
    """Return the window whose source has at most `length` tokens, and its target.

    As T5's `random_spans_helper`: source and target have a sentinel for each span, and
    an end.
    """

    def corrupted(window: int) -> tuple[int, int]:
        num_noise, num_spans = span_counts(window, config)
        return window - num_noise + num_spans + 1, num_noise + num_spans + 1

    window = 1
    while corrupted(window + 1)[0] <= length:
        window += 1
    return window, corrupted(window)[1]
