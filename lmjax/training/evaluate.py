"""Evaluation on held-out data: sums and weights until the very end."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lmjax.config.experiment import WHOLE_TEXT_METRICS, Config
from lmjax.config.task import GenerationTaskConfig, MaskedLMConfig, PredictionTaskConfig
from lmjax.data import batches, example_datasets, pipeline
from lmjax.data.datasets import Datasets
from lmjax.data.features.registry import make_features
from lmjax.data.lm import loader, objectives
from lmjax.errors import ConfigError, nearest
from lmjax.inference.predictor import Predictor
from lmjax.metrics.classification import results
from lmjax.parallel import sharding
from lmjax.parallel.batch import device_get_ahead, local_rows, put_batch
from lmjax.run.checkpoint import as_loss
from lmjax.training.compiled import Program
from lmjax.types import Batch, HostBatch, Metrics, Params

_TOKENS = ("loss", "accuracy", "perplexity")
# The names of what is measured of each task, beside what judges its answers.
MEASURED = {
    "causal_lm": (*_TOKENS, *WHOLE_TEXT_METRICS),
    "masked_lm": _TOKENS,
    "span_corruption": _TOKENS,
    "prefix_lm": _TOKENS,
    "infilling": _TOKENS,
    "seq2seq": _TOKENS,
    "prompted_lm": _TOKENS,
    "classify": ("loss", "accuracy", "macro_f1", "matthews"),
    "tag": ("loss",),
    "span_qa": ("loss",),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The held-out splits of a run, and what measures a model on them."""

    program: Program
    datasets: Datasets

    def metrics(self, split: str, params: Params) -> dict[str, float]:
        """Return the metrics on a split, each the exact weighted mean.

        Beside the task's own: `perplexity` (a token), where tokens are predicted; and
        where each token of the text is predicted once from those before it,
        `word_perplexity` (a white-space separated word, or an end of a document) and
        `bits_per_byte`. These spread the nats of all tokens over the words and the
        UTF-8 bytes of the text, whatever the tokenizer; they are left out where
        `eval.num_batches` reads only a part, whose words and bytes nobody has counted.
        """
        means = self._means(split, params)
        config = self.program.config
        if isinstance(config.task, GenerationTaskConfig):
            means["perplexity"] = _exp(means["loss"])
        if isinstance(config.task, PredictionTaskConfig):
            return means | self._judged(split, params)
        if example_datasets.reads_examples(config):
            return means
        return means | self._of_text(split, loss=means["loss"])

    def _means(self, split: str, params: Params) -> dict[str, float]:
        """Return what adds up over the batches of a split."""
        program = self.program
        held_out = batches.eval_batches(
            self.datasets,
            split,
            program.config,
            data_shards=sharding.data_shards(program.mesh),
            rows=functools.partial(local_rows, program.mesh),
        )
        put = lambda batch: put_batch(batch, program.mesh)
        return mean_metrics(program.eval_pass(), params, held_out, put=put)

    def _judged(self, split: str, params: Params) -> dict[str, float]:
        """Return the metrics of the answers to the examples of a split."""
        if not judges(self.program.config):
            return {}
        (store,) = self.datasets.stores[split]
        task = self.program.config.task
        assert isinstance(task, PredictionTaskConfig), task
        wanted = task.num_answers if split == "valid" else 0
        chosen = batches.spread_evenly(store.num_examples, wanted)
        examples = [store.examples[i] for i in chosen]
        return self._predictor.judged(params, examples, mesh=self.program.mesh)

    def _of_text(self, split: str, *, loss: float) -> dict[str, float]:
        config, stores = self.program.config, self.datasets.stores[split]
        window = objectives.build(config, self.datasets.tokenizer).window
        whole = loader.reads_whole_split(stores, config, window=window)
        if not (self.program.task.scores_text and whole):
            return {"perplexity": _exp(loss)}
        nats = loss * sum(store.num_tokens for store in stores)
        return {
            "perplexity": _exp(loss),
            "word_perplexity": _exp(nats / pipeline.count_words(stores)),
            "bits_per_byte": nats / math.log(2) / pipeline.count_bytes(stores),
        }

    @functools.cached_property
    def _predictor(self) -> Predictor:
        program = self.program
        return Predictor(program.config, self.datasets.tokenizer, program.model)


def mean_metrics(
    eval_step: Callable[[Params, Batch], Metrics],
    params: Params,
    held_out: Iterable[HostBatch],
    *,
    put: Callable[[HostBatch], Batch],
) -> dict[str, float]:
    """Return the metrics of all batches: each sum over its weight, mostly.

    Args:
      eval_step: returns the metrics of a batch.
      params: of the model.
      held_out: the batches.
      put: lays one of them over the mesh.
    """
    sums: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    dispatched = (eval_step(params, put(batch)) for batch in held_out)
    for metrics in device_get_ahead(dispatched):
        _add(sums, metrics)
    return results(sums)


def evaluations_since_best(values: Sequence[float], *, mode: str) -> int:
    """Count the values after the best one; 0 if the last is the best (or only) one.

    What is not a number is worse than any.
    """
    if not values:
        return 0
    losses = [as_loss(value, mode=mode) for value in values]
    return len(losses) - 1 - losses.index(min(losses))


def metric_names(config: Config) -> list[str]:
    """Return the names of what `Evaluation.metrics` returns; computes nothing.

    Raises:
      ConfigError: the package that makes one of them is not installed.
    """
    task, names = config.task, [*MEASURED[config.task.kind], *judges(config)]
    if isinstance(task, MaskedLMConfig) and task.sentence_order:
        names += ["pair_loss", "pair_accuracy"]
    return names


def check(config: Config) -> None:
    """Find before anything is made what would only be found when training ends.

    Raises:
      ConfigError: `best_metric` is never measured, or a package that measures is not
        installed.
    """
    names, best = metric_names(config), config.checkpoint.best_metric
    where = f"config.checkpoint.best_metric = {best!r}"
    if best and best not in names:
        raise ConfigError(
            f"{where}: must be one of {', '.join(names)}{nearest(best, names)}"
        )
    if best and not pipeline.has_valid_split(config):
        raise ConfigError(f"{where}: config.data has no valid split to measure it")


def judges(config: Config) -> tuple[str, ...]:
    """Return the names of what compares answers with what is right; () of no answers.

    Raises:
      ConfigError: the package that makes one of them is not installed.
    """
    if not isinstance(config.task, PredictionTaskConfig):
        return ()
    judging: Any = make_features(config)
    return judging.judges


def describe_metrics(metrics: Mapping[str, float]) -> str:
    """Return the metrics on one line, for the console."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _add(sums: dict[str, tuple[np.ndarray, np.ndarray]], metrics: Metrics) -> None:
    for name, parts in metrics.items():
        total, weight = (np.asarray(part, np.float64) for part in parts)
        old = sums.get(name, (0.0, 0.0))
        sums[name] = (old[0] + total, old[1] + weight)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else float("inf")
