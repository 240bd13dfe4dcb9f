"""A search finds the optimum, prunes, and loses nothing when it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from lmjax.config.experiment import load
from lmjax.errors import UserError
from tools.sweep import command

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TRAINER = (sys.executable, "-S", "-E", str(HERE / "trainer.py"))
CONFIG = {
    "num_steps": 8,
    "batch_size": 8,
    "model": {"dim": 16, "num_layers": 1, "num_heads": 2, "max_length": 32},
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "text", "document": "line", "length": 32},
    "eval": {"every_steps": 2, "num_batches": 1},
    "log": {"tensorboard": False},
}
RATE = "--search.optim.learning_rate=log:1e-4:1"


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweep")
    text = directory / "text.txt"
    text.write_text("".join(f"line number {i} of the text\n" for i in range(200)))
    path = directory / "x.py"
    config = {**CONFIG, "data": {**CONFIG["data"], "path": str(text)}}
    path.write_text(f"def get_config():\n    return {config!r}\n")
    return path


@pytest.fixture(autouse=True)
def no_plot_and_no_metric_check(monkeypatch):
    """Skip what takes longer than all else and has tests of its own."""
    stub = types.SimpleNamespace(write_plot=lambda *_: None)
    monkeypatch.setitem(sys.modules, "tools.sweep.plot", stub)
    monkeypatch.setattr(command, "check_metric", lambda config, metric: None)


@pytest.fixture
def argv(script, tmp_path):
    flags = [f"--config={script}", f"--workdir={tmp_path / 'sweep'}"]
    return [*flags, "--metric=loss", "--mode=min"]


def run(argv, trainer=TRAINER):
    return command.main(argv, trainer=trainer)


def start(argv, **environ):
    """Start a search in a new process."""
    code = f"""
import sys, types
from tools.sweep import command
sys.modules["tools.sweep.plot"] = types.SimpleNamespace(write_plot=lambda *_: None)
command.check_metric = lambda config, metric: None
sys.exit(command.main(sys.argv[1:], trainer={TRAINER}))
"""
    return subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def trials(directory):
    storage = f"sqlite:///{directory / 'study.db'}"
    return optuna.load_study(study_name="sweep", storage=storage).trials


def starts(directory, number):
    """Return the first step and the parent process of each start of a trial."""
    lines = (directory / "trials" / str(number) / "starts").read_text().splitlines()
    return [tuple(map(int, line.split())) for line in lines]


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_optimum_of_a_formula_is_found(argv, tmp_path, capsys):
    space = ["--search.model.num_layers=int:1:4", "--num_trials=20", RATE]
    space += ["--search.optim.name=choice:adamw,lion"]
    assert run([*argv, *space]) == 0
    best = json.loads((tmp_path / "sweep" / "best.json").read_text())
    assert 10**-2.5 < best["config"]["optim.learning_rate"] < 10**-1.5
    assert best["config"]["model.num_layers"] == 3
    assert best["config"]["optim.name"] == "lion"
    all_trials = trials(tmp_path / "sweep")
    assert len(all_trials) == 20
    assert best["value"] == min(t.value for t in all_trials)
    printed = capsys.readouterr()
    assert best["command"] in printed.err
    assert best["command"].startswith("lmjax train --config=")
    assert printed.out.count("best") == 1
    # A pruned trial was worse than a completed one at the same step.
    pruned = [t for t in all_trials if t.state == TrialState.PRUNED]
    assert 5 < len(pruned) < 18
    finished = [t for t in all_trials if t.state == TrialState.COMPLETE]
    for trial in pruned:
        assert trial.last_step < 8
        step = trial.last_step
        assert trial.value > min(t.intermediate_values[step] for t in finished)


def test_the_seed_decides_the_trials(argv, tmp_path):
    parameters = []
    for i, seed in enumerate((0, 0, 1)):
        flags = [*argv, RATE, "--num_trials=3", f"--seed={seed}"]
        flags.append(f"--workdir={tmp_path / str(i)}")
        assert run(flags) == 0
        parameters.append([t.params for t in trials(tmp_path / str(i))])
    assert parameters[0] == parameters[1]
    assert parameters[0] != parameters[2]
    assert len({str(params) for params in parameters[0]}) == 3


@pytest.mark.slow
def test_a_killed_search_loses_nothing(argv, tmp_path):
    directory, uninterrupted = tmp_path / "sweep", tmp_path / "uninterrupted"
    flags = [*argv, RATE, "--num_trials=4", "--pruner=none"]
    slow = {"STEP_SECONDS": "0.1"}
    for number, signal_number in ((1, signal.SIGKILL), (2, signal.SIGTERM)):
        process = start(flags, **slow)
        metrics = directory / "trials" / str(number) / "metrics.jsonl"
        wait_for(lambda: metrics.exists() and metrics.read_text())  # noqa: B023
        process.send_signal(signal_number)
        printed = process.communicate()[1]
        code = -9 if signal_number == signal.SIGKILL else 75
        assert process.returncode == code, printed
    assert run(flags) == 0
    again = trials(directory)
    assert [t.state for t in again] == [TrialState.COMPLETE] * 4
    resumed = [[step for step, _ in starts(directory, i)] for i in range(4)]
    assert resumed[0] == resumed[3] == [0]
    for first, then in resumed[1:3]:
        assert first == 0 < then
    assert run([*flags, f"--workdir={uninterrupted}"]) == 0
    same = [(t.params, t.value, t.intermediate_values) for t in trials(uninterrupted)]
    assert [(t.params, t.value, t.intermediate_values) for t in again] == same


def test_two_processes_share_a_study(argv, tmp_path):
    flags = [*argv, RATE, "--num_trials=5", "--pruner=none"]
    directory, gate = tmp_path / "sweep", tmp_path / "gate"
    both = [start(flags, GATE=str(gate)) for _ in range(2)]
    first = [directory / "trials" / str(n) / "starts" for n in range(2)]
    wait_for(lambda: all(path.exists() and path.read_text() for path in first))
    gate.touch()
    printed = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert [t.state for t in trials(directory)] == [TrialState.COMPLETE] * 5
    all_starts = [starts(directory, number) for number in range(5)]
    assert all(len(each) == 1 for each in all_starts)
    assert {each[0][1] for each in all_starts} == {process.pid for process in both}
    assert len({t.params["optim.learning_rate"] for t in trials(directory)}) == 5


def test_failed_trials_are_reported_and_the_search_continues(argv, tmp_path, capsys):
    flags = [*argv, "--search.model.num_layers=choice:5,3", "--num_trials=6"]
    flags += ["--search.optim.learning_rate=choice:0.1,0.01,1.0"]
    assert run([*flags, "--sampler=random"]) == 0
    all_trials = trials(tmp_path / "sweep")
    printed = capsys.readouterr()
    failed = [t for t in all_trials if t.state == TrialState.FAIL]
    errors = {t.user_attrs["error"] for t in failed}
    assert errors == {
        "config.model.num_heads = 5: does not divide it",
        "loss is not a finite number at step 2",
    }
    for trial in failed:
        error = trial.user_attrs["error"]
        assert f"trial {trial.number}: failed, 0.0 min: {error}" in printed.err
    rows = [line for line in printed.out.splitlines() if " failed " in line]
    assert len(rows) == len(failed)
    for row, trial in zip(rows, failed, strict=True):
        assert trial.user_attrs["error"] in row


def test_the_search_ends_if_all_trials_fail_with_one_error(argv, tmp_path, capsys):
    flags = [*argv, RATE, "--num_trials=9"]
    assert run([*flags, "--search.model.num_layers=choice:5"]) == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith(
        "error: the first 3 trials failed with the same error: config.model.num_h"
    )
    assert run([*flags, "--search.model.num_layers=choice:5", "--num_trials=2"]) == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith("error: none of 3 trials was completed; the last: config")
    # Nothing is lost: the search may be changed, and starts again.
    assert run([*flags, "--search.model.num_layers=choice:3", "--num_trials=1"]) == 0
    assert [t.state for t in trials(tmp_path / "sweep")] == [TrialState.COMPLETE]


def test_a_study_of_another_search_is_an_error(argv, tmp_path, capsys):
    flags = [*argv, RATE, "--num_trials=1"]
    assert run(flags) == 0
    other = ["--search.optim.learning_rate=log:1e-5:1"]
    for changed, named in (
        ([*argv, *other], "--search.optim.learning_rate was 'log:1e-4:1', is 'log:1e"),
        ([*flags, "--mode=max"], "--mode was 'min', is 'max'"),
        ([*flags, "--metric=accuracy"], "--metric was 'loss', is 'accuracy'"),
        ([*flags, "--config.num_steps=9"], "config.num_steps was 8, is 9"),
        (
            [*flags, "--search.model.dropout=0:0.5"],
            "--search.model.dropout was 'unset', is '0:0.5'",
        ),
    ):
        capsys.readouterr()
        assert run(changed) == 2
        printed = capsys.readouterr().err
        assert named in printed and printed.count("\n") == 1
    assert run([*flags, "--sampler=random", "--num_trials=2"]) == 0
    (tmp_path / "sweep" / "study.db").write_text("no database" * 1000)
    assert run(flags) == 2
    assert "study.db: cannot be used as a study" in capsys.readouterr().err


def test_a_study_that_is_damaged_during_the_search(argv, tmp_path, monkeypatch, capsys):
    def lose(*_, **__):
        (tmp_path / "sweep" / "study.db").write_text("no database" * 1000)
        return ask(*_, **__)

    ask = optuna.Study.ask
    monkeypatch.setattr(optuna.Study, "ask", lose)
    assert run([*argv, RATE, "--num_trials=2"]) == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.endswith(
        "study.db: cannot be used as a study: file is not a database"
    )


def test_a_trial_resumes_after_a_timeout(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STEP_SECONDS", "1")
    flags = [*argv, RATE, "--num_trials=2", "--pruner=none"]
    assert run([*flags, "--timeout_minutes=0.05"]) == 75
    assert "run the same command again" in capsys.readouterr().err
    assert [t.state for t in trials(tmp_path / "sweep")] == [TrialState.RUNNING]
    monkeypatch.setenv("STEP_SECONDS", "0")
    assert run(flags) == 0
    assert len(starts(tmp_path / "sweep", 0)) == 2


def test_a_dry_run_writes_nothing(argv, tmp_path, capsys):
    assert run([*argv, RATE, "--dry_run"]) == 0
    assert "--config.optim.learning_rate=0." in capsys.readouterr().out
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_a_search_over_real_runs(argv, tmp_path, monkeypatch):
    monkeypatch.undo()
    flags = [*argv, RATE, "--num_trials=2", "--search.model.num_heads=choice:2,4"]
    words = [
        "--config.tokenizer.kind=sentencepiece",
        "--config.tokenizer.algorithm=word",
        "--config.tokenizer.lossless=False",
        "--config.tokenizer.vocab_size=16",
    ]
    assert run([*flags, *words], trainer=command.TRAINER) == 0
    all_trials = trials(tmp_path / "sweep")
    assert TrialState.FAIL not in {t.state for t in all_trials}
    tokenizers = [
        tmp_path / "sweep" / "trials" / str(n) / "tokenizer" for n in range(2)
    ]
    stamps = {(path / "sentencepiece.model").stat().st_mtime_ns for path in tokenizers}
    assert len(stamps) == 1, "the second trial uses the tokenizer of the first"
    best = json.loads((tmp_path / "sweep" / "best.json").read_text())
    metrics = (Path(best["workdir"]) / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in metrics if '"valid"' in line]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert best["value"] == lines[-1]["loss"]
    assert (tmp_path / "sweep" / "trials.png").stat().st_size > 10_000
    resolved = json.loads((Path(best["workdir"]) / "config.json").read_text())
    assert resolved["optim"]["learning_rate"] == best["config"]["optim.learning_rate"]


def test_the_metric_is_checked_before_any_trial(script, monkeypatch):
    monkeypatch.undo()
    config = load(str(script), [])
    command.check_metric(config, "bits_per_byte")
    with pytest.raises(UserError) as error:
        command.check_metric(config, "acuracy")
    message = str(error.value)
    assert message.startswith("--metric=acuracy: ")
    assert "(did you mean 'accuracy'?)" in message
    assert "loss, accuracy, perplexity, word_perplexity, bits_per_byte" in message


@pytest.mark.parametrize(
    ("program", "flag", "output"),
    [
        (["tools/sweep.py"], "--dry_run", "the first trial:"),
        (["-m", "tools.sweep"], "--help", "usage: sweep.py"),
    ],
)
def test_the_command_is_a_script_and_a_module(argv, program, flag, output):
    done = subprocess.run(
        [sys.executable, *program, *argv, "--search.seed=int:0:9", flag],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert output in done.stdout
