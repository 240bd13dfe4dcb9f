"""Features of tagging: words, and a label for each.

B rows, T tokens in a row, W words in a sentence.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from lmjax.config.data import FieldsConfig
from lmjax.config.experiment import Config
from lmjax.config.task import CASES, Scheme, TagConfig
from lmjax.data.features import word_windows
from lmjax.data.features.features import (
    FIELDS,
    Columns,
    Features,
    Row,
    find_label_id,
    pad_token_rows,
    pooling_end,
    wrapper_ids,
)
from lmjax.data.features.word_windows import Window
from lmjax.data.formats import fields
from lmjax.data.formats.examples import Example
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError, nearest
from lmjax.metrics import spans

if TYPE_CHECKING:
    from lmjax.types import HostBatch


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence: its words, the number of each one's label, and its predicate."""

    words: tuple[str, ...]
    labels: tuple[int, ...]
    predicate: tuple[int, ...] = ()  # the indices of its words


@dataclasses.dataclass(frozen=True, kw_only=True)
class TagFeatures(Features):
    """Words between special tokens, with a label at one token of each.

    A predicate, where examples have one, is marked: its tokens are of type 1 (Shi and
    Lin 2019 have such an embedding), or it is between separators.

    A sentence that is too long becomes several rows, each word labelled in one. With a
    predicate it becomes one row around that; words outside are in no row, and are
    predicted to be in no span.

    Columns: `tokens`, `types` (of each), `place` (the index of the labelled token of
    each word), `label`, `first` (the index of the first labelled word).
    """

    fields: FieldsConfig
    labels: tuple[str, ...]
    length: int
    repair: bool
    scheme: Scheme = "auto"  # of tags; here the one that has the labels
    strict: bool = False  # how spans are read
    unscored: tuple[str, ...] = ()  # types of spans
    mark: Literal["token_types", "separators"] = "token_types"
    casing: bool = False  # token types are those of `CASES` instead
    label_at: Literal["first", "last"] = "first"  # of a word's tokens

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Return the features of a config."""
        task = config.task
        assert isinstance(task, TagConfig)
        return cls(
            fields=config.data.fields,
            labels=task.labels,
            length=config.data.length,
            repair=task.repair,
            scheme=task.scheme,
            strict=task.strict,
            unscored=task.unscored,
            mark=task.mark_predicate,
            casing=task.casing,
            label_at=pooling_end(config),
        )

    def texts(self, example: Example) -> list[str]:
        """Return the words as a text."""
        return [" ".join(self._words(example))]

    @property
    def label_field(self) -> str:
        """Return the name of the field with the tags."""
        return self.fields.tags

    def labels_of(self, example: Example) -> list[str]:
        """Return the label of each word."""
        words = self._words(example)
        tags = fields.get_labels(example, self.fields.tags, leaf=f"{FIELDS}.tags")
        if len(tags) != len(words):
            raise ConfigError(f"has {len(words)} tokens, but {len(tags)} tags")
        return tags

    def check_labels(self) -> None:
        """Check that either all labels are tags of spans, or none is.

        Raises:
          ConfigError: some are and some are not, or `unscored` names no type of span.
        """
        spans.check_labels(self.labels, scheme=self.scheme, strict=self.strict)
        types = spans.span_types(self.labels) if self._scheme else []
        for name in self.unscored:
            if name not in types:
                raise ConfigError(
                    f"config.task.unscored: {name!r} is no type of span"
                    f"{nearest(name, types)}; there are {', '.join(types) or 'none'}"
                )

    def parse(self, example: Example, *, labelled: bool = True) -> Sentence:
        """Return the words, the numbers of their labels, and the predicate."""
        tags = self.labels_of(example) if labelled else []
        ids = tuple(find_label_id(tag, self.labels) for tag in tags)
        words = tuple(self._words(example))
        predicate = self._predicate(example, count=len(words))
        return Sentence(words, ids if labelled else (0,) * len(words), predicate)

    def encode(
        self, parsed: Sequence[Sentence], tokenizer: Tokenizer
    ) -> list[Sequence[Row]]:
        """Return the rows of each; a word that does not fit a row is cut at the end.

        Raises:
          ConfigError: the tokenizer has no separator to mark a predicate with.
        """
        if self.fields.predicate and self.mark == "separators":
            _check_separator(tokenizer)
        space = word_separator(tokenizer)
        words = [
            (space if i else "") + word
            for sentence in parsed
            for i, word in enumerate(sentence.words)
        ]
        encoded = iter(tokenizer.encode_batch(words))
        return [
            [*self._rows(s, [next(encoded) for _ in s.words], tokenizer)]
            for s in parsed
        ]

    def batch(self, rows: Sequence[Columns | None], *, length: int) -> "HostBatch":
        """Return tokens, segments, positions, token_types, labels, weights: (B, T)."""
        batch = pad_token_rows(rows, length=length)
        batch["token_types"] = np.zeros_like(batch["tokens"])
        batch["labels"] = np.zeros_like(batch["tokens"])
        batch["weights"] = np.zeros(batch["tokens"].shape, np.float32)
        for b, row in enumerate(rows):
            if row is not None:
                batch["token_types"][b, : len(row["types"])] = row["types"]
                batch["labels"][b, row["place"]] = row["label"]
                batch["weights"][b, row["place"]] = 1.0
        return batch

    def example_from_text(self, text: str) -> Example:
        """Return an example of a text, split at white space."""
        return {self.fields.tokens: text.split()}

    def postprocess(
        self,
        parsed: Sentence,
        rows: Sequence[Columns],
        outputs: Sequence[Mapping[str, np.ndarray]],
    ) -> dict[str, Any]:
        """Return the label of each word; O for one that is in no row."""
        tags = [self._outside] * len(parsed.words)
        for row, output in zip(rows, outputs, strict=True):
            ids = output["tags"][row["place"]]
            first = int(row["first"][0])
            tags[first : first + len(ids)] = [self.labels[i] for i in ids]
        if self.repair and self._scheme:
            tags = spans.repair_tags(tags, labels=self.labels, scheme=self._scheme)
        return {"tags": tags}

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Return the names of the values that `compute_metrics` returns.

        Raises:
          ConfigError: the labels are tags of spans, and seqeval is not installed.
        """
        if self._scheme is None:
            return ("accuracy",)
        spans.import_seqeval()
        return ("accuracy", *spans.METRICS)

    def compute_metrics(
        self, predictions: Sequence[Mapping[str, Any]], parsed: Sequence[Sentence]
    ) -> dict[str, float]:
        """Return the accuracy over words; precision, recall and F1 over spans."""
        predicted = [prediction["tags"] for prediction in predictions]
        true = [[self.labels[i] for i in sentence.labels] for sentence in parsed]
        words = [*itertools.chain.from_iterable(true)]
        correct = map(operator.eq, itertools.chain.from_iterable(predicted), words)
        metrics = {"accuracy": sum(correct) / len(words)}
        if self._scheme is not None:
            metrics |= spans.score_spans(
                predicted,
                true,
                unscored=self.unscored,
                scheme=self._scheme,
                strict=self.strict,
            )
        return metrics

    def identity(self) -> Any:
        """Return the fields, the labels, the length, and how words are marked."""
        names = self.fields.tokens, self.fields.tags, self.fields.predicate
        marks = self.mark, self.casing, self.label_at
        return ["tag", *names, self.labels, self.length, *marks]

    @functools.cached_property
    def _scheme(self) -> Scheme | None:
        """Return the scheme of the labels; None if they are not tags of spans."""
        guessed = spans.guess_scheme(self.labels)
        return guessed if self.scheme == "auto" else self.scheme

    @property
    def _outside(self) -> str:
        """Return the label of words outside of all spans, as the labels spell it."""
        return next(filter(spans.is_outside, self.labels), spans.OUTSIDE)

    def _words(self, example: Example) -> list[str]:
        leaf = f"{FIELDS}.tokens"
        return fields.get_words(example, self.fields.tokens, leaf=leaf)

    def _predicate(self, example: Example, *, count: int) -> tuple[int, ...]:
        name, leaf = self.fields.predicate, f"{FIELDS}.predicate"
        if not name:
            return ()
        return fields.get_word_indices(example, name, leaf=leaf, count=count)

    def _types(self, sentence: Sentence) -> list[int]:
        """Return the token type of each word."""
        if self.casing:
            return [*map(classify_case, sentence.words)]
        marked = sentence.predicate if self.mark == "token_types" else ()
        return [int(i in marked) for i in range(len(sentence.words))]

    def _rows(
        self, sentence: Sentence, words: list[np.ndarray], tokenizer: Tokenizer
    ) -> Iterator[Row]:
        prefix, separator, suffix = wrapper_ids(tokenizer)
        separator = separator if self.mark == "separators" else []
        room = self.length - len(prefix) - len(suffix)
        # A word without tokens still needs one for its label.
        words = [word if len(word) else tokenizer.encode("?") for word in words]
        fitting = [word[: room - 2 * len(separator)] for word in words]
        pieces, lead_W, trail_W = word_windows.separate_words(
            fitting, sentence.predicate, separator
        )
        sizes_W = np.array([*map(len, pieces)])
        windows = [*self._windows(sizes_W, sentence, room=room)]
        types_W, labels_W = map(np.array, (self._types(sentence), sentence.labels))
        cut = sum(len(window.labelled) for window in windows) < len(words)
        cut |= any(map(operator.ne, map(len, fitting), map(len, words)))
        for window in windows:
            shown, labelled = (np.array(part) for part in window)
            end_W = len(prefix) + np.cumsum(sizes_W[shown])
            first_W = end_W - sizes_W[shown] + lead_W[shown]
            last_W = end_W - trail_W[shown] - 1
            place_W = first_W if self.label_at == "first" else last_W
            tokens = np.concatenate([prefix, *(pieces[i] for i in shown), suffix])
            types = np.zeros(len(tokens), np.int32)
            types[len(prefix) : end_W[-1]] = np.repeat(types_W[shown], sizes_W[shown])
            columns = {
                "tokens": tokens.astype(np.int32),
                "types": types,
                "place": place_W[-len(labelled) :],
                "label": labels_W[labelled],
                "first": labelled[:1],
            }
            yield Row(columns=columns, size=len(tokens), truncated=cut)

    def _windows(
        self, sizes_W: np.ndarray, sentence: Sentence, *, room: int
    ) -> Iterable[Window]:
        """Return the words of each row: all of them, or those around the predicate.

        A row without the predicate could not be labelled, and most arguments are near
        it.
        """
        if sentence.predicate:
            return [word_windows.center_window(sizes_W, sentence.predicate, room=room)]
        return word_windows.split_windows(sizes_W, room=room)


def classify_case(word: str) -> int:
    """Return the index in `CASES` of a word; a single capital is a title."""
    if word.islower():
        return CASES.index("lower")
    if word.isupper() and len(word) > 1:
        return CASES.index("upper")
    if word[:1].isupper() and not any(map(str.isupper, word[1:])):
        return CASES.index("title")
    return CASES.index("mixed" if any(map(str.isupper, word)) else "none")


def _check_separator(tokenizer: Tokenizer) -> None:
    if not wrapper_ids(tokenizer)[1]:
        raise ConfigError(
            "config.task.mark_predicate = 'separators': the tokenizer has none"
        )


def word_separator(tokenizer: Tokenizer) -> str:
    """Return the space before a word, or "" if the tokenizer adds it itself."""
    twice = [*tokenizer.encode("1"), *tokenizer.encode("1")]
    return " " if tokenizer.decode(twice) == "11" else ""
