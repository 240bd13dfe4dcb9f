"""Ranges and flags are checked before anything runs."""

import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from lmjax.config.experiment import parse
from lmjax.errors import UserError
from tools.sweep import command
from tools.sweep.space import parse_space

SECTIONS = {"tokenizer": {"kind": "bytes"}, "data": {"source": "python_stdlib"}}


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("model.dropout=0:0.5", FloatDistribution(0.0, 0.5)),
        ("optim.learning_rate=log:1e-4:1e-1", FloatDistribution(1e-4, 0.1, log=True)),
        ("model.num_layers=int:1:6", IntDistribution(1, 6)),
        ("model.dim=int:64:256:64", IntDistribution(64, 256, step=64)),
        ("model.dim=log:16:1024", IntDistribution(16, 1024, log=True)),
        ("optim.name=choice:adamw,lion", CategoricalDistribution(["adamw", "lion"])),
        ("model.dim=choice:64,256", CategoricalDistribution([64, 256])),
        ("model.gated=choice:true,false", CategoricalDistribution([True, False])),
        ("data.path=choice:a,1", CategoricalDistribution(["a", "1"])),
    ],
)
def test_ranges(text, distribution):
    leaf, _, values = text.partition("=")
    assert parse_space({leaf: values}, parse(SECTIONS)) == {leaf: distribution}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.learning_rat=0:1", r"no such field \(did you mean 'learning_rate'\?\)"),
        ("optim=0:1", "config.optim: is a section"),
        ("model.dropout=0.5", "must be LOW:HIGH"),
        ("model.dropout=chioce:0,1", r"must be .* \(did you mean 'choice'\?\)"),
        ("model.dropout=int:0:1", "not an integer; expected 0:1"),
        ("model.dropout=0:1", r"model.dropout = 1.0: must be a finite number >= 0, <"),
        ("model.dropout=log:0:0.5", "LOW = 0.0 must be > 0"),
        ("model.dropout=0.5:0.1", "LOW = 0.5 must be below HIGH = 0.1"),
        ("model.dropout=0:0.5:0.1", "must be LOW:HIGH"),
        ("model.dropout=a:b", "model.dropout = 'a': must be a finite number"),
        ("model.num_layers=1:6", "an integer; expected int:1:6"),
        ("model.num_layers=int:1:2.5", "model.num_layers = 2.5: must be an integer"),
        ("model.num_layers=int:0:6", "model.num_layers = 0: must be an integer >= 1"),
        ("model.dim=int:64:100:64", "HIGH = 100 .* LOW = 64 .* STEP = 64"),
        ("model.dim=int:64:128:0", "HIGH = 128 .* LOW = 64 .* STEP = 0"),
        ("optim.name=choice:adamw,loin", r"must be one of .* \(did you mean 'lion'"),
        ("optim.name=choice:lion,lion", "lion is given more than once"),
        (
            "optim.name=0:1",
            "expected choice:adamw,adafactor",
        ),
        ("sample.prompts=choice:a,b", "a tuple cannot be searched"),
    ],
)
def test_invalid_ranges(text, message):
    with pytest.raises(UserError, match=message) as error:
        parse_space(dict([text.split("=", 1)]), parse(SECTIONS))
    assert "\n" not in str(error.value)


FLAGS = ["--config=x.py", "--workdir=runs", "--metric=loss", "--mode=min"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to search: expected --search.a.b=LOW:HIGH"),
        (
            ["--search.seed=int:0:9", "--config.seed=3"],
            "--search.seed: also fixed, by --config.seed",
        ),
        (["--search.seed=int:0:9"] * 2, "--search.seed: given more than once"),
        (["--search.seed", "int:0:9"], "--search.seed: expected --search.seed=VALUE"),
        (["--search.seed=int:0:9", "--workdir=x.py"], "error: x.py: File exists"),
        (["--num_trials=0"], "--num_trials=0: must be >= 1"),
        (["--seed=-1"], "--seed=-1: must be >= 0"),
        (["--timeout_minutes=nan"], "--timeout_minutes=nan: must be > 0"),
        (["--sampler=tpee"], "argument --sampler: invalid choice: 'tpee'"),
        (["--num_trails=3"], "--num_trails=3: no such flag (did you mean '--num_tr"),
        (["--config.modle.dim=3"], "config.modle.dim: no such field (did you mean"),
        (["--config=y.py"], "y.py: no such file"),
    ],
)
def test_invalid_flags(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.py").write_text(f"def get_config():\n    return {SECTIONS!r}\n")
    assert command.main([*FLAGS, *flags]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_valid_split_is_required(tmp_path, monkeypatch, capsys):
    data = {"source": "tfds", "path": "x", "valid_split": ""}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.py").write_text(
        f"def get_config():\n    return {SECTIONS | {'data': data}!r}\n"
    )
    assert command.main([*FLAGS, "--search.seed=int:0:9"]) == 2
    assert "config.data has no valid split" in capsys.readouterr().err
