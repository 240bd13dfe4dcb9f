"""Evaluations during a run: logged, and compared with those before."""

import json
import types

import pytest

from lmjax.config.experiment import CheckpointConfig, EvalConfig, LogConfig
from lmjax.progress import ProgressBar
from lmjax.run.metric_log import MetricLog, read_metrics
from lmjax.training import run_evaluation


@pytest.fixture
def make_run(tmp_path):
    """Return a function that makes a run whose evaluations have given losses."""

    def make(*losses, patience=0, splits=("valid", "test"), **checkpoint):
        values = iter(losses)
        config = types.SimpleNamespace(
            eval=EvalConfig(patience=patience),
            checkpoint=CheckpointConfig(**checkpoint),
        )
        return types.SimpleNamespace(
            config=config,
            datasets=types.SimpleNamespace(stores=dict.fromkeys(splits)),
            metric_log=MetricLog(tmp_path, LogConfig(tensorboard=False), start_step=0),
            progress=ProgressBar("step", total=9),
            evaluation=types.SimpleNamespace(
                metrics=lambda split, params: {"loss": next(values)}
            ),
        )

    return make


def test_an_evaluation_is_logged_and_printed(make_run, tmp_path, capsys):
    run = make_run(2.5, 1.5, splits=("valid",))
    assert run_evaluation.evaluate_split(run, "valid", {}, step=3) == {"loss": 2.5}
    assert run_evaluation.evaluate_split(run, "test", {}, step=3) == {}
    run_evaluation.evaluate_split(run, "valid", {}, step=6, params_step=3)
    run.metric_log.close()
    assert read_metrics(tmp_path) == [
        {"step": 3, "split": "valid", "loss": 2.5},
        {"step": 6, "split": "valid", "loss": 1.5, "params_step": 3},
    ]
    printed = capsys.readouterr().err
    assert "step 3  valid: loss 2.5" in printed and "of step 3" in printed


@pytest.mark.parametrize(
    ("mode", "best", "early"),
    [
        ("min", [True, True, False, False, True], [False, False, False, True, False]),
        ("max", [True, False, True, False, False], [False, False, False, False, True]),
    ],
)
def test_the_best_and_early_stopping(make_run, mode, best, early):
    losses = (3.0, 2.0, 4.0, 3.5, 1.0)
    run = make_run(*losses, patience=2, best_metric="loss", best_mode=mode)
    found = []
    for step in range(len(losses)):
        run_evaluation.evaluate_split(run, "valid", {}, step=step)
        found.append((run_evaluation.is_best(run), run_evaluation.stops_early(run)))
    assert found == [*zip(best, early, strict=True)]


def test_without_a_metric_none_is_best(make_run):
    run = make_run(1.0)
    run_evaluation.evaluate_split(run, "valid", {}, step=1)
    assert not run_evaluation.is_best(run) and not run_evaluation.stops_early(run)


def test_the_log_survives_a_line_that_was_cut_off(make_run, tmp_path):
    run = make_run(1.0, 2.0)
    for step in (1, 2):
        run_evaluation.evaluate_split(run, "valid", {}, step=step)
    run.metric_log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-5])
    assert [line["loss"] for line in read_metrics(tmp_path)] == [1.0]
    log = MetricLog(tmp_path, LogConfig(tensorboard=False), start_step=2)
    assert log.history("valid", "loss") == [1.0]
    assert log.has(1, "valid") and not log.has(2, "valid")
    assert [*map(json.loads, path.read_text().splitlines())] == log.evaluations
