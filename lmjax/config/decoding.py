"""Decoding, as a config section: how texts are generated and compared."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from lmjax.config.leaf_types import Interval, NonNegativeInt
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
class DecodingConfig:
    """Beam search; one beam takes the most likely token each time.

    The score of a hypothesis is log P / length ** length_penalty, as in transformers:
    the length is that of the generated text, the end of text included. 0 prefers the
    most probable text, 1 the highest probability a token; higher powers prefer long
    texts. (Wu et al. 2016 divide by ((5 + length) / 6) ** length_penalty.)

    A search ends once `num_beams` hypotheses are finished and no other has a better
    score at its present length, or with `early_finish` once they are finished:
    transformers' early_stopping False and True.
    """

    num_beams: Annotated[int, Interval(1, 1024)] = 4
    length_penalty: Annotated[float, Interval(-5, 5)] = 1.0  # more would leave float32
    early_finish: bool = False
    min_tokens: NonNegativeInt = 0  # before the end
    max_tokens: NonNegativeInt = 0  # 0: data.target_length
    no_repeat_ngram: NonNegativeInt = 0  # 0: any may be repeated
    num_return: Annotated[int, Interval(1, 1024)] = 1  # texts of each, the best first

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields."""
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


def build_decoding(**leaves: Any) -> DecodingConfig:
    """Return a `DecodingConfig` of leaves that come from no config file.

    Raises:
      ConfigError: a leaf is unknown or out of range, as `parse` reports it.
    """
    problems: list[str] = []
    config = build(DecodingConfig, leaves, "write", problems)
    if not problems:
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
        prompt = len(config.model.decoder_prefix_ids)
    return max(config.model.longest_text - prompt, 0)


def decoding_conflicts(config: Any, path: str) -> Iterator[str]:
    """Yield the conflicts of decoding with other sections of a `Config`."""
    task, model, data = config.task, config.model, config.data
    if SOURCE not in task.template:
        yield f"{path}.task.template = {task.template!r}: must contain {SOURCE}"
    longest, limit = model.max_length, f"{path}.model.max_length = {model.max_length}"
    if task.kind == "prompted_lm":  # prompt and target are one row
        longest = data.length - MIN_TARGET_LENGTH
        limit = f"{path}.data.length - {MIN_TARGET_LENGTH} = {longest}"
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
