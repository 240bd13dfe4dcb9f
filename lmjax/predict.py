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

from lmjax import device, sharding, tasks
from lmjax.config import Config, ConfigError, ExamplesConfig, WritingConfig
from lmjax.data import bucketing, task_features
from lmjax.data.bucketing import PADDING, Buckets
from lmjax.data.example_store import placed
from lmjax.data.examples import Example
from lmjax.data.features import Columns, Row
from lmjax.data.tokenizer import Tokenizer
from lmjax.generate.write import Writer
from lmjax.models import Model
from lmjax.types import Array, Batch, Params

# In a batch, unless there are fewer to predict; and what is kept of texts in writing.
TOKENS = 8192
SLOTS = 32_768


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
        if not isinstance(self.config.task, ExamplesConfig):
            kind = self.config.task.kind
            raise ConfigError(
                f"config.task.kind = {kind!r}: predict applies tasks that are learnt "
                "from examples; for text there is generate"
            )

    def read(self, example: Example | str) -> Any:
        """Return what `answers` takes of an example: a mapping, or just a text.

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
        """Return what `answers` takes; as `read`, but the error names the example."""
        readings = []
        for i, example in enumerate(examples):
            try:
                readings.append(self.read(example))
            except ConfigError as error:
                raise placed(error, f"examples[{i}]") from error
        return readings

    def answers(
        self, params: Params, readings: Sequence[Any], *, mesh: Mesh
    ) -> tuple[list[dict[str, Any]], int]:
        """Return the answer to each example, and how many texts were cut to fit."""
        parts = self._features.encode(readings, self.tokenizer)
        rows = [row for part in parts for row in part]
        outputs: list[Mapping[str, Any]] = [{} for _ in rows]
        with jax.set_mesh(mesh):
            for i, output in self._outputs(params, rows, mesh):
                outputs[i] = output
        given = iter(outputs)
        answers = [
            self._features.answer(reading, part, [next(given) for _ in part])
            for reading, part in zip(readings, parts, strict=True)
        ]
        return answers, sum(any(row.truncated for row in part) for part in parts)

    def judged(
        self, params: Params, examples: Sequence[Example], *, mesh: Mesh
    ) -> dict[str, float]:
        """Return the metrics of the answers to examples that say what is right."""
        features = self._features
        answers: list[dict[str, Any]] = []
        if features.compares_answers:
            # What is right is not there to be read, as it will not be later.
            asked = [features.read(example, labelled=False) for example in examples]
            answers, _ = self.answers(params, asked, mesh=mesh)
        return features.judge(answers, [features.read(example) for example in examples])

    def _outputs(
        self, params: Params, rows: Sequence[Row], mesh: Mesh
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield what the model says of each row, and its number."""
        if not rows:
            return
        lengths = np.array([row.size for row in rows])
        longest = max(self.config.data.length, int(lengths.max()))
        ladder = np.array(bucketing.ladder(longest))
        most = TOKENS // ladder
        if self._writer is not None:
            most = SLOTS // self._writer.slots(ladder)
        buckets = _buckets(
            lengths, ladder=ladder, most=most, parts=sharding.num_parts(mesh)
        )
        epoch = bucketing.in_order(lengths, buckets)
        for number in range(len(epoch)):
            length, examples_B = epoch.batch(number)
            real = examples_B[examples_B != PADDING]
            columns = [rows[i].columns for i in real]
            missing = len(examples_B) - len(real)
            said: Sequence[Mapping[str, Any]]
            if self._writer is None:
                said = self._said(params, [*columns, *[None] * missing], length, mesh)
            else:
                said = self._written(params, [*columns, *columns[:1] * missing])
            yield from zip(real.tolist(), said, strict=False)

    def _said(
        self, params: Params, rows: Sequence[Columns | None], length: int, mesh: Mesh
    ) -> list[dict[str, np.ndarray]]:
        """Return what the task makes of each row of a batch, in every process."""
        here = [rows[i] for i in device.local_rows(mesh, len(rows))]
        batch = device.put_batch(self._features.batch(here, length=length), mesh)
        output = jax.device_get(self._predict(params, batch))
        return [
            {name: values[b] for name, values in output.items()}
            for b in range(len(rows))
        ]

    def _written(
        self, params: Params, rows: Sequence[Columns]
    ) -> list[dict[str, list[Any]]]:
        """Return the texts that the model writes for each row of a batch."""
        assert self._writer is not None
        asked = [self._features.asked(row) for row in rows]
        return [{"texts": texts} for texts in self._writer.texts(params, asked)]

    @functools.cached_property
    def _writer(self) -> Writer | None:
        """Return what writes the answers, where they are written."""
        task = self.config.task
        if not isinstance(task, WritingConfig):
            return None
        return Writer(task.write, self.tokenizer, self.model)

    @functools.cached_property
    def _features(self) -> Any:
        return task_features.build(self.config)

    @functools.cached_property
    def _predict(self) -> Any:
        task: Any = tasks.build(self.config.task)

        def predict(params: Params, batch: Batch) -> dict[str, Array]:
            return sharding.whole(task.predict(self.model, params, batch))

        return jax.jit(predict)


def _buckets(
    lengths_N: np.ndarray, *, ladder: np.ndarray, most: np.ndarray, parts: int
) -> Buckets:
    """Return buckets of the ladder's lengths, of as many rows as there are, or may be.

    Row counts are powers of two, as far as the mesh allows: few shapes are compiled,
    whatever is asked.
    """
    counts = np.bincount(np.searchsorted(ladder, lengths_N), minlength=len(ladder))
    num_rows = [
        -(-min(_power_of_two(int(count)), max(int(limit), 1)) // parts) * parts
        for count, limit in zip(counts, most, strict=True)
    ]
    return Buckets(lengths=tuple(ladder.tolist()), num_rows=tuple(num_rows))


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
