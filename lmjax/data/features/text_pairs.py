"""Features of tasks that generate a target for a source."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from lmjax.config.data import FieldsConfig
from lmjax.config.decoding import SOURCE, DecodingConfig, Metric
from lmjax.config.experiment import Config
from lmjax.config.task import GenerationTaskConfig
from lmjax.data.features.features import FIELDS, Columns, Features, Row
from lmjax.data.formats import fields
from lmjax.data.formats.examples import Example
from lmjax.data.tokenizers.special_ids import not_none
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError
from lmjax.metrics import text as text_metrics
from lmjax.metrics import words
from lmjax.metrics.text import TextOptions


@dataclasses.dataclass(frozen=True)
class TextPair:
    """A source and its target, "" where that is not known."""

    source: str
    target: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPairFeatures(Features):
    """A source in a template, and a target."""

    fields: FieldsConfig
    template: str
    metrics: tuple[Metric, ...]
    options: TextOptions = TextOptions()  # of the metrics
    length: int
    target_length: int
    # Enters the fingerprint, by which stores know their examples: never change it.
    fingerprint_name: ClassVar[str]

    @classmethod
    def from_config(cls, config: Config, **more: Any) -> Self:
        """Return the features of a config, with the fields that a subclass adds."""
        task = config.task
        assert isinstance(task, GenerationTaskConfig)
        return cls(
            fields=config.data.fields,
            template=task.template,
            metrics=task.metrics,
            options=TextOptions(
                bleu_tokenizer=task.bleu_tokenizer, language=_target_language(config)
            ),
            length=config.data.length,
            target_length=config.data.target_length,
            **more,
        )

    def prompt_row(self, columns: Columns) -> Row:
        """Return the row of the same example without its target, as it is decoded."""
        raise NotImplementedError

    def decoder_inputs(self, columns: Columns) -> dict[str, Any]:
        """Return `prompts`, the ids to continue, and `sources`, the ids of the source.

        Those are arguments of `BeamSearch.search`; only an encoder-decoder has
        sources.
        """
        raise NotImplementedError

    def end_decoding(
        self, decoding: DecodingConfig, tokenizer: Tokenizer
    ) -> DecodingConfig:
        """Return how predictions are decoded, with what else ends a target."""
        return decoding

    def texts(self, example: Example) -> list[str]:
        """Return the source and the target."""
        return [self._text(example, name) for name in ("source", "target")]

    def parse(self, example: Example, *, labelled: bool = True) -> TextPair:
        """Return the source, and the target if it is labelled."""
        target = self._text(example, "target") if labelled else ""
        return TextPair(self._text(example, "source"), target)

    def example_from_text(self, text: str) -> Example:
        """Return an example of a source."""
        return {self.fields.source: text}

    def postprocess(
        self,
        parsed: TextPair,
        rows: Sequence[Columns],
        outputs: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Return the best text, its score and log-probability; and the others."""
        none = {"text": "", "score": None, "log_prob": None}  # no finite log P
        best, *others = outputs[0]["texts"] or [none]
        return {**best, "others": others} if others else dict(best)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Return the names of the metrics.

        Raises:
          ConfigError: a package that computes one of them is not installed.
        """
        return text_metrics.metric_names(self.metrics, self.options)

    @property
    def needs_predictions(self) -> bool:
        """Return True if any metric reads the predictions, not the sources alone."""
        return text_metrics.need_predictions(self.metrics)

    def compute_metrics(
        self, predictions: Sequence[Mapping[str, Any]], parsed: Sequence[TextPair]
    ) -> dict[str, float]:
        """Compare the generated texts with the targets."""
        return text_metrics.compute_metrics(
            self.metrics,
            predictions=[prediction["text"] for prediction in predictions],
            targets=[pair.target for pair in parsed],
            sources=[pair.source for pair in parsed],
            options=self.options,
        )

    def sign_metrics(self, parsed: Sequence[TextPair]) -> dict[str, str]:
        """Return how the metrics compare texts, by name."""
        targets = [pair.target for pair in parsed]
        return text_metrics.sign_metrics(self.metrics, targets, options=self.options)

    def check_end(self, tokenizer: Tokenizer) -> None:
        """Check that targets can end.

        Raises:
          ConfigError: the tokenizer has no end-of-text token.
        """
        if tokenizer.eos_id is None:
            raise ConfigError("config.tokenizer: has no end of text to end a target")

    def prompt(self, pair: TextPair) -> str:
        """Return the source of a pair in the template."""
        return self.template.replace(SOURCE, pair.source)

    def end_target(self, target: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
        """Cut a target to its length, and append the end of text."""
        target = target[: self.target_length - 1]
        return np.append(target, not_none(tokenizer.eos_id)).astype(np.int32)

    def identity(self) -> Any:
        """Return the fields, the template and the lengths."""
        names = self.fields.source, self.fields.target
        sizes = self.length, self.target_length
        return [self.fingerprint_name, *names, self.template, *sizes]

    def _text(self, example: Example, name: str) -> str:
        field = getattr(self.fields, name)
        return fields.get_text(example, field, leaf=f"{FIELDS}.{name}")


def _target_language(config: Config) -> str:
    """Return `task.language`, or that of the name of parallel files; "" if unknown."""
    task: Any = config.task
    name = config.data.fields.target if config.data.source == "parallel" else ""
    return task.language or (name if words.is_known_language(name) else "")
