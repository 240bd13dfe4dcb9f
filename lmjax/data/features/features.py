"""The contract of features: from examples to rows, and from outputs to predictions.

B rows of a batch, T tokens in a row.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from lmjax.config.experiment import Config
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
    used_for_training: bool = True  # else only predicted, and not stored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """How a task reads examples; small to pickle, for loader processes.

    An example is parsed, then encoded as rows; a batch is made of rows. The outputs of
    the model for the rows of an example become one prediction, in JSON.

    An interface: a task overrides what it is asked for. The methods for labels and for
    metrics of predictions raise in tasks that have neither; nobody calls them there.
    """

    # Columns that `postprocess` reads but `batch` does not: training does without.
    prediction_columns: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Return the features of a config."""
        raise NotImplementedError

    def texts(self, example: Example) -> list[str]:
        """Return the texts of an example, to train a tokenizer on."""
        raise NotImplementedError

    def parse(self, example: Example, *, labelled: bool = True) -> Any:
        """Check an example, and return what the other methods read of it.

        Args:
          example: its fields.
          labelled: whether the truth must be there; else it is not read.

        Raises:
          ConfigError: a field is missing or wrong; the caller adds where.
        """
        raise NotImplementedError

    def encode(
        self, parsed: Sequence[Any], tokenizer: Tokenizer
    ) -> list[Sequence[Row]]:
        """Return the rows of each parsed example, cut to `config.data.length`."""
        raise NotImplementedError

    def batch(self, rows: Sequence[Columns | None], *, length: int) -> "HostBatch":
        """Return a batch of encoded rows; None is a row of padding, of weight 0."""
        raise NotImplementedError

    def batch_packed(
        self, groups: Sequence[Sequence[Columns]], *, length: int
    ) -> "HostBatch":
        """Return a batch with several encoded rows in each; no row is padding.

        Only of tasks that set `packs_examples`.
        """
        raise NotImplementedError

    def example_from_text(self, text: str) -> Example:
        """Return the unlabelled example that a text alone stands for."""
        raise NotImplementedError

    def postprocess(
        self, parsed: Any, rows: Sequence[Columns], outputs: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return the prediction for an example, as JSON.

        Args:
          parsed: the example, of `parse`.
          rows: the columns of its rows, of `encode`.
          outputs: of the model for each row.
        """
        raise NotImplementedError

    def identity(self) -> Any:
        """Return JSON of all that decides the rows; stores are known by its hash."""
        raise NotImplementedError

    def for_training_alone(self) -> "Features":
        """Return the same without what only predictions read, where that takes long."""
        return self

    def tokenizer_identity(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        """Return what they read of a tokenizer besides how it encodes."""
        return ()

    # For tasks with labels, or with metrics of predictions.

    @property
    def label_field(self) -> str:
        """Return the name of the field that holds the labels."""
        raise NotImplementedError

    def labels_of(self, example: Example) -> Sequence[str]:
        """Return the labels of an example, of a task that has a set of them."""
        raise NotImplementedError

    def check_labels(self) -> None:
        """Check the labels of a task, once all are known.

        Raises:
          ConfigError: they do not belong together.
        """

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Return the names of the values that `compute_metrics` returns.

        Raises:
          ConfigError: a package that computes one of them is not installed.
        """
        return ()

    @property
    def needs_predictions(self) -> bool:
        """Return True if `compute_metrics` reads the predictions."""
        return bool(self.metric_names)

    def compute_metrics(
        self, predictions: Sequence[Mapping[str, Any]], parsed: Sequence[Any]
    ) -> dict[str, float]:
        """Compare the predictions for labelled examples with the truth.

        Args:
          predictions: of `postprocess`; empty unless `needs_predictions`.
          parsed: the examples, with their labels.
        """
        return {}

    def sign_metrics(self, parsed: Sequence[Any]) -> dict[str, str]:
        """Return how `compute_metrics` compares texts, by the name of the metric.

        Args:
          parsed: the examples, or enough of them to know their language.

        Raises:
          ConfigError: a package or a file that it needs for them is not installed.
        """
        return {}


def find_label_id(label: str, labels: Sequence[str]) -> int:
    """Return the number of a label.

    Raises:
      ConfigError: it is not one of the labels.
    """
    if label in labels:
        return labels.index(label)
    shown = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
    raise ConfigError(
        f"label {label!r}: not seen in training, nor given in config.task.labels"
        f"{nearest(label, labels)}; there are {shown}"
    )


def pad_token_rows(
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


def wrapper_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int], list[int]]:
    """Return the special ids before, between and after the texts of a row."""
    prefix = tokenizer.prefix_ids or not_none(tokenizer.bos_id)
    between = tokenizer.pair_ids or not_none(tokenizer.eos_id)
    return [*prefix], [*between], [*tokenizer.suffix_ids]


def pooling_end(config: Config) -> Literal["first", "last"]:
    """Return which token represents a whole word or row, the first or the last.

    A causal model has seen all of it only at the last.
    """
    return "first" if config.model.is_bidirectional else "last"
