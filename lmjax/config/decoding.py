"""Decoding, as a config section: how texts are generated and compared."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from lmjax.config.leaf_types import (
    Fraction,
    Interval,
    NonNegativeFloat,
    NonNegativeInt,
)
from lmjax.config.parse import build
from lmjax.errors import ConfigError

SOURCE = "{source}"  # in a template, stands for the source of an example
MIN_TARGET_LENGTH = 2  # a token, and the end

# See lmjax/metrics/text.py. lead1: of the source's first sentence, a baseline.
Metric = Literal["bleu", "chrf", "rouge", "lead1_rouge", "exact_match"]
BleuTokenizer = Literal[
    "auto",
    "13a",
    "zh",
    "ja-mecab",
    "ko-mecab",
    "char",
    "flores101",
    "flores200",
    "intl",
    "none",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstraintConfig:
    """Which tokens may come next: the rules of transformers' generate().

    Lengths of a text are those of its tokens with the prompt's (the start of the
    decoder in an encoder-decoder); `min_tokens` counts generated tokens alone.
    """

    min_tokens: NonNegativeInt = 0  # before the end
    min_length: NonNegativeInt = 0  # of prompt and text, before the end
    no_repeat_ngram: NonNegativeInt = 0  # 0: any may be repeated
    # logits of ids that the text or its prompt has: divided by this where positive,
    # else multiplied (Keskar et al. 2019)
    repetition_penalty: Annotated[float, Interval(1e-3, 1e3)] = 1.0
    bad_words: tuple[tuple[NonNegativeInt, ...], ...] = ()  # sequences of ids
    suppress: tuple[NonNegativeInt, ...] = ()  # ids
    suppress_first: tuple[NonNegativeInt, ...] = ()  # not as the first of a text
    # the id after a prompt of one token, the start of the decoder; -1: that of
    # model.opening, -2: none
    force_first: Annotated[int, Interval(-2, below=1 << 31)] = -1
    force_last: tuple[NonNegativeInt, ...] = ()  # at max_tokens one of these

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields."""
        if () in self.bad_words:
            yield f"{path}.bad_words: a sequence is empty"

    @property
    def ids(self) -> dict[str, tuple[int, ...]]:
        """Return the ids that leaves name, which a vocabulary must have."""
        return {
            "bad_words": tuple(i for word in self.bad_words for i in word),
            "suppress": self.suppress,
            "suppress_first": self.suppress_first,
            "force_first": (self.force_first,),
            "force_last": self.force_last,
        }

    def vocabulary_leaves(self) -> dict[str, Any]:
        """Return the leaves of ids that are set, by their names."""
        leaves = {name: getattr(self, name) for name in self.ids}
        return {
            name: value
            for name, value in leaves.items()
            if value != getattr(ConstraintConfig, name)
        }

    def constraints(self, decoder_prefix_ids: Sequence[int]) -> "ConstraintConfig":
        """Return these leaves alone, for a model.

        Args:
          decoder_prefix_ids: of the model; the second may be the first of a text.
        """
        names = [field.name for field in dataclasses.fields(ConstraintConfig)]
        leaves = {name: getattr(self, name) for name in names}
        if self.force_first == -1 and len(decoder_prefix_ids) == 2:
            leaves["force_first"] = decoder_prefix_ids[1]
        return ConstraintConfig(**leaves)

    def start_of_text(self, decoder_prefix_ids: Sequence[int]) -> Sequence[int]:
        """Return the ids of `decoder_prefix_ids` that are not chosen, but given."""
        if self.force_first == -1 and len(decoder_prefix_ids) != 2:
            return decoder_prefix_ids
        return decoder_prefix_ids[:1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingConfig(ConstraintConfig):
    """How texts are generated: by beam search, or with one beam token by token.

    Beam search: the score of a hypothesis is log P / length ** length_penalty, as in
    transformers: the length is that of the generated text, the end of text included.
    0 prefers the most probable text, 1 the highest probability a token; higher powers
    prefer long texts. (Wu et al. 2016 divide by ((5 + length) / 6) ** length_penalty.)

    A search ends once `num_beams` hypotheses are finished and no other has a better
    score at its present length; with `early_finish` once they are finished, with
    `exhaustive` once no other can become better: transformers' early_stopping False,
    True and "never".

    One beam: the most likely token each time, or with a temperature above 0 a sample.
    """

    num_beams: Annotated[int, Interval(1, 1024)] = 4
    length_penalty: Annotated[float, Interval(-5, 5)] = 1.0  # more would leave float32
    early_finish: bool = False
    exhaustive: bool = False
    renormalize: bool = False  # beams: after the constraints, probabilities sum to 1
    max_tokens: NonNegativeInt = 0  # 0: data.target_length
    max_length: NonNegativeInt = 0  # of prompt and text, if not max_tokens; 0: any
    num_return: Annotated[int, Interval(1, 1024)] = 1  # texts of each, the best first
    temperature: NonNegativeFloat = 0.0  # of generate with one beam; 0: greedy
    top_k: NonNegativeInt = 0  # sample from the k most likely tokens; 0: from all
    # from the most likely tokens that together have this probability
    top_p: Fraction = 1.0
    min_p: Fraction = 0.0  # from those with this share of the most likely one's
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    stop_ids: tuple[
        NonNegativeInt, ...
    ] = ()  # ids that end a text; (): the tokenizer's

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields."""
        yield from super().validate(path)
        if self.num_return > self.num_beams:
            yield (
                f"{path}.num_return = {self.num_return}: must be at most "
                f"{path}.num_beams = {self.num_beams}"
            )
        if self.max_tokens and self.min_tokens > self.max_tokens:
            yield (
                f"{path}.min_tokens = {self.min_tokens}: must be at most "
                f"{path}.max_tokens = {self.max_tokens}"
            )
        if self.early_finish and self.exhaustive:
            yield f"{path}.exhaustive = True: must be False with {path}.early_finish"
        if not self.top_p:
            yield f"{path}.top_p = 0.0: must be > 0"
        if "" in self.stop:
            yield f"{path}.stop = {self.stop!r}: a text to stop at is empty"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig(DecodingConfig):
    """The same for models of running text, which are sampled by default."""

    num_beams: Annotated[int, Interval(1, 1024)] = 1
    temperature: NonNegativeFloat = 0.8


def choose_decoding(
    base: DecodingConfig | None = None, **options: Any
) -> DecodingConfig:
    """Return how texts are generated, given the leaves that a caller sets.

    Options of sampling choose one beam; several beams leave out the sampling of `base`.

    Args:
      base: the other leaves; by default those of a model of running text.
      options: leaves of `DecodingConfig`; None: not set.

    Raises:
      ConfigError: an option is out of range, or belongs to the other way of decoding.
    """
    base = SamplingConfig() if base is None else base
    options = {name: value for name, value in options.items() if value is not None}
    default = {
        field.name: field.default for field in dataclasses.fields(DecodingConfig)
    }
    leaves = {name: getattr(base, name) for name in default}
    sampled = [name for name in SAMPLING_LEAVES if name in options]
    num_beams = options.get("num_beams", 1 if sampled else leaves["num_beams"])
    searches = isinstance(num_beams, int) and num_beams > 1
    for name in sampled if searches else ():
        if options[name] != default[name]:
            raise ConfigError(
                f"{name} = {options[name]}: must be {default[name]:g} or left out with "
                f"num_beams = {num_beams}, which samples nothing"
            )
    for name in () if searches else SEARCH_LEAVES:
        leaves[name] = default[name]
        if options.get(name, default[name]) != default[name]:
            raise ConfigError(
                f"{name} = {options[name]}: is for beam search; give num_beams of 2 or "
                "more"
            )
    for name in SAMPLING_LEAVES if searches else ():
        leaves[name] = default[name]
    if not searches:
        leaves["num_return"] = 1
    return build_decoding(**{**leaves, "num_beams": num_beams, **options})


SAMPLING_LEAVES = ("temperature", "top_k", "top_p", "min_p")
SEARCH_LEAVES = ("length_penalty", "early_finish", "exhaustive", "renormalize")


def build_decoding(**leaves: Any) -> DecodingConfig:
    """Return a `DecodingConfig` of leaves that come from no config file.

    Raises:
      ConfigError: a leaf is unknown or out of range, as `parse` reports it.
    """
    problems: list[str] = []
    config = build(DecodingConfig, leaves, "write", problems)
    if not problems:
        assert isinstance(config, DecodingConfig)
        problems += config.validate("write")
    if problems:
        raise ConfigError("; ".join(problems))
    assert isinstance(config, DecodingConfig)
    return config


def max_new_tokens(config: Any) -> int:
    """Return the most tokens that the model of a `Config` can generate for an example.

    The prompt of an encoder-decoder is its prefix; that of a decoder has the
    room that the target leaves of `data.length`.
    """
    data = config.data
    prompt = data.length - data.target_length
    if config.task.kind == "seq2seq":
        prefix_ids = config.model.decoder_prefix_ids
        prompt = len(config.task.write.start_of_text(prefix_ids))
    return max(config.model.longest_text - prompt, 0)


def id_conflicts(config: Any, path: str) -> Iterator[str]:
    """Yield the ids of `config.task.write` that the model of a `Config` has not."""
    write, size = getattr(config.task, "write", None), config.model.vocab_size
    for leaf, ids in write.ids.items() if write and size else ():
        if ids and max(ids) >= size:
            yield (
                f"{path}.task.write.{leaf}: holds {max(ids)}; must be below "
                f"{path}.model.vocab_size = {size}"
            )


def decoding_conflicts(config: Any, path: str) -> Iterator[str]:
    """Yield the conflicts of decoding with other sections of a `Config`."""
    task, model, data = config.task, config.model, config.data
    if data.source == "chat" and task.template != SOURCE:
        yield (
            f"{path}.task.template = {task.template!r}: must be {SOURCE!r} for "
            f"{path}.data.source = 'chat', which {path}.tokenizer.chat_template writes"
        )
    if SOURCE not in task.template:
        yield f"{path}.task.template = {task.template!r}: must contain {SOURCE}"
    longest, limit = model.max_length, f"{path}.model.max_length = {model.max_length}"
    if task.kind == "prompted_lm":  # prompt and target are one row
        longest = data.length - MIN_TARGET_LENGTH
        limit = f"{path}.data.length - {MIN_TARGET_LENGTH} = {longest}"
        if 0 < task.write.max_length < data.length:
            yield (
                f"{path}.task.write.max_length = {task.write.max_length}: must be 0 or "
                f"at least {path}.data.length = {data.length}; set max_tokens"
            )
    if data.target_length > longest:
        yield (
            f"{path}.data.target_length = {data.target_length}: must be at most {limit}"
        )
    shortest = MIN_TARGET_LENGTH + len(model.decoder_prefix_ids[1:])
    if data.target_length < shortest:
        yield (
            f"{path}.data.target_length = {data.target_length}: must be 0 or at least "
            f"{shortest}"
        )
    most = max_new_tokens(config)
    if task.write.max_tokens > most:
        yield (
            f"{path}.task.write.max_tokens = {task.write.max_tokens}: must be at most "
            f"{most} ({path}.model.max_length = {model.max_length})"
        )
