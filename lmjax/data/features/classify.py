"""Examples of classification: a text, or a pair of them, and a label.

B rows, T tokens in a row.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lmjax.config.data import FieldsConfig
from lmjax.data.features.features import (
    FIELDS,
    Columns,
    Row,
    around,
    label_id,
    token_rows,
)
from lmjax.data.formats import fields
from lmjax.data.formats.examples import Example
from lmjax.data.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lmjax.types import HostBatch


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
    keep: Literal["start", "end", "both"] = "start"  # of a text that is too long

    def texts(self, example: Example) -> list[str]:
        """Return the text, and the one it is paired with."""
        names = ("text", "pair") if self.fields.pair else ("text",)
        return [
            fields.get_text(
                example, getattr(self.fields, name), leaf=f"{FIELDS}.{name}"
            )
            for name in names
        ]

    @property
    def label_field(self) -> str:
        """Return the name of the label."""
        return self.fields.label

    def label(self, example: Example) -> list[str]:
        """Return the label."""
        leaf = f"{FIELDS}.label"
        return [fields.get_label(example, self.fields.label, leaf=leaf)]

    def read(self, example: Example, *, labelled: bool = True) -> Reading:
        """Return the texts and the label's number."""
        label = label_id(self.label(example)[0], self.labels) if labelled else 0
        return Reading(tuple(self.texts(example)), label)

    def encode(
        self, readings: Sequence[Reading], tokenizer: Tokenizer
    ) -> list[Sequence[Row]]:
        """Return rows; of two texts that are too long the longer one is cut first."""
        flat = [text for reading in readings for text in reading.texts]
        encoded = iter(tokenizer.encode_batch(flat))
        made = (
            self._row([next(encoded) for _ in reading.texts], reading.label, tokenizer)
            for reading in readings
        )
        return [(row,) for row in made]

    def batch(self, rows: Sequence[Columns | None], *, length: int) -> "HostBatch":
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
        self,
        reading: Reading,
        rows: Sequence[Row],
        outputs: Sequence[Mapping[str, np.ndarray]],
    ) -> dict[str, Any]:
        """Return the likeliest label, and the probability of each."""
        probs_C = outputs[0]["probabilities"]
        each = zip(self.labels, probs_C.tolist(), strict=True)
        return {
            "label": self.labels[int(probs_C.argmax())],
            "probabilities": {label: round(p, 6) for label, p in each},
        }

    def identity(self) -> Any:
        """Return the fields, the labels, the length and what is kept."""
        names = self.fields.text, self.fields.pair, self.fields.label
        return ["classify", *names, self.labels, self.length, self.keep]

    def _row(self, texts: list[np.ndarray], label: int, tokenizer: Tokenizer) -> Row:
        prefix, between, suffix = around(tokenizer)
        between = between if len(texts) > 1 else []
        room = self.length - len(prefix) - len(between) - len(suffix)
        kept = _fit([len(text) for text in texts], room)
        first, *second = (
            _cut(text, size, keep=self.keep)
            for text, size in zip(texts, kept, strict=True)
        )
        parts = [prefix, first, between, *second, suffix]
        begin = len(prefix) + len(first) + len(between)
        tokens = np.concatenate([np.asarray(part, np.int32) for part in parts])
        columns = {
            "tokens": tokens,
            "second": np.array([begin if second else self.length], np.int32),
            "label": np.array([label], np.int32),
        }
        return Row(
            columns=columns,
            size=len(tokens),
            truncated=sum(kept) < sum(map(len, texts)),
        )


def _cut(text: np.ndarray, size: int, *, keep: str) -> np.ndarray:
    """Return `size` tokens of a text: the first, the last, or half of either."""
    from_end = {"start": 0, "end": size, "both": size // 2}[keep]
    return np.concatenate([text[: size - from_end], text[len(text) - from_end :]])


def _fit(sizes: Sequence[int], room: int) -> list[int]:
    """Return how much to keep of one or two texts, the longer one cut first."""
    if len(sizes) == 1:
        return [min(sizes[0], room)]
    a, b = sizes
    half = room // 2
    kept = min(a, max(half, room - b))
    return [kept, min(b, room - kept)]
