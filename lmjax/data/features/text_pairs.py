"""Examples of a source and a target that is to be written for it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from lmjax.config.data import FieldsConfig
from lmjax.config.decoding import SOURCE, Metric
from lmjax.data.features.features import FIELDS
from lmjax.data.formats import fields
from lmjax.data.formats.examples import Example
from lmjax.data.tokenizers.special_ids import not_none
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError
from lmjax.metrics import text as text_metrics


@dataclasses.dataclass(frozen=True)
class TextPair:
    """An example: what is read, and what is to be written, "" where nobody knows."""

    source: str
    target: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPairs:
    """What all tasks have in common that write a target for a source."""

    fields: FieldsConfig
    template: str
    metrics: tuple[Metric, ...]
    length: int
    target_length: int
    # Enters the fingerprint, by which stores know their examples: never change it.
    fingerprint_name: ClassVar[str]

    def texts(self, example: Example) -> list[str]:
        """Return the source and the target."""
        return [self._text(example, name) for name in ("source", "target")]

    def read(self, example: Example, *, labelled: bool = True) -> TextPair:
        """Return the source, and the target where it is known."""
        target = self._text(example, "target") if labelled else ""
        return TextPair(self._text(example, "source"), target)

    def of_text(self, text: str) -> Example:
        """Return an example of a source."""
        return {self.fields.source: text}

    def answer(
        self,
        reading: TextPair,
        rows: Sequence[Any],
        outputs: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Return the best text that was found, its score and log P; and the others."""
        none = {"text": "", "score": None, "log_prob": None}  # log P was no number
        best, *others = outputs[0]["texts"] or [none]
        return {**best, "others": others} if others else dict(best)

    @property
    def judges(self) -> tuple[str, ...]:
        """Return the names of the metrics.

        Raises:
          ConfigError: the package that measures one of them is not installed.
        """
        return text_metrics.names(self.metrics)

    @property
    def compares_answers(self) -> bool:
        """Return whether `judge` reads the answers."""
        return text_metrics.compare_answers(self.metrics)

    def judge(
        self, answers: Sequence[Mapping[str, Any]], readings: Sequence[TextPair]
    ) -> dict[str, float]:
        """Return the metrics of answers to examples that were read with theirs."""
        return text_metrics.measured(
            self.metrics,
            answers=[answer["text"] for answer in answers],
            targets=[reading.target for reading in readings],
            sources=[reading.source for reading in readings],
        )

    def encoded(
        self, readings: Sequence[TextPair], tokenizer: Tokenizer
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the ids of what is read and of what is written, as long as they are.

        Raises:
          ConfigError: the tokenizer has nothing to end a text with.
        """
        if tokenizer.eos_id is None:
            raise ConfigError("config.tokenizer: has no end of a text to be written")
        asked = [self.template.replace(SOURCE, reading.source) for reading in readings]
        targets = [reading.target for reading in readings]
        both = tokenizer.encode_batch([*asked, *targets])
        return list(zip(both[: len(asked)], both[len(asked) :], strict=True))

    def ended(self, target: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
        """Return a target cut to its length, with its end."""
        kept = target[: self.target_length - 1]
        return np.append(kept, not_none(tokenizer.eos_id)).astype(np.int32)

    def identity(self) -> Any:
        """Return the fields, the template and the lengths."""
        names = self.fields.source, self.fields.target
        sizes = self.length, self.target_length
        return [self.fingerprint_name, *names, self.template, *sizes]

    def _text(self, example: Example, name: str) -> str:
        field = getattr(self.fields, name)
        return fields.get_text(example, field, leaf=f"{FIELDS}.{name}")
