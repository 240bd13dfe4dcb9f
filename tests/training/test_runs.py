"""Checks before training, checkpoints that are kept, and the end of a run."""

import errno
import json
import math
import re

import numpy as np
import pytest
from test_loop import (
    TINY,
    Killed,
    at_step,
    corpus,
    damage,
    final_state,
    finished,
    kill,
    lines,
    losses,
    tiny,
)

from lmjax.cli.main import main
from lmjax.config.experiment import parse
from lmjax.data import pipeline
from lmjax.errors import UserError
from lmjax.progress import ProgressBar
from lmjax.run import workdir
from lmjax.run.checkpoint import save_params
from lmjax.run.metric_log import MetricLog, json_line
from lmjax.training import loop, samples
from lmjax.training.evaluate import evaluations_since_best

FIXTURES = (corpus, finished, tiny)
# The best is the highest loss: that of the first evaluation, after step 3.
BEST = ("eval.every_steps=3", "checkpoint.best_metric=loss", "checkpoint.keep=1")
BEST += ("checkpoint.best_mode=max",)


def steps(directory):
    return {int(path.name) for path in (directory / "checkpoints").iterdir()}


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("sample.max_tokens=30", "config.sample.max_tokens = 30: with a prompt of 3"),
        ("sample.top_p=0", "config.sample.top_p = 0.0"),
    ],
)
def test_samples_that_cannot_be_drawn_are_refused_at_once(override, part):
    with pytest.raises(UserError, match=part):
        parse(TINY, ["data.path=x", override])


def test_a_prompt_of_too_many_tokens_is_refused_before_training(
    tmp_path, tiny, monkeypatch
):
    monkeypatch.setattr("lmjax.generate.prompts.encode_prompt", lambda *_: [1] * 40)
    with pytest.raises(UserError, match=r"config\.sample\.prompts: .* 40 tokens"):
        loop.train(tiny(), tmp_path)
    assert not (tmp_path / "metrics.jsonl").read_text()


def test_a_run_saves_before_it_samples(tmp_path, tiny, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(samples, "write_samples", lambda *_: kill())
        with pytest.raises(Killed):
            loop.train(tiny(), tmp_path)
    assert 12 in steps(tmp_path)
    assert loop.train(tiny(), tmp_path)
    assert (tmp_path / "samples" / "12.txt").exists()


def test_only_the_best_and_the_newest_are_kept(tmp_path, tiny, monkeypatch):
    """The best of before a restart, too."""
    config = tiny(*BEST, "checkpoint.every_steps=2")
    at_step(monkeypatch, 9, kill)
    with pytest.raises(Killed):
        loop.train(config, tmp_path)
    assert steps(tmp_path) == {3, 8}
    assert loop.train(config, tmp_path)
    assert steps(tmp_path) == {3, 12}


def test_the_test_split_is_evaluated_with_the_best_parameters(
    tmp_path, tiny, corpus, capsys
):
    config = tiny(*BEST, f"data.test_path={corpus}", "sample.prompts=()")
    assert loop.train(config, tmp_path)
    (logged,) = lines(tmp_path, "test")
    assert (logged["step"], logged["params_step"]) == (12, 3)
    assert "test (with the best parameters, of step 3)" in capsys.readouterr().err
    directory = f"--workdir={tmp_path}"
    assert main(["eval", directory, "--step=best"]) == 0
    valid, test = map(json.loads, capsys.readouterr().out.splitlines())
    assert valid["step"] == test["step"] == 3
    assert test["loss"] == pytest.approx(logged["loss"], rel=1e-6)
    argv = ["--prompt=to", "--max_tokens=2", "--step=best"]
    assert main(["generate", directory, *argv]) == 0
    assert main(["score", directory, f"--input={corpus}", "--step=best"]) == 0
    # A run that was killed before the test split evaluates it when it is resumed.
    text = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(text[:-1]))
    assert loop.train(config, tmp_path)
    assert lines(tmp_path, "test") == [logged]


def test_step_best_needs_a_metric(finished, capsys):
    assert main(["eval", f"--workdir={finished}", "--step=best"]) == 2
    assert "--step=best: no checkpoint" in capsys.readouterr().err
    assert main(["eval", f"--workdir={finished}", "--step=bets"]) == 2
    assert "--step=bets: must be the number of a step" in capsys.readouterr().err


def test_a_workdir_without_a_checkpoint(tmp_path, tiny, capsys):
    workdir.write_config(tmp_path, pipeline.resolve_vocabulary(tiny()))
    (tmp_path / "checkpoints").mkdir()
    assert main(["generate", f"--workdir={tmp_path}", "--prompt=a"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}: holds no checkpoint" in said
    assert "None" not in said


@pytest.mark.parametrize(
    "overrides", [("optim.weight_decay=0",), ("optim.clip_norm=0",)]
)
def test_leaves_that_may_change_may_become_zero_and_back(
    tmp_path, tiny, monkeypatch, overrides
):
    at_step(monkeypatch, 5, kill)
    with pytest.raises(Killed):
        loop.train(tiny(), tmp_path)
    assert loop.train(tiny(*overrides, "num_steps=8"), tmp_path)
    assert loop.train(tiny(), tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 13))


@pytest.mark.slow
def test_a_trace_begins_where_a_run_resumes_and_ends_where_it_stops(
    tmp_path, tiny, monkeypatch, caplog
):
    config, traced = tiny("num_steps=9"), range(2, 8)
    at_step(monkeypatch, 5, kill)
    with pytest.raises(Killed):
        loop.train(config, tmp_path, profile=traced)
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1
    (tmp_path / "profile").rename(tmp_path / "first")
    assert loop.train(config, tmp_path, profile=traced)
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1
    assert loop.train(tiny("num_steps=10"), tmp_path, profile=traced)
    assert "steps 2 to 7 were not trained now" in caplog.text


@pytest.mark.parametrize("profile", ["0:3", "3:0", "-1:2"])
def test_profiled_steps_count_from_one(finished, capsys, profile):
    argv = ["train", "--config=experiments/lm/quickstart.py", f"--workdir={finished}"]
    assert main([*argv, f"--profile={profile}"]) == 2
    assert f"--profile={profile}" in capsys.readouterr().err


def test_a_checkpoint_of_another_state_is_not_called_damaged(tmp_path, tiny, finished):
    """Such as that of an imported model, which has parameters only."""
    loop.train(tiny("num_steps=2"), tmp_path / "run")
    _, state = final_state(tmp_path / "run")
    save_params(tmp_path, state["params"])
    workdir.write_config(tmp_path, pipeline.resolve_vocabulary(tiny()))
    with pytest.raises(UserError, match=r"checkpoints/0: .* has no train"):
        loop.train(tiny(), tmp_path)
    assert steps(tmp_path) == {0}


def test_a_checkpoint_of_other_shapes_is_refused_by_name(tmp_path, tiny, monkeypatch):
    assert loop.train(tiny("num_steps=2"), tmp_path)
    monkeypatch.setattr(workdir, "check_same_run", lambda *_: None)
    with pytest.raises(UserError, match=r"params\.decoder.* is \(2, 16.* not \(2, 8"):
        loop.train(tiny("model.dim=8"), tmp_path)
    assert steps(tmp_path) == {2}


def test_an_unreadable_checkpoint_is_moved_aside(tmp_path, tiny):
    config = tiny()
    assert loop.train(config, tmp_path)
    for i in range(2):
        damage(tmp_path / "checkpoints" / "12")
        assert loop.train(config, tmp_path)
        names = {path.name for path in (tmp_path / "checkpoints.unreadable").iterdir()}
        assert names == {"12", "12.1"} if i else {"12"}
    assert steps(tmp_path) == {4, 8, 12}


def test_an_io_error_while_restoring_changes_nothing(tmp_path, tiny, monkeypatch):
    assert loop.train(tiny(), tmp_path)
    before = {
        path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")
    }

    def restore(*args, **options):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("lmjax.run.checkpoint.restore_item", restore)
        with pytest.raises(UserError, match=r"cannot be read now: .*Input/output"):
            loop.train(tiny(), tmp_path)
    after = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert after.keys() == before.keys()
    assert {p for p in before if before[p] != after[p]} <= {tmp_path / ".lock"}
    assert loop.train(tiny(), tmp_path)


def test_the_fingerprints_of_the_data_are_written_once(tmp_path, tiny, caplog):
    assert loop.train(tiny("num_steps=2"), tmp_path)
    path = tmp_path / "data.json"
    before, time = path.read_text(), path.stat().st_mtime_ns
    assert loop.train(tiny("num_steps=3"), tmp_path)
    assert path.stat().st_mtime_ns == time
    for steps, text, part in ((4, "", "not JSON"), (5, "[]", "not a JSON object")):
        path.write_text(text)
        assert loop.train(tiny(f"num_steps={steps}"), tmp_path)
        assert re.search(rf"data\.json.*: {part}", caplog.text)
        assert path.read_text() == before


def test_the_progress_bar_is_closed_however_a_run_ends(
    tmp_path, tiny, finished, monkeypatch
):
    closed = []
    close = ProgressBar.close

    def noted(self):
        closed.extend([self] * (self.title == "step"))
        close(self)

    monkeypatch.setattr(ProgressBar, "close", noted)
    assert loop.train(tiny(), finished)
    assert len(closed) == 1
    monkeypatch.setattr(samples, "check_prompts", lambda run: kill())
    with pytest.raises(Killed):
        loop.train(tiny(), tmp_path)
    assert len(closed) == 2


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ([math.nan, 1.0, 0.5], 0),
        ([1.0, math.nan], 1),
        ([math.nan, math.nan], 1),
        ([0.5, math.inf, 0.6], 2),
    ],
)
def test_nan_is_never_the_best(values, count):
    assert evaluations_since_best(values, mode="min") == count
    values = [-value for value in values]
    assert evaluations_since_best(values, mode="max") == count


def test_metrics_are_json_without_nan(tmp_path, tiny):
    values = {"loss": math.nan, "perplexity": math.inf, "accuracy": 0.5}
    assert json_line(values) == '{"loss": null, "perplexity": null, "accuracy": 0.5}'
    for _ in range(2):
        metric_log = MetricLog(tmp_path, tiny().log, start_step=5)
        metric_log.write(5, "valid", values)
        assert all(map(math.isnan, metric_log.history("valid", "loss")))
        metric_log.close()
    assert len(metric_log.history("valid", "loss")) == 2


def test_profiling_and_the_best_metric_change_no_number(
    tmp_path, tiny, finished, monkeypatch
):
    """And neither does resuming."""
    at_step(monkeypatch, 6, kill)
    options = ("checkpoint.best_metric=loss",)
    with pytest.raises(Killed):
        loop.train(tiny(*options), tmp_path, profile=range(1, 3))
    assert loop.train(tiny(*options), tmp_path, profile=range(6, 8))
    np.testing.assert_array_equal(losses(tmp_path), losses(finished))
