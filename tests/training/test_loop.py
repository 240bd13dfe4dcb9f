"""The training loop: what a run writes, and that resuming it is exact."""

import dataclasses
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from lmjax.config import experiment
from lmjax.config.experiment import parse
from lmjax.errors import UserError
from lmjax.run import workdir
from lmjax.run.checkpoint import Checkpoints
from lmjax.training import loop
from lmjax.training.throughput import Meter

TINY = {
    "num_steps": 12,
    "batch_size": 4,
    "model": {
        "dim": 16,
        "num_layers": 2,
        "num_heads": 2,
        "max_length": 32,
        "dropout": 0.1,
    },
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "text", "document": "line", "length": 32},
    "optim": {"learning_rate": 1e-2, "warmup_steps": 2},
    "mesh": {"data": 1},
    "checkpoint": {"every_steps": 4},
    "eval": {"every_steps": 4},
    "sample": {"prompts": ("ab",), "max_tokens": 4},
    "log": {"every_steps": 1, "tensorboard": False},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    words = random.Random(0).choices(["to", "be", "or", "not", "that", "is"], k=2000)
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n".join(" ".join(words[i : i + 9]) for i in range(0, 2000, 9)))
    return path


@pytest.fixture
def tiny(corpus, monkeypatch):
    """Return a function from overrides to a config; meshes take the devices needed."""

    def make(*overrides: str) -> experiment.Config:
        config = parse(TINY, [f"data.path={corpus}", *overrides])
        size = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
        monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:size])
        return config

    return make


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """Return the workdir of a run that was never stopped."""
    directory = tmp_path_factory.mktemp("finished")
    config = parse(TINY, [f"data.path={corpus}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
        assert loop.train(config, directory)
    return directory


def lines(directory, split="train"):
    text = (directory / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if line["split"] == split]


def losses(directory):
    return [
        (line["step"], line["loss"], line["grad_norm"]) for line in lines(directory)
    ]


def final_state(directory):
    """Return every array of the newest checkpoint."""
    checkpoints = Checkpoints(directory, workdir.read_config(directory).checkpoint)
    step = checkpoints.steps()[-1]
    items = checkpoints.manager.restore(step)
    checkpoints.close()
    return step, jax.tree.map(np.asarray, {k: items[k] for k in ("params", "train")})


def assert_same_run(directory, other):
    assert losses(directory) == losses(other)
    jax.tree.map(
        np.testing.assert_array_equal, final_state(directory), final_state(other)
    )


def at_step(monkeypatch, step, act):
    """Do something right after a step has been dispatched, once."""
    add = Meter.add
    done = []

    def wrapped(self, number, metrics, **more):
        add(self, number, metrics, **more)
        if number == step and not done:
            done.append(number)
            act()

    monkeypatch.setattr(Meter, "add", wrapped)


class Killed(Exception):
    pass


def kill():
    raise Killed


def test_the_files_and_metrics_of_a_run(finished):
    for name in ("config.json", "metrics.jsonl", "checkpoints/12", "tokenizer"):
        assert (finished / name).exists(), name
    assert (finished / "samples" / "12.txt").read_text().startswith("ab")
    assert [line["step"] for line in lines(finished)] == list(range(1, 13))
    names = ("loss", "learning_rate", "grad_norm", "update_norm", "tokens_per_second")
    names += ("data_wait_seconds", "step_seconds", "tokens_per_second_per_device")
    assert set(names) <= lines(finished)[-1].keys()
    assert "compile_seconds" in lines(finished)[0]
    assert [line["step"] for line in lines(finished, "valid")] == [4, 8, 12]
    metrics = {"loss", "perplexity", "bits_per_byte", "word_perplexity", "accuracy"}
    assert metrics <= lines(finished, "valid")[0].keys()
    assert lines(finished)[-1]["loss"] < lines(finished)[0]["loss"]


def test_a_finished_run_has_nothing_left_to_do(finished, tiny):
    before = (finished / "metrics.jsonl").read_text()
    assert loop.train(tiny(), finished)
    assert (finished / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("step", [1, 5, 8, 11])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, tiny, finished, monkeypatch, step):
    at_step(monkeypatch, step, kill)
    with pytest.raises(Killed):
        loop.train(tiny(), tmp_path)
    assert loop.train(tiny(), tmp_path)
    assert_same_run(tmp_path, finished)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_resumes(
    tmp_path, tiny, finished, monkeypatch, number
):
    at_step(monkeypatch, 6, lambda: os.kill(os.getpid(), number))
    assert not loop.train(tiny(), tmp_path)
    assert final_state(tmp_path)[0] == 6
    assert loop.train(tiny(), tmp_path)
    assert_same_run(tmp_path, finished)


@pytest.mark.slow
def test_sigkill_of_a_process(tmp_path, tiny, finished, corpus):
    script = tmp_path / "x.py"
    script.write_text(f"def get_config():\n    return {TINY!r}\n")
    directory = tmp_path / "run"
    command = [sys.executable, "-m", "lmjax.cli", "train", f"--config={script}"]
    command += [f"--workdir={directory}", f"--config.data.path={corpus}"]
    one = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = os.environ | {"XLA_FLAGS": one}
    with subprocess.Popen(command, env=environment) as process:
        while not (directory / "checkpoints" / "4").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_run(directory, finished)


@pytest.mark.slow
def test_resuming_on_another_mesh_continues_the_curve(
    tmp_path, tiny, finished, monkeypatch
):
    at_step(monkeypatch, 6, kill)
    with pytest.raises(Killed):
        loop.train(tiny(), tmp_path)
    assert loop.train(tiny("mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2"), tmp_path)
    ours, theirs = np.array(losses(tmp_path)), np.array(losses(finished))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("mesh", [(2, 2, 1), (1, 2, 2), (4, 1, 1)])
def test_meshes_agree(tmp_path, tiny, finished, mesh):
    axes = zip(("data", "fsdp", "tensor"), mesh, strict=True)
    assert loop.train(tiny(*(f"mesh.{a}={n}" for a, n in axes)), tmp_path)
    ours, theirs = np.array(losses(tmp_path)), np.array(losses(finished))
    np.testing.assert_allclose(ours[:, 1], theirs[:, 1], rtol=1e-5)


def test_the_step_compiles_once(tmp_path, tiny, caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        assert loop.train(tiny(), tmp_path)
    compiled = [r.message for r in caplog.records if "Compiling" in r.message]
    assert sum("train_step" in message for message in compiled) == 1
    assert sum("eval_step" in message for message in compiled) == 1


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("model.dim=32", ["config.model.dim was 16, is 32"]),
        ("data.length=16", ["config.data.length was 32, is 16"]),
        ("seed=3", ["config.seed was 0, is 3"]),
        ("optim.name=lion", ["config.optim.name"]),
    ],
)
def test_another_experiment_is_refused_by_name(finished, tiny, override, names):
    with pytest.raises(UserError) as error:
        loop.train(tiny(override), finished)
    for name in names:
        assert name in str(error.value)


def test_other_text_is_refused(tmp_path, tiny, finished, corpus):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    other = tmp_path / "other.txt"
    other.write_text(corpus.read_text() + "\nmore")
    config = tiny()
    data = dataclasses.replace(config.data, path=str(other))
    saved = json.loads((directory / "config.json").read_text())
    saved["data"]["path"] = str(other)
    (directory / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"config\.data is not what this run"):
        loop.train(dataclasses.replace(config, data=data), directory)


def test_a_truncated_checkpoint_falls_back(tmp_path, tiny, finished, caplog):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    damage(directory / "checkpoints" / "12")
    with caplog.at_level(logging.WARNING):
        assert loop.train(tiny(), directory)
    assert "checkpoint 12 cannot be read" in caplog.text
    assert_same_run(directory, finished)


def test_only_damaged_checkpoints_end_in_an_error(tmp_path, tiny, finished):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    for path in (directory / "checkpoints").iterdir():
        damage(path)
    with pytest.raises(UserError, match="no checkpoint here can be read"):
        loop.train(tiny(), directory)


def damage(checkpoint):
    for file in checkpoint.rglob("*"):
        if file.is_file() and "/d/" in str(file):
            os.truncate(file, file.stat().st_size // 2)


def test_a_full_disk_spares_the_earlier_checkpoint(tmp_path, tiny, monkeypatch):
    config = tiny()
    at_step(monkeypatch, 6, kill)
    with pytest.raises(Killed):
        loop.train(config, tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.CheckpointManager.save", full)
        with pytest.raises(UserError, match=r"No space left.*complete ones: \[4\]"):
            loop.train(config, tmp_path)
    assert loop.train(config, tmp_path)


def test_a_workdir_has_one_owner(tmp_path, tiny):
    code = "import sys, pathlib; from lmjax.run import workdir\n"
    code += "with workdir.hold(pathlib.Path(sys.argv[1])):\n"
    code += "    print('held', flush=True); sys.stdin.read()\n"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"in use by process {owner.pid}"):
            loop.train(tiny(), tmp_path)
        owner.stdin.close()


def test_a_workdir_that_is_a_file(tmp_path, tiny):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        loop.train(tiny(), path / "run")


def test_a_nonfinite_loss_stops_with_its_samples(tmp_path, tiny):
    config = tiny("optim.learning_rate=1e30", "optim.warmup_steps=0", "num_steps=9")
    with pytest.raises(FloatingPointError) as error:
        loop.train(config, tmp_path)
    assert "samples" in str(error.value)
    assert "step " in str(error.value)
    assert "none saved" in str(error.value)


def test_nonfinite_updates_are_skipped_and_counted(tmp_path, tiny):
    config = tiny(
        "optim.learning_rate=1e30", "optim.warmup_steps=0", "optim.on_nonfinite=skip"
    )
    assert loop.train(config, tmp_path)
    assert lines(tmp_path)[-1]["num_skipped"] > 0


def test_early_stopping_keeps_the_best(tmp_path, tiny):
    config = tiny(
        "num_steps=40",
        "optim.schedule=constant",
        "optim.learning_rate=0.5",
        "eval.every_steps=2",
        "eval.patience=2",
        "checkpoint.best_metric=loss",
        "checkpoint.keep=1",
    )
    assert loop.train(config, tmp_path)
    values = {line["step"]: line["loss"] for line in lines(tmp_path, "valid")}
    last, best = max(values), min(values, key=values.get)
    assert last < 40
    assert last - best == 4
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {best, last}
    assert loop.train(config, tmp_path)  # and it stays stopped
    assert max(line["step"] for line in lines(tmp_path)) == last


def test_profile_writes_a_trace(tmp_path, tiny):
    assert loop.train(tiny("num_steps=4"), tmp_path, profile=range(2, 4))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_the_average_of_the_parameters_is_what_is_evaluated(tmp_path, tiny):
    assert loop.train(tiny("optim.ema_decay=0.9"), tmp_path)
    plain = tmp_path / "plain"
    assert loop.train(tiny(), plain)
    # Two programs: the compiler may sum the norms in another order.
    np.testing.assert_allclose(losses(tmp_path), losses(plain), rtol=1e-6)
    assert lines(tmp_path, "valid") != lines(plain, "valid")


# Leaves that these runs have no use for: of other sources of data, of labelled examples
# (see tests/tasks/test_labelled_runs.py), and of words (tests/data/tokenizers).
ELSEWHERE = {
    "DataConfig": {
        "train_split",
        "valid_split",
        "test_split",
        "field",
        "mixture",
        "fields",
        "columns",
        "on_bad_example",
        "num_buckets",
        "pack_examples",
    },
    "TokenizerConfig": {
        "path",
        "algorithm",
        "num_training_bytes",
        "lossless",
        "split",
        "lowercase",
        "min_count",
        "stop_words",
        "chat_template",  # tests/data/features/test_chat.py
    },
    "WatchConfig": {  # read where something hangs: tests/parallel/test_monitor.py
        "on_hang",
        "lost_seconds",
        "step_factor",
        "step_seconds",
        "phase_seconds",
        "data_seconds",
    },
    # of a teacher: tests/training/test_teacher.py
    "DistillConfig": {"temperature", "weight", "hidden", "relations"},
    "EvalConfig": {"compressors"},  # read by the report after training
    # of exports (tests/interop), of labels (tests/tasks), of `lm.embed`
    "DecoderConfig": {"family", "label_bias"},
    "TextEmbeddingConfig": {"lowercase", "max_length", "normalize", "prompt"},
}


def unread_leaves(configs, directory, watch_leaves):
    """Train with each config; return the leaves that none of the runs has read."""
    leaves = set()
    for i, config in enumerate(configs):
        more, read = watch_leaves(config)
        leaves |= more
        loop.train(config, directory / str(i))
    return {
        (kind, name)
        for kind, name in leaves - read
        if name not in ELSEWHERE.get(kind, ()) and kind != "FieldsConfig"
    }


@pytest.mark.slow
def test_every_leaf_of_the_config_is_read(tmp_path, tiny, watch_leaves):
    configs = [
        tiny("checkpoint.best_metric=loss", "eval.patience=9", "optim.schedule=wsd"),
        tiny("model.rope_scaling=llama3", "optim.name=adafactor", "num_steps=4"),
        tiny(
            *("model.position=relative", "num_steps=2"),
            *("optim.prune.method=magnitude", "optim.prune.end_step=2"),
            *("model.quantize.weights=int8", "model.quantize.activations=int8"),
            "model.quantize.aware=True",
        ),
        tiny(
            *("model.rope_scaling=yarn", "model.rope_local_theta=100", "num_steps=2"),
            *("model.window=8", "model.global_layers=(1,)"),
            "model.low_rank.fraction=0.5",
        ),
        tiny(
            *("model.rope_scaling=longrope", "num_steps=2", "model.head_dim=4"),
            *("model.rope_short_factors=(1,2)", "model.rope_long_factors=(2,4)"),
        ),
    ]
    assert not unread_leaves(configs, tmp_path, watch_leaves)


def test_a_leaf_that_nothing_reads_is_found(tmp_path, tiny, watch_leaves):
    """Planted in the model section and at the top level."""

    def plant(config):
        kind = dataclasses.make_dataclass(
            type(config).__name__,
            [("dead", int, 0)],
            bases=(type(config),),
            frozen=True,
            kw_only=True,
        )
        return kind(**vars(config))

    config = tiny("num_steps=2")
    config = plant(dataclasses.replace(config, model=plant(config.model)))
    unread = unread_leaves([config], tmp_path, watch_leaves)
    assert {("Config", "dead"), ("DecoderConfig", "dead")} <= unread
