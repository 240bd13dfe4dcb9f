"""How answers are written, as a config section, and what keeps them from being so."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from lmjax.config.leaf_types import Interval, NonNegativeInt
from lmjax.config.parse import build
from lmjax.errors import ConfigError

SOURCE = "{source}"  # where a template has the source of an example
SHORTEST_TARGET = 2  # a token, and the end

# What each is: data/text_metrics.py. lead1: of the source's first sentence, whatever is
# answered.
Metric = Literal["bleu", "chrf", "rouge", "lead1_rouge", "exact_match"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How texts are searched for; one beam takes the most likely token each time.

    The score of a text is log P / length ** length_penalty, as in transformers: the
    length is that of what was written, the end of text included. 0 prefers the most
    probable text, 1 the highest probability a token; higher powers prefer long texts.
    (Wu et al. 2016 divide by ((5 + length) / 6) ** length_penalty.)

    A search ends once `num_beams` texts are finished and no other has a better score
    at its present length, or with `early_finish` once they are finished: transformers'
    early_stopping False and True.
    """

    num_beams: Annotated[int, Interval(1, 1024)] = 4
    length_penalty: Annotated[float, Interval(-5, 5)] = 1.0  # more would leave float32
    early_finish: bool = False
    min_tokens: NonNegativeInt = 0  # before the end
    max_tokens: NonNegativeInt = 0  # 0: data.target_length
    no_repeat_ngram: NonNegativeInt = 0  # 0: any may come again
    num_return: Annotated[int, Interval(1, 1024)] = 1  # texts of each, the best first

    def validate(self, path: str) -> Iterator[str]:
        """Yield what is wrong between fields."""
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


def checked(**leaves: Any) -> DecodingConfig:
    """Return a `DecodingConfig` of leaves that come from no config file.

    Raises:
      ConfigError: what `parse` would say of them.
    """
    mistakes: list[str] = []
    config = build(DecodingConfig, leaves, "write", mistakes)
    if not mistakes:
        mistakes += config.validate("write")
    if mistakes:
        raise ConfigError("; ".join(mistakes))
    assert isinstance(config, DecodingConfig)
    return config


def room_to_write(config: Any) -> int:
    """Return the most tokens that a `Config`'s model can write after its prompt.

    The prompt of an encoder-decoder is what it begins with; that of a decoder has what
    `data.length` leaves beside the target.
    """
    data = config.data
    prompt = data.length - data.target_length
    if config.task.kind == "seq2seq":
        prompt = len(config.model.decoder_prefix_ids)
    return max(config.model.longest_text - prompt, 0)


def writing_mistakes(config: Any, path: str) -> Iterator[str]:
    """Yield what keeps a `Config`'s model from writing the answers of its task."""
    task, model, data = config.task, config.model, config.data
    if SOURCE not in task.template:
        yield f"{path}.task.template = {task.template!r}: must contain {SOURCE}"
    longest, of = model.max_length, f"{path}.model.max_length = {model.max_length}"
    if task.kind == "prompted_lm":  # prompt and target are one row
        longest = data.length - SHORTEST_TARGET
        of = f"{path}.data.length - {SHORTEST_TARGET} = {longest}"
    if data.target_length > longest:
        yield f"{path}.data.target_length = {data.target_length}: must be at most {of}"
    shortest = SHORTEST_TARGET + len(model.decoder_prefix_ids[1:])
    if data.target_length < shortest:
        yield (
            f"{path}.data.target_length = {data.target_length}: must be 0 or at least "
            f"{shortest}"
        )
    room = room_to_write(config)
    if task.write.max_tokens > room:
        yield (
            f"{path}.task.write.max_tokens = {task.write.max_tokens}: must be at most "
            f"{room} ({path}.model.max_length = {model.max_length})"
        )
