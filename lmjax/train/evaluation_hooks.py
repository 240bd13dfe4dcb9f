"""What is done beside training: evaluate, keep count of the best, sample."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

from lmjax.data.datasets import Datasets
from lmjax.errors import ConfigError, UserError
from lmjax.generate.decode import Generator
from lmjax.generate.prompts import encode_prompts
from lmjax.generate.sampling import Sampling
from lmjax.parallel import processes
from lmjax.run.checkpoint import Checkpoints
from lmjax.run.metric_log import MetricLog
from lmjax.train.compiled import Program
from lmjax.train.evaluate import Evaluation, describe_metrics, evaluations_since_best
from lmjax.train.progress import ProgressLine
from lmjax.types import Params, TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
    """The held-out splits and the sample prompts of one run."""

    program: Program
    datasets: Datasets
    metric_log: MetricLog
    progress: ProgressLine
    directory: Path

    def check(self) -> None:
        """Find before training what would only be found after it.

        Raises:
          ConfigError: a prompt is too long.
        """
        sample = self.program.config.sample
        if sample.prompts:
            try:
                self._generator.check(**self._prompts(), max_tokens=sample.max_tokens)
            except UserError as error:
                raise ConfigError(f"config.sample.prompts: {error}") from error

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        """Evaluate on the valid split and log the result; {} if there is none."""
        return self._evaluate("valid", step, _params(state))

    def finish(self, step: int, state: TrainState, checkpoints: Checkpoints) -> None:
        """Sample, and evaluate on the test split, if that is not done yet.

        The test split is evaluated with the parameters that were best by
        `best_metric`, if there is one. `state` must have been saved: it makes room.
        """
        if not processes.any_process(self._sample_path(step).exists()):
            self.sample(step, state)
        if "test" not in self.datasets.stores or self.metric_log.holds(step, "test"):
            return
        best = (
            checkpoints.best() if self.program.config.checkpoint.best_metric else None
        )
        if best is None or best == step:
            self._evaluate("test", step, _params(state))
            return
        like, ema = _params(self.program.state_shapes), state.ema_params is not None
        for leaf in jax.tree.leaves(state):
            leaf.delete()
        params = checkpoints.restore_params(like, step=best, ema=ema)
        self._evaluate("test", step, params, best=best)

    def improved(self) -> bool:
        """Return whether the last evaluation is the best by `best_metric`."""
        best = self.program.config.checkpoint.best_metric
        return bool(best) and self._evaluations_since_best() == 0

    def exhausted(self) -> bool:
        """Return whether `eval.patience` evaluations in a row were not the best."""
        patience = self.program.config.eval.patience
        return patience > 0 and self._evaluations_since_best() >= patience

    def sample(self, step: int, state: TrainState) -> None:
        """Write a continuation of each of the config's prompts to samples/STEP.txt.

        To an encoder-decoder a prompt is a source; what it writes comes on a new line.
        """
        config, tokenizer = self.program.config.sample, self.datasets.tokenizer
        model = self.program.model.config
        if not config.prompts:
            return
        rows = self._generator.generate(
            _params(state),
            **self._prompts(),
            max_tokens=config.max_tokens,
            sampling=Sampling(
                temperature=config.temperature, top_k=config.top_k, top_p=config.top_p
            ),
            stop_ids=tokenizer.stop_ids,
            seed=step,
        )
        seam = "\n" if model.is_encoder_decoder else ""
        texts = [
            prompt + seam + tokenizer.decode(row)
            for prompt, row in zip(config.prompts, rows, strict=True)
        ]
        if processes.is_first():
            path = self._sample_path(step)
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n----\n".join(texts) + "\n")

    def _sample_path(self, step: int) -> Path:
        return self.directory / "samples" / f"{step}.txt"

    def _prompts(self) -> dict[str, Any]:
        return encode_prompts(
            self.datasets.tokenizer,
            self.program.config.sample.prompts,
            config=self.program.model.config,
        )

    @functools.cached_property
    def _evaluation(self) -> Evaluation:
        return Evaluation(self.program, self.datasets)

    @functools.cached_property
    def _generator(self) -> Generator:
        return Generator(self.program.model, self.datasets.tokenizer.vocab_size)

    def _evaluate(
        self, split: str, step: int, params: Params, *, best: int | None = None
    ) -> dict[str, float]:
        """Evaluate, log and print; `best` is the step of the parameters, if another."""
        if split not in self.datasets.stores:
            return {}
        results = self._evaluation.metrics(split, params)
        note = {} if best is None else {"params_step": best}
        self.metric_log.write(step, split, results | note)
        of = "" if best is None else f" (with the best parameters, of step {best})"
        self.progress.print(f"step {step}  {split}{of}: {describe_metrics(results)}")
        return results

    def _evaluations_since_best(self) -> int:
        config = self.program.config.checkpoint
        values = self.metric_log.history("valid", config.best_metric)
        return evaluations_since_best(values, mode=config.best_mode)


def _params(state: TrainState) -> Params:
    """Return what is evaluated and sampled from: the average, where one is kept."""
    return state.params if state.ema_params is None else state.ema_params
