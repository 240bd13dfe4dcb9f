"""Evaluation on held-out data: sums and weights until the very end."""

import dataclasses
import functools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lmjax import tasks
from lmjax.config.experiment import Config
from lmjax.data import batches, pipeline
from lmjax.data.batches import EvalBatch
from lmjax.data.datasets import Datasets
from lmjax.data.features.registry import make_features
from lmjax.data.lm import loader, objectives
from lmjax.errors import ConfigError, nearest
from lmjax.inference.predictor import Predictor, split_rows
from lmjax.parallel import sharding
from lmjax.parallel.batch import device_get_ahead, local_rows, put_batch
from lmjax.run.checkpoint import as_loss
from lmjax.tasks import EvalOutput
from lmjax.tasks.distill import Teacher
from lmjax.training.compiled import Program
from lmjax.types import Params

_log = logging.getLogger(__name__)
_LONG_WORD_BYTES = 30  # on average; English has 6, Hindi 13, Chinese sentences 60
_NUM_CHECKED = 1000  # examples of a split, to find out their language
Outputs = Mapping[int, Mapping[str, Any]]  # of the model, by the row of a store


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The metrics of a model on the held-out splits of a run."""

    program: Program
    datasets: Datasets
    reference: Teacher | None = None  # of preferences

    def check(self) -> None:
        """Check that the metrics can judge the held-out data; warn where they cannot.

        Raises:
          ConfigError: a package or a file that their language needs is not installed.
        """
        self.program.task.check_measures(self.datasets.tokenizer)
        for split, stores in self.datasets.stores.items():
            if split != "train" and self._has_few_spaces(stores):
                _log.warning(
                    "warning: word_perplexity: the text of %s has few spaces, so that "
                    "its words are whole phrases; bits_per_byte compares such texts",
                    split,
                )
            if split == "train" or not (chosen := self._choose_examples(split)):
                continue
            (store,) = self.datasets.stores[split]
            features = self._predictor.features
            some = batches.spread_evenly(len(chosen), _NUM_CHECKED)
            examples = [store.examples[chosen[i]] for i in some]
            features.sign_metrics([features.parse(example) for example in examples])

    def metrics(self, split: str, params: Params) -> dict[str, Any]:
        """Return the metrics on a split, each the exact weighted mean.

        They are the task's own; the metrics of its predictions for whole examples; and,
        if each token of the text is predicted once from those before it,
        `word_perplexity` (a white-space separated word, or an end of a document) and
        `bits_per_byte`. These spread the nats of all tokens over the words and the
        UTF-8 bytes of the text, whatever the tokenizer; they are left out where
        `eval.num_batches` reads only a part, whose words and bytes are not known.

        The model runs once over the stored rows. Only texts are then decoded, and
        examples predicted that are not whole in the store.

        `signatures` has, by name, how metrics of texts are computed, if there are any.
        """
        chosen = self._choose_examples(split)
        stored = self._stored_rows(split, chosen)
        means, outputs = self._run(split, params, stored)
        if not self.program.config.task.reads_examples:
            task, model = self.program.task, self.program.model
            own = task.measure(model, params, tokenizer=self.datasets.tokenizer)
            return means | self._text_metrics(split, loss=means["loss"]) | own
        return means | self._prediction_metrics(split, params, chosen, stored, outputs)

    def _has_few_spaces(self, stores: Sequence[Any]) -> bool:
        """Return whether a text is in a script without spaces, by its words' size."""
        if not self.program.task.scores_text:
            return False
        words = pipeline.count_words(stores)
        return pipeline.count_bytes(stores) > _LONG_WORD_BYTES * words

    def _run(
        self, split: str, params: Params, stored: Mapping[int, range]
    ) -> tuple[dict[str, float], Outputs]:
        """Return the task's metrics on a split, and its outputs for some rows."""
        program = self.program
        has_outputs = program.config.task.decoding is None
        wanted = {row for rows in stored.values() for row in rows if has_outputs}
        held_out = batches.eval_batches(
            self.datasets,
            split,
            program.config,
            data_shards=sharding.data_shards(program.mesh),
            rows=functools.partial(local_rows, program.mesh),
            predicted=wanted,
        )

        def run_batches() -> Iterator[tuple[EvalBatch, EvalOutput]]:
            carry = program.init_eval_carry()
            for batch in held_out:
                arrays = put_batch(batch.arrays, program.mesh)
                output = program.eval_step(params, arrays, carry, self.reference)
                carry = output.carry
                yield dataclasses.replace(batch, arrays={}), output._replace(carry=None)

        sums: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        outputs: dict[int, Mapping[str, Any]] = {}
        for batch, output in device_get_ahead(run_batches()):
            if batch.is_measured:
                for name, pair in output.metrics.items():
                    total, weight = (np.asarray(part, np.float64) for part in pair)
                    old = sums.get(name, (0.0, 0.0))
                    sums[name] = (old[0] + total, old[1] + weight)
            if wanted and batch.index_B is not None:
                rows = split_rows(batch.index_B, output.predictions)
                outputs |= {row: values for row, values in rows if row in wanted}
        return program.task.summarize(sums), outputs

    def _choose_examples(self, split: str) -> Sequence[int]:
        """Return the numbers of the examples whose predictions are evaluated."""
        if not prediction_metric_names(self.program.config):
            return ()
        (store,) = self.datasets.stores[split]
        wanted = self.program.config.task.num_predicted(split)
        return batches.spread_evenly(store.num_examples, wanted)

    def _stored_rows(self, split: str, chosen: Sequence[int]) -> dict[int, range]:
        """Return the rows of those of the examples that are whole in the store."""
        if not (chosen and self._predictor.features.needs_predictions):
            return {}
        (store,) = self.datasets.stores[split]
        rows = store.rows_of_examples or [range(0)] * store.num_examples
        return {i: rows[i] for i in chosen if rows[i]}

    def _prediction_metrics(
        self,
        split: str,
        params: Params,
        chosen: Sequence[int],
        stored: Mapping[int, range],
        outputs: Outputs,
    ) -> dict[str, Any]:
        """Compare the predictions for the chosen examples with their labels."""
        if not chosen:
            return {}
        (store,) = self.datasets.stores[split]
        predictor, features = self._predictor, self._predictor.features
        parsed = {i: features.parse(store.examples[i]) for i in chosen}
        predictions: dict[int, dict[str, Any]] = {}
        if features.needs_predictions:
            if self.program.config.task.decoding is not None:
                outputs = self._decode(split, params, stored)
            for i, rows in stored.items():
                columns = [store[row] for row in rows]
                row_outputs = [outputs[row] for row in rows]
                predictions[i] = features.postprocess(parsed[i], columns, row_outputs)
            if rest := [i for i in chosen if i not in stored]:
                unlabelled = [predictor.parse(store.examples[i]) for i in rest]
                encoded = predictor.encode_examples(unlabelled)
                predicted = predictor.predict(params, encoded, mesh=self.program.mesh)
                predictions |= dict(zip(rest, predicted, strict=True))
        examples = [parsed[i] for i in chosen]
        metrics = features.compute_metrics(
            [predictions[i] for i in chosen] if predictions else [], examples
        )
        signatures = features.sign_metrics(examples)
        return {**metrics, "signatures": signatures} if signatures else metrics

    def _decode(
        self, split: str, params: Params, stored: Mapping[int, range]
    ) -> Outputs:
        """Return the texts that are decoded for stored rows."""
        (store,) = self.datasets.stores[split]
        features: Any = self._predictor.features
        numbers = [row for rows in stored.values() for row in rows]
        rows = [features.prompt_row(store[row]) for row in numbers]
        texts = self._predictor.run(params, rows, mesh=self.program.mesh)
        return dict(zip(numbers, texts, strict=True))

    def _text_metrics(self, split: str, *, loss: float) -> dict[str, float]:
        """Return the loss spread over words and bytes, if all of a text was scored."""
        config, stores = self.program.config, self.datasets.stores[split]
        window = objectives.build(config, self.datasets.tokenizer, stores).window
        whole = loader.reads_whole_split(stores, config, window=window)
        if not (self.program.task.scores_text and whole):
            return {}
        nats = loss * sum(store.num_tokens for store in stores)
        words = nats / pipeline.count_words(stores)
        return {
            "word_perplexity": math.exp(words) if words < 700 else math.inf,
            "bits_per_byte": nats / math.log(2) / pipeline.count_bytes(stores),
        }

    @functools.cached_property
    def _predictor(self) -> Predictor:
        program = self.program
        return Predictor(program.config, self.datasets.tokenizer, program.model)


def evaluations_since_best(values: Sequence[float], *, mode: str) -> int:
    """Return how many values follow the best one; 0 if it is the last, or the only.

    A value that is not a number counts as the worst.
    """
    if not values:
        return 0
    losses = [as_loss(value, mode=mode) for value in values]
    return len(losses) - 1 - losses.index(min(losses))


def check(config: Config) -> None:
    """Check before training that all metrics can be computed.

    Raises:
      ConfigError: there is no metric `best_metric`, or a package that computes one is
        not installed.
    """
    names, best = metric_names(config), config.checkpoint.best_metric
    where = f"config.checkpoint.best_metric = {best!r}"
    if best and best not in names:
        raise ConfigError(
            f"{where}: must be one of {', '.join(names)}{nearest(best, names)}"
        )
    if best and not pipeline.has_valid_split(config):
        raise ConfigError(f"{where}: config.data has no valid split to compute it on")


def metric_names(config: Config) -> list[str]:
    """Return the names of the metrics of an evaluation.

    Raises:
      ConfigError: a package that computes one of them is not installed.
    """
    return [*tasks.build(config.task).metric_names, *prediction_metric_names(config)]


def prediction_metric_names(config: Config) -> tuple[str, ...]:
    """Return the names of the metrics of predictions for whole examples; () if none.

    Raises:
      ConfigError: a package that computes one of them is not installed.
    """
    if not config.task.reads_examples:
        return ()
    return make_features(config).metric_names


def describe_metrics(metrics: Mapping[str, Any]) -> str:
    """Format the metrics on one line, for the console."""
    numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
    return "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
