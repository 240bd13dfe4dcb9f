"""What is done beside training: evaluate, keep count of the best, sample."""

import dataclasses
import functools
from pathlib import Path

from lmjax.data import pipeline
from lmjax.evaluate import describe_metrics, evaluate_split, evaluations_since_best
from lmjax.generate.decode import Generator, encode_prompts
from lmjax.generate.sampling import Sampling
from lmjax.logging import MetricLog, ProgressLine
from lmjax.program import Program
from lmjax.types import Params, TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
    """The held-out splits and the sample prompts of one run."""

    program: Program
    prepared: pipeline.Prepared
    metric_log: MetricLog
    progress: ProgressLine
    directory: Path

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        """Evaluate on the valid split and log the result; {} if there is none."""
        return self._evaluate("valid", step, state)

    def finish(self, step: int, state: TrainState) -> None:
        """Evaluate on the test split, if there is one."""
        self._evaluate("test", step, state)

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
        config, tokenizer = self.program.config.sample, self.prepared.tokenizer
        model = self.program.model.config
        if not config.prompts:
            return
        rows = self._generator.continuations(
            _params(state),
            **encode_prompts(tokenizer, config.prompts, config=model),
            max_tokens=config.max_tokens,
            sampling=Sampling(
                temperature=config.temperature, top_k=config.top_k, top_p=config.top_p
            ),
            stop_ids=tokenizer.stop_ids,
            seed=step,
        )
        seam = "\n" if model.kind == "encoder_decoder" else ""
        texts = [
            prompt + seam + tokenizer.decode(row)
            for prompt, row in zip(config.prompts, rows, strict=True)
        ]
        path = self.directory / "samples" / f"{step}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n----\n".join(texts) + "\n")

    @functools.cached_property
    def _generator(self) -> Generator:
        return Generator(self.program.model, self.prepared.tokenizer.vocab_size)

    def _evaluate(self, split: str, step: int, state: TrainState) -> dict[str, float]:
        if split not in self.prepared.stores:
            return {}
        results = evaluate_split(
            split,
            _params(state),
            config=self.program.config,
            program=self.program,
            prepared=self.prepared,
        )
        self.metric_log.write(step, split, results)
        self.progress.print(f"step {step}  {split}: {describe_metrics(results)}")
        return results

    def _evaluations_since_best(self) -> int:
        config = self.program.config.checkpoint
        values = self.metric_log.history("valid", config.best_metric)
        return evaluations_since_best(values, mode=config.best_mode)


def _params(state: TrainState) -> Params:
    """Return what is evaluated and sampled from: the average, where one is kept."""
    return state.params if state.ema_params is None else state.ema_params
