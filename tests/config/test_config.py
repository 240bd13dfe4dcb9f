"""The config: values it accepts, and the one-line errors for the others."""

import dataclasses
import json
import os
import subprocess
import sys
import time
import types
import typing
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from lmjax.config.experiment import Config, load, parse, to_dict
from lmjax.config.model import ModelConfig
from lmjax.config.parse import list_changes
from lmjax.config.task import TaskConfig
from lmjax.config.unused import unused_leaves
from lmjax.errors import ConfigError, UserError

GOOD = {"tokenizer": {"kind": "bytes"}, "data": {"source": "python_stdlib"}}


def test_wsd_has_steps_to_decay_after_its_warmup():
    wsd = {**GOOD, "optim": {"schedule": "wsd", "warmup_steps": 800}}
    assert parse(wsd).optim.decay_steps(1000) == 200
    with pytest.raises(
        ConfigError, match=r"optim\.decay_fraction = 0\.3: .* leaves 200"
    ):
        parse(wsd, ["optim.decay_fraction=0.3"])
    parse(wsd, ["optim.decay_fraction=0.3", "optim.schedule=cosine"])


def test_defaults_are_filled_in():
    config = parse({**GOOD, "model": {"dim": 64, "num_heads": 4}})
    model = config.model
    assert (model.num_kv_heads, model.head_dim, model.mlp_dim) == (4, 16, 256)
    assert config.eval.batch_size == config.batch_size


def test_json_round_trip():
    config = parse(GOOD, ["model.scan_layers=false", "sample.prompts=('a', 'b')"])
    assert parse(json.loads(json.dumps(to_dict(config)))) == config


def test_a_config_dict_is_parsed_like_a_dict():
    assert parse(ConfigDict(GOOD)) == parse(GOOD)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("num_steps=1e3", 1000),
        ("model.dropout=0", 0.0),
        ("model.scan_layers=true", True),
        ("model.scan_layers=auto", "auto"),
        ("model.remat=none", "none"),
        ("data.path=12", "12"),
        ("optim.decay_kinds=('kernel',)", ("kernel",)),
        ("sample.prompts=()", ()),
    ],
)
def test_override(override, value):
    source = {"tokenizer": {"kind": "bytes"}, "data": {"source": "text", "path": "x"}}
    leaf = parse(source, [override])
    for name in override.partition("=")[0].split("."):
        leaf = getattr(leaf, name)
    assert leaf == value
    assert type(leaf) is type(value)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.dims=3", ["config.model.dims", "did you mean 'dim'"]),
        ("modle.dim=3", ["config.modle.dim", "did you mean 'model'"]),
        ("model.dim=wide", ["config.model.dim = 'wide'", "integer >= 1"]),
        ("model.dim=0", ["config.model.dim = 0", ">= 1"]),
        ("model.dim=1.5", ["config.model.dim = 1.5", "integer"]),
        ("model.dim=true", ["config.model.dim = True", "integer"]),
        ("model=3", ["config.model: ", "section"]),
        ("model.dropout=1.5", ["config.model.dropout = 1.5", ">= 0, < 1"]),
        ("optim.name=adamm", ["'adamm'", "adafactor", "did you mean 'adamw'"]),
        ("model.scan_layers=maybe", ["'maybe'", "auto, True, False"]),
        ("model.num_heads=7", ["num_heads = 7", "config.model.dim = 768"]),
        ("model.num_kv_heads=5", ["num_kv_heads = 5", "num_heads = 12"]),
        ("data.length=4096", ["data.length = 4096", "max_length = 1024"]),
        ("num_microbatches=3", ["num_microbatches = 3", "batch_size = 8"]),
        ("mesh.data=3", ["batch_size", "mesh.data * mesh.fsdp = 3"]),
        ("mesh.fsdp=-1", ["config.mesh", "'fsdp': -1"]),
        ("mesh.tensor=5", ["num_heads = 12", "config.mesh.tensor = 5"]),
        ("optim.warmup_steps=2000", ["warmup_steps = 2000", "num_steps = 1000"]),
        (
            "eval.patience=2",
            ["config.eval.patience = 2", "config.checkpoint.best_metric"],
        ),
        ("data.source=text", ["config.data.path = ''", "config.data.source = 'text'"]),
        ("data.source=mixture", ["config.data.mixture"]),
        ("tokenizer.kind=sentencepiece", ["config.tokenizer.vocab_size = 0"]),
        ("optim.decay_kinds=kernel", ["config.optim.decay_kinds", "tuple"]),
        ("seed", ["config.seed", "config.seed=VALUE"]),
        ("model.dropout=1", ["dropout = 1", ">= 0, < 1"]),
        ("optim.b1=1", ["b1 = 1", "< 1"]),
        ("optim.b2=1.0", ["b2 = 1", "< 1"]),
        ("optim.ema_decay=1", ["ema_decay = 1", "< 1"]),
        ("seed=4294967296", ["seed = 4294967296", "< 4294967296"]),
        ("num_steps=1e30", ["num_steps", "integer >= 1, < 2147483648"]),
        ("model.dim=1e20", ["model.dim", "integer >= 1, < 1048576"]),
        ("optim.learning_rate=1e999", ["learning_rate = inf", "finite number"]),
        ("optim.learning_rate=1" + "0" * 400, ["learning_rate", "finite number"]),
        ("num_steps={[]:1}", ["num_steps = '{[]:1}'", "integer"]),
        ("num_steps=" + "(" * 9999, ["num_steps", "integer"]),
        ("num_steps={1:2}", ["num_steps = {'1': 2}", "integer"]),
        ("=3", ["config.", "no such field"]),
        ("model..dim=3", ["config.model..dim", "no such field"]),
        ("data.mixture=({1:2},)", ["config.data.mixture[0].1", "no such field"]),
    ],
)
def test_an_error_is_one_line_with_path_value_and_what_is_allowed(override, parts):
    with pytest.raises(UserError) as error:
        parse(GOOD, [override])
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("name=sgd", ["config.optim.b2 = 0.9", "config.optim.name = 'sgd'"]),
        ("schedule=constant", ["final_fraction = 0.5", "optim.schedule = 'constant'"]),
        ("name=adamw", []),
    ],
)
def test_leaves_that_the_optimizer_ignores_are_no_error(override, parts):
    settings = {"b2": 0.9, "final_fraction": 0.5}
    config = parse({**GOOD, "optim": settings}, [f"optim.{override}"])
    lines = list(config.optim.unused_leaves("config.optim"))
    assert len(lines) == bool(parts)
    assert all(part in line for line in lines for part in parts)


def test_a_section_that_is_a_number_takes_no_override():
    with pytest.raises(UserError, match=r"config\.model = 3: .* section"):
        parse({**GOOD, "model": 3}, ["model.dim=4"])


def test_limits_are_inclusive():
    config = parse(GOOD, ["seed=4294967295", "optim.final_fraction=1", "num_steps=1e9"])
    assert (config.seed, config.optim.final_fraction) == (2**32 - 1, 1.0)


def test_a_partial_evaluation_has_no_metrics_of_the_whole_split():
    overrides = ["eval.num_batches=2", "checkpoint.best_metric=bits_per_byte"]
    with pytest.raises(
        UserError,
        match=r"checkpoint\.best_metric = 'bits_per_byte': .*config\.eval\.num_b",
    ):
        parse(GOOD, overrides)
    parse(GOOD, ["eval.num_batches=2", "checkpoint.best_metric=loss"])


def test_all_errors_are_reported_at_once():
    with pytest.raises(UserError, match=r"config\.seed.*config\.num_steps"):
        parse(GOOD, ["seed=-1", "num_steps=0"])


def test_changes_are_listed_except_for_runtime_leaves():
    old = parse(GOOD)
    new = parse(GOOD, ["num_steps=5", "log.every_steps=3", "model.dim=96", "seed=1"])
    changed = list_changes(old, new)
    assert [line.split()[0] for line in changed] == [
        "config.seed",
        "config.model.dim",
        "config.model.head_dim",
        "config.model.mlp_dim",
    ]


def sections(kind, path, nested):
    """Yield each section class with its path, and the nested dict that selects it."""
    if isinstance(kind, types.UnionType):
        for member in typing.get_args(kind):
            (name,) = typing.get_args(typing.get_type_hints(member)["kind"])
            yield from sections(member, path, lambda n, k=name: nested(n | {"kind": k}))
    elif typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        yield from sections(item, f"{path}[0]", lambda n: nested((n,)))
    elif dataclasses.is_dataclass(kind):
        yield kind, path, nested({})
        for field, inner in typing.get_type_hints(kind).items():
            yield from sections(
                inner, f"{path}.{field}", lambda n, field=field: nested({field: n})
            )


SECTIONS = [*sections(Config, "config", lambda nested: nested)]


@pytest.mark.parametrize(
    ("section", "path", "nested"),
    SECTIONS,
    ids=[f"{path}-{section.__name__}" for section, path, _ in SECTIONS],
)
def test_every_validate_is_called(section, path, nested, monkeypatch):
    """For each section wherever it can be, and for each of its base classes."""
    planted = {
        parent: f"{{}}: planted in {parent.__name__}"
        for parent in section.__mro__
        if parent is section or "validate" in vars(parent)
    }
    for parent, problem in planted.items():
        own = vars(parent).get("validate")

        def validate(self, path, parent=parent, own=own, problem=problem):
            yield problem.format(path)
            if own is not None:
                yield from own(self, path)
            elif hasattr(super(parent, self), "validate"):
                yield from super(parent, self).validate(path)

        monkeypatch.setattr(parent, "validate", validate, raising=False)
    with pytest.raises(ConfigError) as error:
        parse(nested)
    for problem in planted.values():
        assert problem.format(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("def get_config(:\n", ["x.py:1", "invalid syntax"]),
        ("import nowhere_to_be_found\n", ["x.py:1", "nowhere_to_be_found"]),
        ("x = 1\n", ["x.py: ", "get_config"]),
        ("def get_config():\n    return 3\n", ["x.py: ", "int", "ConfigDict"]),
        (
            "def get_config():\n    raise KeyError('k')\n",
            ["x.py: get_config()", "KeyError: 'k'"],
        ),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, text, parts):
    path = tmp_path / "x.py"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load(str(path))
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing.py", "no such file"),
        ("x.txt", "no such file"),
        ("notes.txt", "not a Python file"),
        (".", "not a Python file"),
    ],
)
def test_an_experiment_must_be_a_python_file(tmp_path, name, why):
    (tmp_path / "notes.txt").write_text("x = 1\n")
    path = str(tmp_path / name)
    with pytest.raises(UserError, match=f"^{path}: {why}"):
        load(path)


def test_get_config_is_called_with_the_argument(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "def get_config(source='x'):\n"
        "    return {'data': {'source': source}, 'tokenizer': {'kind': 'bytes'}}\n"
    )
    assert load(f"{path}:python_stdlib").data.source == "python_stdlib"


def test_the_command_line_reports_an_error_in_one_line_and_under_three_seconds():
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-m", "lmjax.cli", "train", "--workdir=unused"]
    command += ["--config=experiments/lm/quickstart.py", "--config.model.dims=3"]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert time.perf_counter() - begin < 3.0
    assert done.returncode == 2
    assert done.stderr.startswith("error: config.model.dims")
    assert done.stderr.count("\n") == 1
    assert not (root / "unused").exists()


def test_defaults(golden):
    """A changed default changes runs whose configs do not mention the leaf."""
    classes = [*typing.get_args(ModelConfig), *typing.get_args(TaskConfig)]
    sections = {section.__name__: to_dict(section()) for section in classes}
    golden("defaults", {"Config": to_dict(Config()), **sections})


def test_scalars_of_numpy_are_numbers():
    values = {"num_steps": np.int64(7), "optim": {"learning_rate": np.float32(0.5)}}
    config = parse({**GOOD, **values})
    assert (config.num_steps, config.optim.learning_rate) == (7, 0.5)
    assert type(config.num_steps) is int


HELD = {}
HELD["dim"] = HELD


@pytest.mark.parametrize(
    ("values", "defaults"),
    [
        ({"model": 5, "init_from": "x"}, True),
        ({"tokenizer": (), "init_from": "x"}, True),
        ({"init_from": 5}, True),
        ({"init_from": {}}, True),
        ({"init_from": np.zeros(3)}, True),
        ({"task": {"kind": np.zeros(3)}}, False),
        ({"optim": {"name": np.zeros((2, 2))}}, False),
        ({"seed": 10**5000}, False),
        ({"optim": {"learning_rate": -(10**5000)}}, False),
        ({"optim": {"name": 10**5000}}, False),
        ({"model": HELD}, False),
        ({"model": {"kind": []}}, False),
        ({"model": {"norm": types.SimpleNamespace(x="a" * 10_000)}}, False),
    ],
)
def test_whatever_a_config_holds_the_error_is_one_short_line(values, defaults):
    sections = {"model": {"kind": "decoder"}, "tokenizer": {"kind": "bytes"}}
    with pytest.raises(ConfigError) as error:
        parse({**GOOD, **values}, defaults=lambda _: sections if defaults else None)
    assert str(error.value).startswith("config") and len(str(error.value)) < 2000


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import sys\ndef get_config(): sys.exit(3)", "get_config.* SystemExit: 3"),
        ("import sys\nsys.exit('bye')", r"x\.py:2: SystemExit: bye"),
        ("def get_config(): return get_config()", "RecursionError"),
        ("raise BaseException('odd')", "BaseException: odd"),
    ],
)
def test_an_experiment_file_does_not_end_the_program(tmp_path, source, why):
    (tmp_path / "x.py").write_text(source)
    with pytest.raises(UserError, match=why):
        load(str(tmp_path / "x.py"))


def test_an_experiment_file_anywhere_imports_the_builders_of_sections(tmp_path):
    """Also in get_config, and without the checkout as the current directory."""
    (tmp_path / "own.py").write_text("WIDTH = 48\n")
    (tmp_path / "x.py").write_text(
        "from experiments import base\n"
        "def get_config():\n"
        "    import own\n"
        "    from experiments.lm import quickstart\n"
        "    config = quickstart.get_config()\n"
        "    config.model.dim = own.WIDTH\n"
        "    config.optim = base.adamw(learning_rate=1e-3, warmup_steps=10)\n"
        "    return config\n"
    )
    root = Path(__file__).parents[2]
    code = (
        f"import sys; sys.path[:0] = [{str(root)!r}]; import lmjax; sys.path.pop(0); "
        "from lmjax.config.experiment import load; before = [*sys.path]; "
        "print(load('x.py').model.dim); assert sys.path == before"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "48\n", result.stderr


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("data.field=body", ["config.data.field = 'body'", "source = 'python_stdlib'"]),
        ("tokenizer.lossless=false", ["lossless = False", "tokenizer.kind = 'bytes'"]),
        ("sample.top_k=5", ["config.sample.top_k = 5", "prompts = ()"]),
        ("model.relative_buckets=8", ["buckets = 8", "model.position = 'rope'"]),
        ("model.rope_theta=5", []),
        ("data.field=text", []),
    ],
)
def test_leaves_without_effect_are_told(override, parts):
    lines = [*unused_leaves(parse(GOOD, [override]))]
    assert len(lines) == bool(parts)
    assert all(part in line for line in lines for part in parts)


def test_experiments_have_no_leaves_without_effect(caplog):
    for file in (Path(__file__).parents[2] / "experiments").glob("lm/[!_]*.py"):
        load(str(file))
    assert not caplog.records
