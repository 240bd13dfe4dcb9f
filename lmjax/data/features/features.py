"""How an example becomes rows of a batch, and what the model says an answer.

Each task has a room of its own, `NAME_features.py`; the table of them is in
`task_features.py`. B rows, T tokens in a row.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lmjax.data.formats.examples import Example
from lmjax.data.tokenizers.special_ids import not_none
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError, nearest

if TYPE_CHECKING:
    from lmjax.types import HostBatch

FIELDS = "config.data.fields"
Columns = Mapping[str, np.ndarray]  # one-dimensional arrays of int32, by name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """An encoded example, or a part of one."""

    columns: Columns
    size: int  # the length of the shortest batch that holds it
    truncated: bool = False
    learnt: bool = True  # else it serves predictions alone, and no store keeps it
    # Where in its text each of its tokens stands, if an answer tells: int32 (T, 2).
    offsets: np.ndarray | None = None


class Features(Protocol):
    """What a task reads of an example; small to pickle, for loader processes."""

    def texts(self, example: Example) -> list[str]:
        """Return what a tokenizer would be trained on."""

    def read(self, example: Example, *, labelled: bool = True) -> Any:
        """Return what `encode` takes, checked.

        Raises:
          ConfigError: without the example's place.
        """

    def encode(
        self, readings: Sequence[Any], tokenizer: Tokenizer
    ) -> list[Sequence[Row]]:
        """Return the rows of each of some examples, cut to `config.data.length`."""

    def batch(self, rows: Sequence[Columns | None], *, length: int) -> "HostBatch":
        """Return a batch of encoded rows; None is a row of padding, of weight 0."""

    def of_text(self, text: str) -> Example:
        """Return the example that a text alone stands for."""

    def answer(
        self, reading: Any, rows: Sequence[Row], outputs: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return JSON of what the task says of an example, given the model's outputs.

        Args:
          reading: of `read`.
          rows: of `encode`.
          outputs: of the model, one for each row.
        """

    def identity(self) -> Any:
        """Return JSON of what decides the rows."""


class Labelling(Features, Protocol):
    """Features of a task that has a set of labels."""

    @property
    def label_field(self) -> str:
        """Return the name of the part that holds the labels."""

    def label(self, example: Example) -> Sequence[str]:
        """Return the labels of an example."""


class Judging(Features, Protocol):
    """Features of a task whose answers evaluation compares to what is right."""

    @property
    def judges(self) -> tuple[str, ...]:
        """Return the names of what `judge` returns.

        Raises:
          ConfigError: the package that makes one of them is not installed.
        """

    @property
    def compares_answers(self) -> bool:
        """Return whether `judge` reads the answers; else there need be none."""

    def judge(
        self, answers: Sequence[Mapping[str, Any]], readings: Sequence[Any]
    ) -> dict[str, float]:
        """Return the metrics of answers to examples that were read with theirs."""


class Writing(Judging, Protocol):
    """Features of a task whose answers the model writes."""

    def asked(self, row: Columns) -> dict[str, Any]:
        """Return what is written for a row: after which `prompts`, of what `sources`.

        Those are names of arguments of `BeamSearch.search`.
        """


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
    rows: Sequence[Columns | None], *, length: int, column: str = "tokens"
) -> "HostBatch":
    """Return tokens, segments (1, and 0 for padding) and positions, int32 (B, T)."""
    shape = (len(rows), length)
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for b, row in enumerate(rows):
        if row is not None:
            size = len(row[column])
            tokens[b, :size], segments[b, :size] = row[column], 1
    positions = np.arange(length, dtype=np.int32) * segments
    return {"tokens": tokens, "segments": segments, "positions": positions}


def around(tokenizer: Tokenizer) -> tuple[list[int], list[int], list[int]]:
    """Return the ids before, between and after texts."""
    prefix = tokenizer.prefix_ids or not_none(tokenizer.bos_id)
    between = tokenizer.pair_ids or not_none(tokenizer.eos_id)
    return [*prefix], [*between], [*tokenizer.suffix_ids]
