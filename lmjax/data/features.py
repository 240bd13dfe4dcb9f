"""How a labelled example becomes a row of a batch, for each task.

B rows, T tokens in a row.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lmjax.config import (
    ClassifyConfig,
    Config,
    ConfigError,
    FieldsConfig,
    TagConfig,
    nearest,
)
from lmjax.data import fields, spans
from lmjax.data.casing import case_of
from lmjax.data.examples import Example
from lmjax.data.special_ids import present
from lmjax.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lmjax.types import HostBatch

FIELDS = "config.data.fields"


@dataclasses.dataclass(frozen=True)
class Row:
    """An encoded example: one-dimensional arrays of int32, `tokens` among them."""

    columns: Mapping[str, np.ndarray]
    truncated: bool = False


class Features(Protocol):
    """What a task reads of an example; small to pickle, for loader processes."""

    def texts(self, example: Example) -> list[str]:
        """Return what a tokenizer would be trained on."""

    def label(self, example: Example) -> Sequence[str]:
        """Return the labels of an example."""

    def read(self, example: Example, *, labelled: bool = True) -> Any:
        """Return what `encode` takes, checked.

        Raises:
          ConfigError: without the example's place.
        """

    def encode(self, readings: Sequence[Any], tokenizer: Tokenizer) -> list[Row]:
        """Return the rows of some examples, cut to `config.data.length`."""

    def batch(
        self, rows: Sequence[Mapping[str, np.ndarray] | None], *, length: int
    ) -> "HostBatch":
        """Return a batch of encoded rows; None is a row of padding, of weight 0."""

    def of_text(self, text: str) -> Example:
        """Return the example that a text alone stands for."""

    def answer(
        self, row: Row, reading: Any, output: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """Return JSON of what the task says of a row, given the model's output."""

    def identity(self) -> Any:
        """Return JSON of what decides the rows."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """An example to classify: its texts, and the number of its label."""

    texts: tuple[str, ...]
    label: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classify:
    """One or two texts between special tokens, and a label.

    A row: `tokens`, `second` (where the second text begins, or the end), `label`.
    """

    fields: FieldsConfig
    labels: tuple[str, ...]
    length: int

    def texts(self, example: Example) -> list[str]:
        """Return the text, and the one it is paired with."""
        names = ("text", "pair") if self.fields.pair else ("text",)
        return [
            fields.text_of(example, getattr(self.fields, name), leaf=f"{FIELDS}.{name}")
            for name in names
        ]

    def label(self, example: Example) -> list[str]:
        """Return the label."""
        leaf = f"{FIELDS}.label"
        return [fields.label_of(example, self.fields.label, leaf=leaf)]

    def read(self, example: Example, *, labelled: bool = True) -> Reading:
        """Return the texts and the label's number."""
        label = label_id(self.label(example)[0], self.labels) if labelled else 0
        return Reading(tuple(self.texts(example)), label)

    def encode(self, readings: Sequence[Reading], tokenizer: Tokenizer) -> list[Row]:
        """Return rows; of two texts that are too long the longer one is cut first."""
        flat = [text for reading in readings for text in reading.texts]
        encoded = iter(tokenizer.encode_batch(flat))
        return [
            self._row([next(encoded) for _ in reading.texts], reading.label, tokenizer)
            for reading in readings
        ]

    def batch(
        self, rows: Sequence[Mapping[str, np.ndarray] | None], *, length: int
    ) -> "HostBatch":
        """Return tokens, segments, positions, token_types (B, T); labels, weights."""
        batch = token_rows(rows, length=length)
        place_T = np.arange(length)
        batch["token_types"] = np.zeros_like(batch["tokens"])
        batch["labels"] = np.zeros(len(rows), np.int32)
        batch["weights"] = np.zeros(len(rows), np.float32)
        for b, row in enumerate(rows):
            if row is not None:
                real_T = batch["segments"][b] > 0
                batch["token_types"][b] = real_T & (place_T >= row["second"][0])
                batch["labels"][b] = row["label"][0]
                batch["weights"][b] = 1.0
        return batch

    def of_text(self, text: str) -> Example:
        """Return an example of one text."""
        return {self.fields.text: text}

    def answer(
        self, row: Row, reading: Reading, output: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """Return the likeliest label, and the probability of each."""
        probs_C = output["probabilities"]
        each = zip(self.labels, probs_C.tolist(), strict=True)
        return {
            "label": self.labels[int(probs_C.argmax())],
            "probabilities": {label: round(p, 6) for label, p in each},
        }

    def identity(self) -> Any:
        """Return the fields, the labels and the length."""
        names = self.fields.text, self.fields.pair, self.fields.label
        return ["classify", *names, self.labels, self.length]

    def _row(self, texts: list[np.ndarray], label: int, tokenizer: Tokenizer) -> Row:
        prefix, between, suffix = _around(tokenizer)
        between = between if len(texts) > 1 else []
        room = self.length - len(prefix) - len(between) - len(suffix)
        kept = _fit([len(text) for text in texts], room)
        first, second = texts[0][: kept[0]], [t[: kept[1]] for t in texts[1:]]
        parts = [prefix, first, between, *second, suffix]
        begin = len(prefix) + len(first) + len(between)
        tokens = np.concatenate([np.asarray(part, np.int32) for part in parts])
        columns = {
            "tokens": tokens,
            "second": np.array([begin if second else self.length], np.int32),
            "label": np.array([label], np.int32),
        }
        return Row(columns, truncated=sum(kept) < sum(map(len, texts)))


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence to tag: its words, and the number of each one's label."""

    words: tuple[str, ...]
    labels: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tag:
    """Words between special tokens, with a label at the first token of each.

    A row: `tokens`, `first` (where the words begin that are not cut off), `label`; with
    `casing` also `case`, of each word.
    """

    fields: FieldsConfig
    labels: tuple[str, ...]
    length: int
    repair: bool
    casing: bool = False

    def texts(self, example: Example) -> list[str]:
        """Return the words as a text."""
        return [" ".join(self._words(example))]

    def label(self, example: Example) -> list[str]:
        """Return the label of each word."""
        words = self._words(example)
        tags = fields.words_of(example, self.fields.tags, leaf=f"{FIELDS}.tags")
        if len(tags) != len(words):
            raise ConfigError(f"has {len(words)} tokens, but {len(tags)} tags")
        return tags

    def read(self, example: Example, *, labelled: bool = True) -> Sentence:
        """Return the words and their labels' numbers."""
        tags = self.label(example) if labelled else []
        ids = tuple(label_id(tag, self.labels) for tag in tags)
        words = tuple(self._words(example))
        return Sentence(words, ids if labelled else (0,) * len(words))

    def encode(self, readings: Sequence[Sentence], tokenizer: Tokenizer) -> list[Row]:
        """Return rows; words that do not fit are cut off."""
        space = _space(tokenizer)
        flat = [
            (space if i else "") + word
            for sentence in readings
            for i, word in enumerate(sentence.words)
        ]
        encoded = iter(tokenizer.encode_batch(flat))
        return [
            self._row(s, [next(encoded) for _ in s.words], tokenizer) for s in readings
        ]

    def batch(
        self, rows: Sequence[Mapping[str, np.ndarray] | None], *, length: int
    ) -> "HostBatch":
        """Return tokens, segments, positions, labels and weights, each (B, T).

        With `casing` token_types, too: where a word begins, which of `CASES` it is.
        """
        batch = token_rows(rows, length=length)
        batch["labels"] = np.zeros_like(batch["tokens"])
        batch["weights"] = np.zeros(batch["tokens"].shape, np.float32)
        if self.casing:
            batch["token_types"] = np.zeros_like(batch["tokens"])
        for b, row in enumerate(rows):
            if row is not None:
                batch["labels"][b, row["first"]] = row["label"]
                batch["weights"][b, row["first"]] = 1.0
                if self.casing:
                    batch["token_types"][b, row["first"]] = row["case"]
        return batch

    def of_text(self, text: str) -> Example:
        """Return an example of the words of a text, as white space divides it."""
        return {self.fields.tokens: text.split()}

    def answer(
        self, row: Row, reading: Sentence, output: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """Return the label of each word; None of one that was cut off."""
        tags = [self.labels[i] for i in output["tags"][row.columns["first"]]]
        if self.repair:
            tags = spans.repaired(tags, known=self.labels)
        return {"tags": [*tags, *[None] * (len(reading.words) - len(tags))]}

    def identity(self) -> Any:
        """Return the fields, the labels and the length."""
        names = self.fields.tokens, self.fields.tags
        return ["tag", *names, self.labels, self.length] + ["casing"] * self.casing

    def _words(self, example: Example) -> list[str]:
        leaf = f"{FIELDS}.tokens"
        return fields.words_of(example, self.fields.tokens, leaf=leaf)

    def _row(
        self, sentence: Sentence, words: list[np.ndarray], tokenizer: Tokenizer
    ) -> Row:
        prefix, _, suffix = _around(tokenizer)
        # A word that the tokenizer has nothing for still needs a place.
        words = [word if len(word) else tokenizer.encode("?") for word in words]
        stops = np.cumsum([len(prefix), *map(len, words)])
        count = int(np.searchsorted(stops, self.length - len(suffix), "right")) - 1
        parts = [prefix, *words[:count], suffix]
        columns = {
            "tokens": np.concatenate([np.asarray(part, np.int32) for part in parts]),
            "first": stops[:count],
            "label": np.array(sentence.labels[:count], np.int32),
        }
        if self.casing:
            columns["case"] = np.array(
                [*map(case_of, sentence.words[:count])], np.int32
            )
        return Row(columns, truncated=count < len(words))


def build(config: Config) -> Features:
    """Return the features of a labelled task."""
    task, names, length = config.task, config.data.fields, config.data.length
    if isinstance(task, TagConfig):
        return Tag(
            fields=names,
            labels=task.labels,
            length=length,
            repair=task.repair,
            casing=task.casing,
        )
    assert isinstance(task, ClassifyConfig), task
    return Classify(fields=names, labels=task.labels, length=length)


def _space(tokenizer: Tokenizer) -> str:
    """Return what stands before a word where the tokenizer does not put it there."""
    twice = [*tokenizer.encode("1"), *tokenizer.encode("1")]
    return " " if tokenizer.decode(twice) == "11" else ""


def label_id(label: str, labels: Sequence[str]) -> int:
    """Return the number of a label.

    Raises:
      ConfigError: it is none of them.
    """
    if label in labels:
        return labels.index(label)
    shown = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
    raise ConfigError(
        f"label {label!r}: not seen in training, nor given in config.task.labels"
        f"{nearest(label, labels)}; there are {shown}"
    )


def token_rows(
    rows: Sequence[Mapping[str, np.ndarray] | None], *, length: int
) -> "HostBatch":
    """Return tokens, segments (1, and 0 for padding) and positions, int32 (B, T)."""
    shape = (len(rows), length)
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for b, row in enumerate(rows):
        if row is not None:
            size = len(row["tokens"])
            tokens[b, :size], segments[b, :size] = row["tokens"], 1
    positions = np.arange(length, dtype=np.int32) * segments
    return {"tokens": tokens, "segments": segments, "positions": positions}


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int], list[int]]:
    """Return the ids before, between and after texts."""
    prefix = tokenizer.prefix_ids or present(tokenizer.bos_id)
    between = tokenizer.pair_ids or present(tokenizer.eos_id)
    return [*prefix], [*between], [*tokenizer.suffix_ids]


def _fit(sizes: Sequence[int], room: int) -> list[int]:
    """Return how much to keep of one or two texts, the longer one cut first."""
    if len(sizes) == 1:
        return [min(sizes[0], room)]
    a, b = sizes
    half = room // 2
    kept = min(a, max(half, room - b))
    return [kept, min(b, room - kept)]
