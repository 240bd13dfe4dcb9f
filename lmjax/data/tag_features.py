"""Examples of tagging: words, and a label for each.

B rows, T tokens in a row.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmjax.config import ConfigError, FieldsConfig
from lmjax.data import fields, spans
from lmjax.data.casing import case_of
from lmjax.data.examples import Example
from lmjax.data.features import FIELDS, Columns, Row, around, label_id, token_rows
from lmjax.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lmjax.types import HostBatch


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

    def encode(
        self, readings: Sequence[Sentence], tokenizer: Tokenizer
    ) -> list[Sequence[Row]]:
        """Return rows; words that do not fit are cut off."""
        space = _space(tokenizer)
        flat = [
            (space if i else "") + word
            for sentence in readings
            for i, word in enumerate(sentence.words)
        ]
        encoded = iter(tokenizer.encode_batch(flat))
        made = (
            self._row(s, [next(encoded) for _ in s.words], tokenizer) for s in readings
        )
        return [(row,) for row in made]

    def batch(self, rows: Sequence[Columns | None], *, length: int) -> "HostBatch":
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
        self,
        reading: Sentence,
        rows: Sequence[Row],
        outputs: Sequence[Mapping[str, np.ndarray]],
    ) -> dict[str, Any]:
        """Return the label of each word; None of one that was cut off."""
        tags_T = outputs[0]["tags"][rows[0].columns["first"]]
        tags = [self.labels[i] for i in tags_T]
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
        prefix, _, suffix = around(tokenizer)
        # A word that the tokenizer has nothing for still needs a place.
        words = [word if len(word) else tokenizer.encode("?") for word in words]
        stops = np.cumsum([len(prefix), *map(len, words)])
        count = int(np.searchsorted(stops, self.length - len(suffix), "right")) - 1
        parts = [prefix, *words[:count], suffix]
        tokens = np.concatenate([np.asarray(part, np.int32) for part in parts])
        columns = {
            "tokens": tokens,
            "first": stops[:count],
            "label": np.array(sentence.labels[:count], np.int32),
        }
        if self.casing:
            columns["case"] = np.array(
                [*map(case_of, sentence.words[:count])], np.int32
            )
        return Row(columns=columns, size=len(tokens), truncated=count < len(words))


def _space(tokenizer: Tokenizer) -> str:
    """Return what stands before a word where the tokenizer does not put it there."""
    twice = [*tokenizer.encode("1"), *tokenizer.encode("1")]
    return " " if tokenizer.decode(twice) == "11" else ""
