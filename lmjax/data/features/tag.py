"""Examples of tagging: words, and a label for each.

B rows, T tokens in a row, W words in a sentence.
"""

import dataclasses
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lmjax.config.data import FieldsConfig
from lmjax.config.task import CASES
from lmjax.data.features import word_windows
from lmjax.data.features.features import (
    FIELDS,
    Columns,
    Row,
    around,
    label_id,
    token_rows,
)
from lmjax.data.features.word_windows import Window
from lmjax.data.formats import fields
from lmjax.data.formats.examples import Example
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError
from lmjax.metrics import spans

_NONE, _LOWER, _UPPER, _TITLE, _MIXED = range(len(CASES))


def case_of(word: str) -> int:
    """Return which of `CASES` a word is; a single capital begins a word."""
    if word.islower():
        return _LOWER
    if word.isupper() and len(word) > 1:
        return _UPPER
    if word[:1].isupper() and not any(map(str.isupper, word[1:])):
        return _TITLE
    return _MIXED if any(map(str.isupper, word)) else _NONE


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

    A sentence that is too long gives several rows, which have each word once. With a
    predicate it gives the one row around that; the words beyond are in no row, and
    given to no span.

    A row: `tokens`, `types` (of each), `place` (of the label of each of its words),
    `label`, `first` (the number of the first of these words).
    """

    fields: FieldsConfig
    labels: tuple[str, ...]
    length: int
    repair: bool
    unscored: tuple[str, ...] = ()  # types of spans
    mark: Literal["token_types", "separators"] = "token_types"
    casing: bool = False  # types are those of `CASES` instead
    label_at: Literal["first", "last"] = "first"  # of a word's tokens
    compares_answers = True

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
        tags = fields.get_labels(example, self.fields.tags, leaf=f"{FIELDS}.tags")
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
        """Return rows; of a word that does not fit its first tokens.

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
            self._rows(s, [next(encoded) for _ in s.words], tokenizer) for s in readings
        )
        return [[*rows] for rows in made]

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
        """Return the label of each word; O of one that is in no row."""
        tags = [spans.OUTSIDE] * len(reading.words)
        for row, output in zip(rows, outputs, strict=True):
            given = output["tags"][row.columns["place"]]
            first = int(row.columns["first"][0])
            tags[first : first + len(given)] = [self.labels[i] for i in given]
        if self.repair:
            tags = spans.repaired(tags, known=self.labels)
        return {"tags": tags}

    @property
    def judges(self) -> tuple[str, ...]:
        """Return the names of what `judge` returns.

        Raises:
          ConfigError: the labels are of spans, and seqeval is not installed.
        """
        if not spans.are(self.labels):
            return ("accuracy",)
        spans.library()
        return ("accuracy", *spans.NAMES)

    def judge(
        self, answers: Sequence[Mapping[str, Any]], readings: Sequence[Sentence]
    ) -> dict[str, float]:
        """Return the share of words that are right, and how well spans are found."""
        given = [answer["tags"] for answer in answers]
        true = [[self.labels[i] for i in reading.labels] for reading in readings]
        words = [*itertools.chain.from_iterable(true)]
        right = map(operator.eq, itertools.chain.from_iterable(given), words)
        found = {"accuracy": sum(right) / len(words)}
        if spans.are(self.labels):
            found |= spans.scores(given, true, unscored=self.unscored)
        return found

    def identity(self) -> Any:
        """Return the fields, the labels, the length, and how rows are marked."""
        names = self.fields.tokens, self.fields.tags, self.fields.predicate
        marks = self.mark, self.casing, self.label_at
        return ["tag", *names, self.labels, self.length, *marks]

    def _words(self, example: Example) -> list[str]:
        leaf = f"{FIELDS}.tokens"
        return fields.get_words(example, self.fields.tokens, leaf=leaf)

    def _predicate(self, example: Example, *, count: int) -> tuple[int, ...]:
        name, leaf = self.fields.predicate, f"{FIELDS}.predicate"
        if not name:
            return ()
        return fields.get_word_indices(example, name, leaf=leaf, count=count)

    def _types(self, sentence: Sentence) -> list[int]:
        """Return the type of each word's tokens."""
        if self.casing:
            return [*map(case_of, sentence.words)]
        marked = sentence.predicate if self.mark == "token_types" else ()
        return [int(i in marked) for i in range(len(sentence.words))]

    def _rows(
        self, sentence: Sentence, words: list[np.ndarray], tokenizer: Tokenizer
    ) -> Iterator[Row]:
        prefix, separator, suffix = around(tokenizer)
        apart = separator if self.mark == "separators" else []
        room = self.length - len(prefix) - len(suffix)
        # A word that the tokenizer has nothing for still needs a place.
        words = [word if len(word) else tokenizer.encode("?") for word in words]
        fitting = [word[: room - 2 * len(apart)] for word in words]
        pieces, lead_W, trail_W = word_windows.set_apart(
            fitting, sentence.predicate, apart
        )
        sizes_W = np.array([*map(len, pieces)])
        windows = [*self._windows(sizes_W, sentence, room=room)]
        types_W, labels_W = map(np.array, (self._types(sentence), sentence.labels))
        cut = sum(len(window.own) for window in windows) < len(words)
        cut |= any(map(operator.ne, map(len, fitting), map(len, words)))
        for window in windows:
            here, own = (np.array(part) for part in window)
            end_W = len(prefix) + np.cumsum(sizes_W[here])
            first_W = end_W - sizes_W[here] + lead_W[here]
            last_W = end_W - trail_W[here] - 1
            place_W = first_W if self.label_at == "first" else last_W
            tokens = np.concatenate([prefix, *(pieces[i] for i in here), suffix])
            types = np.zeros(len(tokens), np.int32)
            types[len(prefix) : end_W[-1]] = np.repeat(types_W[here], sizes_W[here])
            columns = {
                "tokens": tokens.astype(np.int32),
                "types": types,
                "place": place_W[-len(own) :],
                "label": labels_W[own],
                "first": own[:1],
            }
            yield Row(columns=columns, size=len(tokens), truncated=cut)

    def _windows(
        self, sizes_W: np.ndarray, sentence: Sentence, *, room: int
    ) -> Iterable[Window]:
        """Return the rows' words: all of them, or those around a predicate.

        Without its predicate a row would not say what is asked, and most arguments are
        near it.
        """
        if sentence.predicate:
            return [word_windows.centred(sizes_W, sentence.predicate, room=room)]
        return word_windows.consecutive(sizes_W, room=room)


def _check_separator(tokenizer: Tokenizer) -> None:
    if not around(tokenizer)[1]:
        raise ConfigError(
            "config.task.mark_predicate = 'separators': the tokenizer has none"
        )


def _space(tokenizer: Tokenizer) -> str:
    """Return what stands before a word where the tokenizer does not put it there."""
    twice = [*tokenizer.encode("1"), *tokenizer.encode("1")]
    return " " if tokenizer.decode(twice) == "11" else ""
