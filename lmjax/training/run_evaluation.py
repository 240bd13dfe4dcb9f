"""Evaluations during a run: logged, compared with the best, and at the end on test."""

from typing import Any

import jax

from lmjax.training.evaluate import describe_metrics, evaluations_since_best
from lmjax.training.run import Run
from lmjax.types import Params, TrainState


def evaluate_split(
    run: Run, split: str, params: Params, *, step: int, params_step: int | None = None
) -> dict[str, Any]:
    """Evaluate, log and print; return the metrics, {} if the data has no such split.

    Args:
      run: the run.
      split: of its data.
      params: to evaluate.
      step: after which this happens.
      params_step: the step of the parameters, if it is another one.
    """
    if split not in run.datasets.stores:
        return {}
    metrics = run.evaluation.metrics(split, params)
    best = {} if params_step is None else {"params_step": params_step}
    run.metric_log.write(step, split, metrics | best)
    note = f" (with the best parameters, of step {params_step})" if best else ""
    run.progress.print(f"step {step}  {split}{note}: {describe_metrics(metrics)}")
    return metrics


def evaluate_test(run: Run, state: TrainState) -> None:
    """Evaluate on the test split at the end of a run, unless that was done before.

    If the config has a `best_metric`, the parameters of the best checkpoint are
    evaluated. They take the place of `state`, which is deleted from the devices: it
    must have been saved.
    """
    step = int(state.step)
    if "test" not in run.datasets.stores or run.metric_log.has(step, "test"):
        return
    best = run.checkpoints.best() if run.config.checkpoint.best_metric else None
    if best is None or best == step:
        evaluate_split(run, "test", state.eval_params, step=step)
        return
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    program = run.program
    params = run.checkpoints.restore_params(program.model, program.mesh, step=best)
    evaluate_split(run, "test", params, step=step, params_step=best)


def is_best(run: Run) -> bool:
    """Return whether the last evaluation is the best so far by `best_metric`."""
    return bool(run.config.checkpoint.best_metric) and _evaluations_since_best(run) == 0


def stops_early(run: Run) -> bool:
    """Return whether the last `eval.patience` evaluations did not improve the best."""
    patience = run.config.eval.patience
    return patience > 0 and _evaluations_since_best(run) >= patience


def _evaluations_since_best(run: Run) -> int:
    config = run.config.checkpoint
    values = run.metric_log.history("valid", config.best_metric)
    return evaluations_since_best(values, mode=config.best_mode)
