"""A fine-tuned task applied to examples: batched by length, answered in their order.

The model says at once what it makes of a batch, or writes its answers token by token.

B rows of a batch.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lmjax import tasks
from lmjax.config.compatibility import EXAMPLE_SOURCES
from lmjax.config.experiment import Config
from lmjax.config.task import ExampleTaskConfig, GenerationTaskConfig
from lmjax.data import bucketing
from lmjax.data.bucketing import PADDING, Buckets
from lmjax.data.features.features import Columns, Row
from lmjax.data.features.registry import make_features
from lmjax.data.formats.examples import Example, add_location
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError, UserError
from lmjax.generate.writer import Writer
from lmjax.models import Model
from lmjax.parallel import sharding
from lmjax.parallel.batch import device_get_ahead, local_rows, put_batch
from lmjax.types import Array, Batch, Params

# In a batch, unless there are fewer to predict; and what is kept of texts in writing.
TOKENS = 8192
SLOTS = 32_768


def check(config: Config) -> None:
    """Find before anything is read that a run's task gives examples no answers.

    Raises:
      ConfigError: naming the tasks that do.
    """
    if not isinstance(config.task, ExampleTaskConfig):
        raise ConfigError(
            f"config.task.kind = {config.task.kind!r}: predict applies a task that is "
            f"learnt from examples: {', '.join(EXAMPLE_SOURCES)}; for text there is "
            "generate"
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """Examples to answer: what was read of each, and its rows."""

    readings: Sequence[Any]
    parts: Sequence[Sequence[Row]]

    @property
    def num_truncated(self) -> int:
        """Count the examples that were cut to fit."""
        return sum(any(row.truncated for row in part) for part in self.parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """Answers for examples, by a model and the task it was trained on.

    Raises:
      ConfigError: the task has no answers.
    """

    config: Config
    tokenizer: Tokenizer
    model: Model

    def __post_init__(self) -> None:
        check(self.config)

    def read(self, example: Example | str) -> Any:
        """Return what `asked` takes of an example: a mapping, or just a text.

        Raises:
          ConfigError: a field is missing, or not what it should be.
        """
        if isinstance(example, str):
            example = self._features.of_text(example)
        if not isinstance(example, Mapping):
            kind = type(example).__name__
            raise ConfigError(f"must be a mapping of fields, or a text, not {kind}")
        return self._features.read(example, labelled=False)

    def read_all(self, examples: Sequence[Example | str]) -> list[Any]:
        """Return what `asked` takes; as `read`, but the error names the example."""
        readings = []
        for i, example in enumerate(examples):
            try:
                readings.append(self.read(example))
            except UserError as error:
                raise add_location(error, f"examples[{i}]") from error
        return readings

    def asked(self, readings: Sequence[Any]) -> Asked:
        """Return examples that were read as the model takes them."""
        parts = self._features.encode(readings, self.tokenizer)
        return Asked(readings=readings, parts=parts)

    def answers(
        self, params: Params, asked: Asked, *, mesh: Mesh
    ) -> list[dict[str, Any]]:
        """Return the answer to each example."""
        rows = [row for part in asked.parts for row in part]
        outputs: list[Mapping[str, Any]] = [{} for _ in rows]
        with jax.set_mesh(mesh):
            for i, output in self._outputs(params, rows, mesh):
                outputs[i] = output
        given = iter(outputs)
        return [
            self._features.answer(reading, part, [next(given) for _ in part])
            for reading, part in zip(asked.readings, asked.parts, strict=True)
        ]

    def judged(
        self, params: Params, examples: Sequence[Example], *, mesh: Mesh
    ) -> dict[str, float]:
        """Return the metrics of the answers to examples that say what is right."""
        features, answers = self._features, list[dict[str, Any]]()
        if features.compares_answers:
            # What is right is not there to be read, as it will not be later.
            readings = [features.read(example, labelled=False) for example in examples]
            answers = self.answers(params, self.asked(readings), mesh=mesh)
        return features.judge(answers, [features.read(example) for example in examples])

    def _outputs(
        self, params: Params, rows: Sequence[Row], mesh: Mesh
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield what the model says of each row, and its number."""
        batches = self._batches(rows, data_shards=sharding.data_shards(mesh))
        filled = (
            ([_columns(rows, i) for i in examples_B], length)
            for length, examples_B in batches
        )
        outputs: Iterator[Mapping[str, Any]]
        if self._writer is None:
            said = (self._said(params, *batch, mesh) for batch in filled)
            outputs = device_get_ahead(said)
        else:
            outputs = (self._written(params, columns) for columns, _ in filled)
        for (_, examples_B), output in zip(batches, outputs, strict=True):
            for b in np.flatnonzero(examples_B != PADDING):
                own = {name: values[b] for name, values in output.items()}
                yield int(examples_B[b]), own

    def _batches(
        self, rows: Sequence[Row], *, data_shards: int
    ) -> list[tuple[int, np.ndarray]]:
        """Return the length and the rows of each batch, the shortest first."""
        if not rows:
            return []
        lengths = np.array([row.size for row in rows])
        longest = max(self.config.data.length, int(lengths.max()))
        ladder = np.array(bucketing.doubling_lengths(longest))
        most = TOKENS // ladder
        if self._writer is not None:
            most = SLOTS // self._writer.slots(ladder)
        buckets = _buckets(lengths, ladder=ladder, most=most, data_shards=data_shards)
        epoch = bucketing.sorted_epoch(lengths, buckets)
        return [epoch.batch(number) for number in range(len(epoch))]

    def _said(
        self, params: Params, rows: Sequence[Columns | None], length: int, mesh: Mesh
    ) -> dict[str, Array]:
        """Return what the task makes of the rows of a batch, in every process."""
        here = [rows[i] for i in local_rows(mesh, len(rows))]
        batch = put_batch(self._features.batch(here, length=length), mesh)
        return self._predict(params, batch)

    def _written(
        self, params: Params, rows: Sequence[Columns | None]
    ) -> dict[str, list[Any]]:
        """Return the texts that the model writes for each row of a batch."""
        assert self._writer is not None
        real = [row for row in rows if row is not None]
        filled = [*real, *real[:1] * (len(rows) - len(real))]
        asked = [self._features.asked(row) for row in filled]
        return {"texts": self._writer.texts(params, asked)}

    @functools.cached_property
    def _writer(self) -> Writer | None:
        """Return what writes the answers, where they are written."""
        task = self.config.task
        if not isinstance(task, GenerationTaskConfig):
            return None
        return Writer(task.write, self.tokenizer, self.model)

    @functools.cached_property
    def _features(self) -> Any:
        return make_features(self.config)

    @functools.cached_property
    def _predict(self) -> Any:
        task: Any = tasks.build(self.config.task)

        def predict(params: Params, batch: Batch) -> dict[str, Array]:
            return sharding.replicate(task.predict(self.model, params, batch))

        return jax.jit(predict)


def _columns(rows: Sequence[Row], number: int) -> Columns | None:
    return None if number == PADDING else rows[number].columns


def _buckets(
    lengths_N: np.ndarray,
    *,
    ladder: np.ndarray,
    most: np.ndarray,
    data_shards: int,
) -> Buckets:
    """Return buckets of the ladder's lengths, of as many rows as there are, or may be.

    Row counts are powers of two, as far as the mesh allows: few shapes are compiled,
    whatever is asked.
    """
    counts = np.bincount(np.searchsorted(ladder, lengths_N), minlength=len(ladder))
    num_rows = [
        -(-min(_power_of_two(int(count)), max(int(limit), 1)) // data_shards)
        * data_shards
        for count, limit in zip(counts, most, strict=True)
    ]
    return Buckets(lengths=tuple(ladder.tolist()), num_rows=tuple(num_rows))


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
