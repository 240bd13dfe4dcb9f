"""Apply a trained task to examples: batched by length, predictions in their order.

Predictions are one forward pass of the model, or are decoded token by token.

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
from lmjax.config.experiment import Config
from lmjax.config.task import example_task_kinds
from lmjax.data import bucketing
from lmjax.data.bucketing import PADDING, Buckets
from lmjax.data.features.features import Columns, Features, Row
from lmjax.data.features.registry import make_features
from lmjax.data.formats.examples import Example, add_location
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError, UserError
from lmjax.generate.text_generator import TextGenerator
from lmjax.models import Model
from lmjax.parallel import sharding
from lmjax.parallel.batch import device_get_ahead, local_rows, put_batch
from lmjax.types import Array, Batch, Metrics, Params

# Tokens of a batch, unless there are fewer; cached tokens while texts are decoded.
MAX_TOKENS = 8192
MAX_CACHED_TOKENS = 32_768


def check(config: Config) -> None:
    """Check that a run's task makes predictions for examples.

    Raises:
      ConfigError: it does not; the error names the tasks that do.
    """
    if not config.task.reads_examples:
        raise ConfigError(
            f"config.task.kind = {config.task.kind!r}: predict applies a task that is "
            f"trained on examples: {', '.join(example_task_kinds())}; for text there "
            "is generate"
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EncodedExamples:
    """Parsed examples, and the rows of each."""

    parsed: Sequence[Any]
    rows: Sequence[Sequence[Row]]

    @property
    def num_truncated(self) -> int:
        """Return the number of examples that were cut to fit."""
        return sum(any(row.truncated for row in rows) for rows in self.rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """Predictions for examples, by a model and the task it was trained on.

    Raises:
      ConfigError: the task makes none.
    """

    config: Config
    tokenizer: Tokenizer
    model: Model

    def __post_init__(self) -> None:
        check(self.config)

    @functools.cached_property
    def features(self) -> Features:
        """Return the features of the task."""
        return make_features(self.config)

    def parse(self, example: Example | str) -> Any:
        """Parse an example, a mapping of fields or just a text, without its label.

        Raises:
          UserError: a field is missing or wrong.
        """
        if isinstance(example, str):
            example = self.features.example_from_text(example)
        if not isinstance(example, Mapping):
            kind = type(example).__name__
            raise UserError(f"must be a mapping of fields, or a text, not {kind}")
        return self.features.parse(example, labelled=False)

    def parse_all(self, examples: Sequence[Example | str]) -> list[Any]:
        """Parse several examples; an error names the example."""
        parsed = []
        for i, example in enumerate(examples):
            try:
                parsed.append(self.parse(example))
            except UserError as error:
                raise add_location(error, f"examples[{i}]") from error
        return parsed

    def encode_examples(self, parsed: Sequence[Any]) -> EncodedExamples:
        """Encode examples that were parsed."""
        rows = self.features.encode(parsed, self.tokenizer)
        return EncodedExamples(parsed=parsed, rows=rows)

    def predict(
        self, params: Params, examples: EncodedExamples, *, mesh: Mesh
    ) -> list[dict[str, Any]]:
        """Return the prediction for each example."""
        rows = [row for example in examples.rows for row in example]
        outputs = iter(self.run(params, rows, mesh=mesh))
        return [
            self.features.postprocess(
                parsed, [row.columns for row in rows], [next(outputs) for _ in rows]
            )
            for parsed, rows in zip(examples.parsed, examples.rows, strict=True)
        ]

    def evaluate(
        self, params: Params, rows: Sequence[Row], *, mesh: Mesh
    ) -> list[Metrics]:
        """Return the task's metrics of each labelled row by itself, as numbers."""
        found: list[Metrics] = [{} for _ in rows]
        with jax.set_mesh(mesh):
            plan = self._plan_batches(rows, data_shards=sharding.data_shards(mesh))
            batches = device_get_ahead(
                self._row_metrics(params, self._put_batch(rows, length, index_B, mesh))
                for length, index_B in plan
            )
            for (_, index_B), metrics in zip(plan, batches, strict=True):
                for b in np.flatnonzero(index_B != PADDING):
                    found[index_B[b]] = {
                        name: (total[b], weight[b])
                        for name, (total, weight) in metrics.items()
                    }
        return found

    def run(
        self, params: Params, rows: Sequence[Row], *, mesh: Mesh
    ) -> list[Mapping[str, Any]]:
        """Return the outputs of the model for each row."""
        outputs: list[Mapping[str, Any]] = [{} for _ in rows]
        with jax.set_mesh(mesh):
            for i, output in self._run_batches(params, rows, mesh):
                outputs[i] = output
        return outputs

    def _run_batches(
        self, params: Params, rows: Sequence[Row], mesh: Mesh
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield the number and the outputs of each row, in the order of batches."""
        plan = self._plan_batches(rows, data_shards=sharding.data_shards(mesh))
        filled = (
            ([None if i == PADDING else rows[i].columns for i in index_B], length)
            for length, index_B in plan
        )
        outputs: Iterator[Mapping[str, Any]]
        if self._generator is None:
            outputs = device_get_ahead(
                self._forward(params, columns, length, mesh)
                for columns, length in filled
            )
        else:
            outputs = (self._generate(params, columns) for columns, _ in filled)
        for (_, index_B), output in zip(plan, outputs, strict=True):
            yield from split_rows(index_B, output)

    def _plan_batches(
        self, rows: Sequence[Row], *, data_shards: int
    ) -> list[tuple[int, np.ndarray]]:
        """Return the length and the row numbers of each batch, the shortest first."""
        if not rows:
            return []
        lengths = np.array([row.size for row in rows])
        longest = max(self.config.data.length, int(lengths.max()))
        ladder = np.array(bucketing.doubling_lengths(longest))
        max_rows = MAX_TOKENS // ladder
        if self._generator is not None:
            max_rows = MAX_CACHED_TOKENS // self._generator.cached_tokens(ladder)
        buckets = _choose_buckets(
            lengths, ladder=ladder, max_rows=max_rows, data_shards=data_shards
        )
        epoch = bucketing.sorted_epoch(lengths, buckets)
        return [epoch.batch(number) for number in range(len(epoch))]

    def _forward(
        self, params: Params, rows: Sequence[Columns | None], length: int, mesh: Mesh
    ) -> dict[str, Array]:
        """Return the task's outputs (B, ...) for a batch, in every process."""
        local = [rows[i] for i in local_rows(mesh, len(rows))]
        batch = put_batch(self.features.batch(local, length=length), mesh)
        return self._predict(params, batch)

    def _generate(
        self, params: Params, rows: Sequence[Columns | None]
    ) -> dict[str, list[Any]]:
        """Return the texts that are decoded for each row of a batch."""
        assert self._generator is not None
        features: Any = self.features
        real = [row for row in rows if row is not None]
        filled = [*real, *real[:1] * (len(rows) - len(real))]
        inputs = [features.decoder_inputs(row) for row in filled]
        return {"texts": self._generator.generate(params, inputs)}

    @functools.cached_property
    def _generator(self) -> TextGenerator | None:
        """Return the generator of a task whose predictions are texts."""
        decoding = self.config.task.decoding
        if decoding is None:
            return None
        features: Any = self.features
        decoding = features.end_decoding(decoding, self.tokenizer)
        return TextGenerator(decoding, self.tokenizer, self.model)

    def _put_batch(
        self, rows: Sequence[Row], length: int, index_B: np.ndarray, mesh: Mesh
    ) -> Batch:
        """Put the named rows on the devices; `PADDING` is a row of padding."""
        own = [int(index_B[i]) for i in local_rows(mesh, len(index_B))]
        columns = [None if i == PADDING else rows[i].columns for i in own]
        return put_batch(self.features.batch(columns, length=length), mesh)

    @functools.cached_property
    def _row_metrics(self) -> Any:
        task = tasks.build(self.config.task)

        def metrics(params: Params, batch: Batch) -> Metrics:
            def one(row: Batch) -> Metrics:
                alone = jax.tree.map(lambda x: x[None], row)
                return task.evaluate(self.model, params, alone).metrics

            return sharding.replicate(jax.vmap(one)(batch))

        return jax.jit(metrics)

    @functools.cached_property
    def _predict(self) -> Any:
        task = tasks.build(self.config.task)

        def predict(params: Params, batch: Batch) -> dict[str, Array]:
            return sharding.replicate(task.predict(self.model, params, batch))

        return jax.jit(predict)


def split_rows(
    index_B: np.ndarray, outputs: Mapping[str, Any]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the number and the outputs of each row of a batch, without padding."""
    for b in np.flatnonzero(index_B != PADDING):
        yield int(index_B[b]), {name: values[b] for name, values in outputs.items()}


def _choose_buckets(
    lengths_N: np.ndarray,
    *,
    ladder: np.ndarray,
    max_rows: np.ndarray,
    data_shards: int,
) -> Buckets:
    """Return buckets of the ladder's lengths, with as many rows as there are, or fit.

    The numbers of rows are powers of two, as far as the mesh allows: so few shapes are
    compiled, however many examples there are.
    """
    counts = np.bincount(np.searchsorted(ladder, lengths_N), minlength=len(ladder))
    num_rows = [
        -(-min(_power_of_two(int(count)), max(int(limit), 1)) // data_shards)
        * data_shards
        for count, limit in zip(counts, max_rows, strict=True)
    ]
    return Buckets(lengths=tuple(ladder.tolist()), num_rows=tuple(num_rows))


def _power_of_two(count: int) -> int:
    """Return the power of two that is at least `count`."""
    return 1 << max(count - 1, 0).bit_length()
