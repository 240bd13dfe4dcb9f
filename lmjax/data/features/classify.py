"""Features of classification: a text, or a pair of texts, and a label.

B rows, T tokens in a row.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from lmjax.config.data import FieldsConfig
from lmjax.config.experiment import Config
from lmjax.config.task import ClassifyConfig
from lmjax.data.features.features import (
    FIELDS,
    Columns,
    Features,
    Row,
    find_label_id,
    pad_token_rows,
    wrapper_ids,
)
from lmjax.data.formats import fields
from lmjax.data.formats.examples import Example
from lmjax.data.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lmjax.types import HostBatch


@dataclasses.dataclass(frozen=True)
class LabelledText:
    """A text, or a pair, and the number of its label; 0 where that is not known."""

    texts: tuple[str, ...]
    label: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyFeatures(Features):
    """One or two texts between special tokens, and a label.

    Columns: `tokens`, `second` (where the second text starts, or the length of a row if
    there is one), `label`.
    """

    fields: FieldsConfig
    labels: tuple[str, ...]
    length: int
    keep: Literal["start", "end", "both"] = "start"  # of a text that is too long

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Return the features of a config."""
        task = config.task
        assert isinstance(task, ClassifyConfig)
        return cls(
            fields=config.data.fields,
            labels=task.labels,
            length=config.data.length,
            keep=task.keep,
        )

    def texts(self, example: Example) -> list[str]:
        """Return the text, or both texts of a pair."""
        names = ("text", "pair") if self.fields.pair else ("text",)
        return [
            fields.get_text(
                example, getattr(self.fields, name), leaf=f"{FIELDS}.{name}"
            )
            for name in names
        ]

    @property
    def label_field(self) -> str:
        """Return the name of the field with the label."""
        return self.fields.label

    def labels_of(self, example: Example) -> list[str]:
        """Return the one label."""
        leaf = f"{FIELDS}.label"
        return [fields.get_label(example, self.fields.label, leaf=leaf)]

    def parse(self, example: Example, *, labelled: bool = True) -> LabelledText:
        """Return the texts and the label's number."""
        label = 0
        if labelled:
            label = find_label_id(self.labels_of(example)[0], self.labels)
        return LabelledText(tuple(self.texts(example)), label)

    def encode(
        self, parsed: Sequence[LabelledText], tokenizer: Tokenizer
    ) -> list[Sequence[Row]]:
        """Return a row for each; of a pair that is too long the longer is cut first."""
        texts = [text for example in parsed for text in example.texts]
        encoded = iter(tokenizer.encode_batch(texts))
        return [
            [self._row([next(encoded) for _ in e.texts], e.label, tokenizer)]
            for e in parsed
        ]

    def batch(self, rows: Sequence[Columns | None], *, length: int) -> "HostBatch":
        """Return tokens, segments, positions, token_types (B, T); labels, weights."""
        batch = pad_token_rows(rows, length=length)
        index_T = np.arange(length)
        batch["token_types"] = np.zeros_like(batch["tokens"])
        batch["labels"] = np.zeros(len(rows), np.int32)
        batch["weights"] = np.zeros(len(rows), np.float32)
        for b, row in enumerate(rows):
            if row is not None:
                real_T = batch["segments"][b] > 0
                batch["token_types"][b] = real_T & (index_T >= row["second"][0])
                batch["labels"][b] = row["label"][0]
                batch["weights"][b] = 1.0
        return batch

    def example_from_text(self, text: str) -> Example:
        """Return an example of one text."""
        return {self.fields.text: text}

    def postprocess(
        self,
        parsed: LabelledText,
        rows: Sequence[Columns],
        outputs: Sequence[Mapping[str, np.ndarray]],
    ) -> dict[str, Any]:
        """Return the most likely label, and the probability of each."""
        probs_C = outputs[0]["probabilities"]
        pairs = zip(self.labels, probs_C.tolist(), strict=True)
        return {
            "label": self.labels[int(probs_C.argmax())],
            "probabilities": {label: round(p, 6) for label, p in pairs},
        }

    def identity(self) -> Any:
        """Return the fields, the labels, the length and how texts are cut."""
        names = self.fields.text, self.fields.pair, self.fields.label
        return ["classify", *names, self.labels, self.length, self.keep]

    def _row(self, texts: list[np.ndarray], label: int, tokenizer: Tokenizer) -> Row:
        prefix, between, suffix = wrapper_ids(tokenizer)
        between = between if len(texts) > 1 else []
        room = self.length - len(prefix) - len(between) - len(suffix)
        kept = _allot([len(text) for text in texts], room)
        first, *second = (
            _cut(text, size, keep=self.keep)
            for text, size in zip(texts, kept, strict=True)
        )
        parts = [prefix, first, between, *second, suffix]
        start = len(prefix) + len(first) + len(between)
        tokens = np.concatenate([np.asarray(part, np.int32) for part in parts])
        columns = {
            "tokens": tokens,
            "second": np.array([start if second else self.length], np.int32),
            "label": np.array([label], np.int32),
        }
        return Row(
            columns=columns,
            size=len(tokens),
            truncated=sum(kept) < sum(map(len, texts)),
        )


def _cut(text: np.ndarray, size: int, *, keep: str) -> np.ndarray:
    """Cut a text to `size` tokens: the first, the last, or half of either."""
    from_end = {"start": 0, "end": size, "both": size // 2}[keep]
    return np.concatenate([text[: size - from_end], text[len(text) - from_end :]])


def _allot(sizes: Sequence[int], room: int) -> list[int]:
    """Return how many tokens to keep of one or two texts; the longer is cut first."""
    if len(sizes) == 1:
        return [min(sizes[0], room)]
    a, b = sizes
    half = room // 2
    kept = min(a, max(half, room - b))
    return [kept, min(b, room - kept)]
