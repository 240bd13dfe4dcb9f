"""Training, evaluation and prediction from Python."""

import json
import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest

import lmjax
from lmjax.cli.main import main
from lmjax.config.experiment import parse
from lmjax.errors import UserError
from lmjax.inference.language_model import LanguageModel
from lmjax.run.workdir import hold

EXPERIMENT = {
    "num_steps": 6,
    "batch_size": 8,
    "model": {"dim": 16, "num_layers": 1, "num_heads": 2, "max_length": 32},
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "text", "document": "line", "length": 32},
    "optim": {"learning_rate": 1e-2, "warmup_steps": 1, "schedule": "constant"},
    "eval": {"every_steps": 2},
    "checkpoint": {"every_steps": 2, "best_metric": "loss"},
    "log": {"every_steps": 1, "tensorboard": False},
}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Return an experiment as a nested dict."""
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("".join(f"line number {i} of the text\n" for i in range(300)))
    data = {**EXPERIMENT["data"], "path": str(path), "test_path": str(path)}
    return {**EXPERIMENT, "data": data}


@pytest.fixture(scope="module")
def result(experiment, tmp_path_factory):
    return lmjax.train(experiment, tmp_path_factory.mktemp("run"))


def losses(result):
    return [line["loss"] for line in result.history if line["split"] == "train"]


def test_train_returns_the_history_and_the_model(result):
    assert result.finished
    assert result.step == 6
    trained = [line for line in result.history if line["split"] == "train"]
    assert [line["step"] for line in trained] == list(range(1, 7))
    valid = {n["step"]: n["loss"] for n in result.history if n["split"] == "valid"}
    assert [*valid] == [2, 4, 6]
    assert result.best_step == min(valid, key=valid.get)
    lm = result.load()
    assert isinstance(lm, LanguageModel) and lm.step == 6
    assert result.load("best").step == result.best_step
    assert isinstance(lm.generate(["line"], max_tokens=3)[0], str)


def test_leaves_without_effect_are_told(experiment, tmp_path, caplog):
    data = {**experiment["data"], "field": "body"}
    for config in ({**experiment, "data": data}, parse({**experiment, "data": data})):
        caplog.clear()
        with hold(tmp_path), pytest.raises(UserError, match="in use"):
            lmjax.train(config, tmp_path)
        assert "config.data.field = 'body': ignored" in caplog.text


@pytest.mark.slow
def test_train_takes_what_an_experiment_may_be(experiment, result, tmp_path):
    script = tmp_path / "x.py"
    script.write_text(f"def get_config():\n    return {experiment!r}\n")
    configs = (ml_collections.ConfigDict(experiment), parse(experiment), str(script))
    for i, config in enumerate((*configs, script)):
        short = lmjax.train(config, tmp_path / str(i), overrides=["num_steps=2"])
        assert short.finished and short.step == 2
    # The command resumes what Python began, and the other way round.
    command = ["train", f"--config={script}", f"--workdir={tmp_path / '2'}"]
    assert main([*command, "--config.num_steps=4"]) == 0
    resumed = lmjax.train(experiment, tmp_path / "2")
    assert losses(resumed) == losses(result)


def test_a_workdir_in_use_is_refused(experiment, tmp_path):
    with hold(tmp_path), pytest.raises(UserError, match="in use by process"):
        lmjax.train(experiment, tmp_path)


def test_evaluate_is_the_eval_command(result, capsys):
    metrics = lmjax.evaluate(result.workdir, step="best")
    assert [line["split"] for line in metrics] == ["valid", "test"]
    assert all(line["step"] == result.best_step for line in metrics)
    assert main(["eval", f"--workdir={result.workdir}", "--step=best"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [*map(json.loads, lines)] == metrics
    with pytest.raises(UserError, match=r"config\.model\.dim"):
        lmjax.evaluate(result.workdir, overrides=["model.dim=8"])


def test_predict_file_is_the_predict_command(tmp_path):
    examples = tmp_path / "examples.jsonl"
    texts = ("good film", "bad film") * 8
    lines = [{"text": text, "label": text.split()[0]} for text in texts]
    examples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = {
        **EXPERIMENT,
        "num_steps": 2,
        "model": {**EXPERIMENT["model"], "kind": "encoder", "pooler": True},
        "data": {"source": "jsonl", "path": str(examples), "length": 32},
        "task": {"kind": "classify"},
        "checkpoint": {},
    }
    result = lmjax.train(task, tmp_path / "run")
    lmjax.predict_file(result.workdir, examples, tmp_path / "a.jsonl")
    flags = [f"--workdir={result.workdir}", f"--input={examples}"]
    assert main(["predict", *flags, f"--output={tmp_path / 'b.jsonl'}"]) == 0
    predictions = (tmp_path / "a.jsonl").read_bytes()
    assert predictions == (tmp_path / "b.jsonl").read_bytes()
    assert len(predictions.splitlines()) == len(lines)


def test_the_names_are_functions_whatever_is_imported():
    """A module of the same name would replace them."""
    code = """
import lmjax, lmjax.training.loop, lmjax.inference.predict_file
import lmjax.training.evaluate, lmjax.api
names = ("train", "load", "evaluate", "predict_file")
assert all(callable(getattr(lmjax, name)) for name in names)
assert set(names) <= set(lmjax.__all__)
from lmjax import LanguageModel, TrainResult
"""
    root = Path(lmjax.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="trian"):
        _ = lmjax.trian


@pytest.mark.slow
def test_an_experiment_is_imported_and_changed(experiment, tmp_path):
    from experiments.lm import quickstart

    config = quickstart.get_config()
    config.num_steps = 2
    config.batch_size = 8
    config.data = experiment["data"]
    config.tokenizer = {"kind": "bytes"}
    config.model.update({**EXPERIMENT["model"], "num_kv_heads": 1})
    config.optim.warmup_steps = 1
    config.sample.max_tokens = 4
    assert lmjax.train(config, tmp_path).step == 2
