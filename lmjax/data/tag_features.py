"""Examples of tagging: words, and a label for each.

B rows, T tokens in a row, W words in a sentence.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

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
    """A sentence to tag: its words, the number of each one's label, its predicate."""

    words: tuple[str, ...]
    labels: tuple[int, ...]
    predicate: tuple[int, ...] = ()  # the numbers of the words it consists of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tag:
    """Words between special tokens, with a label at one token of each.

    Where examples name a predicate it is marked: its tokens are of type 1 (Shi and Lin
    2019 have such an embedding), or it stands between separators.

    A row: `tokens`, `types` (of each), `place` (of the label of each word that is not
    cut off), `label`.
    """

    fields: FieldsConfig
    labels: tuple[str, ...]
    length: int
    repair: bool
    mark: Literal["token_types", "separators"] = "token_types"
    casing: bool = False  # types are those of `CASES` instead
    label_at: Literal["first", "last"] = "first"  # of a word's tokens

    def texts(self, example: Example) -> list[str]:
        """Return the words as a text."""
        return [" ".join(self._words(example))]

    @property
    def label_field(self) -> str:
        """Return the name of the tags."""
        return self.fields.tags

    def label(self, example: Example) -> list[str]:
        """Return the label of each word."""
        words = self._words(example)
        tags = fields.labels_of(example, self.fields.tags, leaf=f"{FIELDS}.tags")
        if len(tags) != len(words):
            raise ConfigError(f"has {len(words)} tokens, but {len(tags)} tags")
        return tags

    def read(self, example: Example, *, labelled: bool = True) -> Sentence:
        """Return the words, their labels' numbers, and which are the predicate."""
        tags = self.label(example) if labelled else []
        ids = tuple(label_id(tag, self.labels) for tag in tags)
        words = tuple(self._words(example))
        predicate = self._predicate(example, count=len(words))
        return Sentence(words, ids if labelled else (0,) * len(words), predicate)

    def encode(
        self, readings: Sequence[Sentence], tokenizer: Tokenizer
    ) -> list[Sequence[Row]]:
        """Return rows; words that do not fit are cut off.

        Raises:
          ConfigError: the tokenizer has no separator to mark a predicate with.
        """
        if self.fields.predicate and self.mark == "separators":
            _check_separator(tokenizer)
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
        """Return tokens, segments, positions, token_types, labels, weights: (B, T)."""
        batch = token_rows(rows, length=length)
        batch["token_types"] = np.zeros_like(batch["tokens"])
        batch["labels"] = np.zeros_like(batch["tokens"])
        batch["weights"] = np.zeros(batch["tokens"].shape, np.float32)
        for b, row in enumerate(rows):
            if row is not None:
                batch["token_types"][b, : len(row["types"])] = row["types"]
                batch["labels"][b, row["place"]] = row["label"]
                batch["weights"][b, row["place"]] = 1.0
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
        tags_W = outputs[0]["tags"][rows[0].columns["place"]]
        tags = [self.labels[i] for i in tags_W]
        if self.repair:
            tags = spans.repaired(tags, known=self.labels)
        return {"tags": [*tags, *[None] * (len(reading.words) - len(tags))]}

    def identity(self) -> Any:
        """Return the fields, the labels, the length, and how rows are marked."""
        names = self.fields.tokens, self.fields.tags, self.fields.predicate
        marks = self.mark, self.casing, self.label_at
        return ["tag", *names, self.labels, self.length, *marks]

    def _words(self, example: Example) -> list[str]:
        leaf = f"{FIELDS}.tokens"
        return fields.words_of(example, self.fields.tokens, leaf=leaf)

    def _predicate(self, example: Example, *, count: int) -> tuple[int, ...]:
        name, leaf = self.fields.predicate, f"{FIELDS}.predicate"
        if not name:
            return ()
        return fields.places_of(example, name, leaf=leaf, count=count)

    def _types(self, sentence: Sentence) -> list[int]:
        """Return the type of each word's tokens."""
        if self.casing:
            return [*map(case_of, sentence.words)]
        marked = sentence.predicate if self.mark == "token_types" else ()
        return [int(i in marked) for i in range(len(sentence.words))]

    def _row(
        self, sentence: Sentence, words: list[np.ndarray], tokenizer: Tokenizer
    ) -> Row:
        prefix, separator, suffix = around(tokenizer)
        # A word that the tokenizer has nothing for still needs a place.
        words = [word if len(word) else tokenizer.encode("?") for word in words]
        apart = separator if self.mark == "separators" else []
        pieces, lead_W, trail_W = _set_apart(words, sentence.predicate, apart)
        stops = np.cumsum([len(prefix), *map(len, pieces)])
        count = int(np.searchsorted(stops, self.length - len(suffix), "right")) - 1
        parts = [prefix, *pieces[:count], suffix]
        tokens = np.concatenate([np.asarray(part, np.int32) for part in parts])
        types = np.zeros_like(tokens)
        for i, word_type in enumerate(self._types(sentence)[:count]):
            types[stops[i] : stops[i + 1]] = word_type
        ends_W = stops[1:] - trail_W - 1
        place_W = stops[:-1] + lead_W if self.label_at == "first" else ends_W
        columns = {
            "tokens": tokens,
            "types": types,
            "place": place_W[:count],
            "label": np.array(sentence.labels[:count], np.int32),
        }
        return Row(columns=columns, size=len(tokens), truncated=count < len(words))


def _set_apart(
    words: Sequence[np.ndarray], places: Sequence[int], separator: Sequence[int]
) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """Return the words with separators around some, and their tokens before and after.

    Words that follow one another are set apart together.
    """
    pieces: list[Any] = [*words]
    lead_W, trail_W = np.zeros((2, len(words)), np.int64)
    for i in places:
        if i - 1 not in places:
            pieces[i], lead_W[i] = [*separator, *pieces[i]], len(separator)
        if i + 1 not in places:
            pieces[i], trail_W[i] = [*pieces[i], *separator], len(separator)
    return pieces, lead_W, trail_W


def _check_separator(tokenizer: Tokenizer) -> None:
    if not around(tokenizer)[1]:
        raise ConfigError(
            "config.task.mark_predicate = 'separators': the tokenizer has none"
        )


def _space(tokenizer: Tokenizer) -> str:
    """Return what stands before a word where the tokenizer does not put it there."""
    twice = [*tokenizer.encode("1"), *tokenizer.encode("1")]
    return " " if tokenizer.decode(twice) == "11" else ""
