"""Checkpoints: when they become visible, which are kept, and what is restored."""

import dataclasses
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.experiment import CheckpointConfig, MeshConfig
from lmjax.errors import UserError
from lmjax.parallel import sharding
from lmjax.run import checkpoint_record
from lmjax.run.checkpoint import (
    Checkpoints,
    as_loss,
    open_checkpoints,
    restore_params,
    save_params,
)
from lmjax.run.checkpoint_record import LogMark
from lmjax.types import TrainState


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("llama")


def make_mesh(data=1, fsdp=1, tensor=1):
    devices = jax.devices()[: data * fsdp * tensor]
    return sharding.make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), devices)


def make_state(model, mesh, *, step, ema=False):
    """Return a state whose parameters are all its step."""
    shardings = sharding.param_shardings(model.axes, model.shapes, mesh)
    fill = lambda value: jax.device_put(
        jax.tree.map(
            lambda leaf: jnp.full(leaf.shape, value, leaf.dtype), model.shapes
        ),
        shardings,
    )
    put = lambda x: jax.device_put(x, sharding.replicated(mesh))
    return TrainState(
        step=put(jnp.int32(step)),
        params=fill(step),
        opt_state={"count": put(jnp.int32(7 * step))},
        key=put(jax.random.key(step)),
        num_skipped=put(jnp.int32(0)),
        ema_params=fill(-step) if ema else None,
    )


def shapes(state):
    leaf = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    return jax.tree.map(leaf, state)


@pytest.fixture
def save(model, tmp_path):
    """Return a function that saves steps: save(1, 2, keep=1, losses=(3.0, 4.0))."""

    def save(*steps, losses=(), **config):
        checkpoints = Checkpoints(tmp_path, CheckpointConfig(**config))
        for i, step in enumerate(steps):
            metrics = {"loss": losses[i]} if losses else None
            checkpoints.save(make_state(model, make_mesh(), step=step), metrics=metrics)
        checkpoints.close()

    return save


def open_all(directory, **config):
    return Checkpoints(directory, CheckpointConfig(**config))


def steps(directory):
    return {int(path.name) for path in (directory / "checkpoints").iterdir()}


def value(params):
    (value,) = {float(leaf.max()) for leaf in jax.tree.leaves(params)}
    return value


def test_the_newest_state_is_restored(model, save, tmp_path):
    save(3, 5)
    expected = make_state(model, make_mesh(), step=5)
    state = open_all(tmp_path).restore(shapes(expected))
    assert int(state.step) == 5 and value(state.params) == 5
    assert int(state.opt_state["count"]) == 35
    np.testing.assert_array_equal(
        jax.random.key_data(state.key), jax.random.key_data(expected.key)
    )
    assert state.ema_params is None and state.carry is None


def test_an_empty_workdir_has_no_state(model, tmp_path):
    checkpoints = open_all(tmp_path)
    assert checkpoints.restore(shapes(make_state(model, make_mesh(), step=1))) is None
    assert checkpoints.steps() == [] and checkpoints.best() is None
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoints.find(None)


@pytest.mark.slow
def test_a_checkpoint_is_visible_once_it_is_complete(model, tmp_path):
    """A process that is killed while it writes leaves no directory of that name."""
    code = """
import os, pathlib, sys
directory = pathlib.Path(sys.argv[1])
rename = os.rename
def die(source, target, **options):
    if pathlib.Path(target).name == "2":  # all is written, under another name
        os._exit(9)
    rename(source, target, **options)
os.rename = os.replace = pathlib.Path.rename = pathlib.Path.replace = die
import jax.numpy as jnp, jax
from lmjax.config.experiment import CheckpointConfig
from lmjax.run.checkpoint import Checkpoints
from lmjax.types import TrainState
checkpoints = Checkpoints(directory, CheckpointConfig())
x = jnp.zeros(3)
state = TrainState(
    step=jnp.int32(2), params={"x": x}, opt_state={"x": x}, key=jax.random.key(0),
    num_skipped=jnp.int32(0),
)
checkpoints.save(state, metrics=None)
checkpoints.wait()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, cwd=Path(__file__).parents[2]).returncode == 9
    left = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert left and "2" not in left
    checkpoints = open_all(tmp_path)
    assert checkpoints.steps() == []
    assert checkpoints.restore(shapes(make_state(model, make_mesh(), step=0))) is None


def test_a_save_does_not_wait_for_the_disk_to_let_the_state_go(model, tmp_path):
    """The state is copied: training may donate it at once."""
    checkpoints = open_all(tmp_path)
    state = make_state(model, make_mesh(), step=4)
    like = shapes(state)
    checkpoints.save(state, metrics=None)
    jax.tree.map(lambda leaf: leaf.delete(), state)
    checkpoints.wait()
    assert value(checkpoints.restore(like).params) == 4


def test_the_newest_few_are_kept(save, tmp_path):
    save(1, 2, 3, 4, keep=2)
    assert steps(tmp_path) == {3, 4}


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 3)])
def test_the_best_is_kept(save, tmp_path, mode, best):
    config = {"keep": 1, "best_metric": "loss", "best_mode": mode}
    save(1, 2, 3, 4, losses=(2.0, 1.0, 9.0, 3.0), **config)
    assert steps(tmp_path) == {best, 4}
    checkpoints = open_all(tmp_path, **config)
    assert checkpoints.best() == checkpoints.find("best") == best
    assert checkpoints.find(None) == 4
    with pytest.raises(UserError, match=rf"--step=1: .*{best}, 4"):
        checkpoints.find(1)


def test_the_best_needs_a_metric(save, tmp_path):
    save(1)
    with pytest.raises(UserError, match=r"--step=best: .*best_metric = 'loss'"):
        open_all(tmp_path, best_metric="loss").find("best")


def damage(checkpoint):
    for file in checkpoint.rglob("*"):
        if file.is_file() and "/d/" in str(file):
            os.truncate(file, file.stat().st_size // 2)


def test_a_damaged_checkpoint_is_passed_over(model, save, tmp_path, caplog):
    save(1, 2)
    damage(tmp_path / "checkpoints" / "2")
    like = shapes(make_state(model, make_mesh(), step=0))
    with caplog.at_level(logging.WARNING):
        state = open_all(tmp_path).restore(like)
    assert int(state.step) == 1
    assert "checkpoint 2 " in caplog.text
    assert steps(tmp_path) == {1}
    assert (tmp_path / "checkpoints.unreadable" / "2").exists()


def test_only_damaged_checkpoints(model, save, tmp_path):
    save(1)
    damage(tmp_path / "checkpoints" / "1")
    like = shapes(make_state(model, make_mesh(), step=0))
    with pytest.raises(UserError, match="no checkpoint here can be read"):
        open_all(tmp_path).restore(like)
    assert steps(tmp_path) == {1}


def test_another_model_is_named(model, tiny, save, tmp_path):
    save(1)
    other = tiny("llama", dim=64)
    with pytest.raises(UserError, match=r"params\..* is \(.*\) there, not \(.*64"):
        open_all(tmp_path).restore(shapes(make_state(other, make_mesh(), step=0)))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4}])
def test_a_state_is_restored_on_another_mesh(model, save, tmp_path, sizes):
    save(3)
    like = shapes(make_state(model, make_mesh(**sizes), step=0))
    state = open_all(tmp_path).restore(like)
    assert value(state.params) == 3
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(
        lambda x: x.sharding, like
    )


@pytest.mark.parametrize("ema", [False, True])
def test_parameters_are_restored_alone(model, make_config, tmp_path, ema):
    """Their moving average, where there is one, and without the optimizer state."""
    checkpoints = open_all(tmp_path)
    for step in (1, 2):
        state = make_state(model, make_mesh(), step=step, ema=ema)
        checkpoints.save(state, metrics=None)
    checkpoints.close()
    mesh = make_mesh(fsdp=2)
    for step, found in ((None, 2), (1, 1)):
        config = make_config("llama")
        params = restore_params(tmp_path, config, model, mesh, step=step)
        assert value(params) == (-found if ema else found)
        assert {leaf.sharding.mesh for leaf in jax.tree.leaves(params)} == {mesh}


def test_parameters_from_elsewhere_are_step_0(model, make_config, tmp_path):
    params = make_state(model, make_mesh(), step=9).params
    save_params(tmp_path, params)
    config = make_config("llama")
    with open_checkpoints(tmp_path, config) as checkpoints:
        assert checkpoints.steps() == [0]
    assert value(restore_params(tmp_path, config, model, make_mesh())) == 9


def test_reading_changes_nothing(model, save, make_config, tmp_path):
    save(1, 2)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    restore_params(tmp_path, make_config("llama"), model, make_mesh())
    with open_checkpoints(tmp_path, make_config("llama")) as checkpoints:
        assert checkpoints.saved_at(1) < checkpoints.saved_at(2)
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert after == before


@pytest.mark.parametrize("mode", ["min", "max"])
def test_nan_is_worse_than_any_number(mode):
    worst = as_loss(float("nan"), mode=mode)
    assert all(as_loss(x, mode=mode) < worst for x in (-1e30, 0.0, 1e30))
    assert json.dumps(as_loss(1.0, mode=mode)) == ("1.0" if mode == "min" else "-1.0")


def flip(file, place):
    """Flip one bit of a file."""
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1 << 3
    file.write_bytes(content)


def array_files(checkpoint):
    """Return the files with the values of arrays, the largest first."""
    files = [path for path in checkpoint.rglob("*") if path.parent.name == "d"]
    return sorted(files, key=lambda path: -path.stat().st_size)


@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_a_flipped_bit_of_an_array_is_told(model, tmp_path, caplog, sizes):
    """On the mesh that wrote it and on another; the array is named."""
    checkpoints = open_all(tmp_path)
    rng = np.random.default_rng(0)
    for step in (1, 2):
        state = make_state(model, make_mesh(), step=step)
        noise = lambda x: x + rng.standard_normal(x.shape).astype(np.float32)
        state = dataclasses.replace(state, params=jax.tree.map(noise, state.params))
        checkpoints.save(state, metrics=None)
    checkpoints.close()
    like = shapes(make_state(model, make_mesh(**sizes), step=0))
    file = array_files(tmp_path / "checkpoints" / "2" / "params")[0]
    flip(file, 0.5)
    with (
        open_checkpoints(tmp_path, model_config()) as opened,
        pytest.raises(UserError) as error,
    ):
        opened.read(2, lambda s: opened.restore_params(model, make_mesh(), step=s))
    names = [f"{n}:" for n in checkpoint_record.shapes_of(like.params)]
    assert any(name in str(error.value) for name in names), error.value
    assert "checkpoints/2" in str(error.value) and "Digest mismatch" in str(error.value)
    assert "--step=1 is there" in str(error.value)
    with caplog.at_level(logging.WARNING):
        restored = open_all(tmp_path).restore(like)
    assert int(restored.step) == 1
    assert "checkpoint 2 cannot be read" in caplog.text


def model_config():
    return types.SimpleNamespace(checkpoint=CheckpointConfig())


@pytest.mark.slow
def test_no_flipped_bit_changes_a_value_without_a_word(model, tmp_path, caplog):
    """In any file of a checkpoint."""
    config = {"best_metric": "loss"}
    checkpoints = open_all(tmp_path, **config)
    state = make_state(model, make_mesh(), step=1)
    mark = LogMark(num_lines=3, crc32=7)
    checkpoints.save(state, metrics={"loss": 2.5}, log_mark=mark)
    checkpoints.close()
    like = shapes(state)
    files = [p for p in (tmp_path / "checkpoints" / "1").rglob("*") if p.is_file()]
    rng = random.Random(0)
    noticed = 0
    for file in files * 2:
        original = file.read_bytes()
        if not original:
            continue
        flip(file, rng.random())
        caplog.clear()
        opened = open_all(tmp_path, **config)
        try:
            found = opened.restore(like)
        except UserError:
            noticed += 1
        else:
            if caplog.records:
                noticed += 1
            else:
                assert value(found.params) == 1 and int(found.step) == 1, file
                assert int(found.opt_state["count"]) == 7, file
                assert opened.best() == 1 and opened.log_mark(1) == mark, file
        opened.close()
        file.write_bytes(original)
    assert noticed > 5


@pytest.mark.parametrize("content", ["", "{", '{"loss": "low"}', "[" * 100_000])
def test_damaged_metrics_of_earlier_versions(save, tmp_path, content):
    """They count no more; nothing else is lost."""
    save(1, 2, losses=(1.0, 2.0), best_metric="loss")
    for step in (1, 2):
        checkpoint = tmp_path / "checkpoints" / str(step)
        shutil.rmtree(checkpoint / "record")
        (checkpoint / "metrics").mkdir()
        (checkpoint / "metrics" / "metrics").write_text('{"loss": 3.0}')
    (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").write_text(content)
    assert open_all(tmp_path, best_metric="loss").best() == 2


def test_a_checkpoint_that_is_removed_while_it_is_read(model, save, tmp_path):
    """The newest is read instead; a step that was asked for is missed by name."""
    save(1, 2)
    with open_checkpoints(tmp_path, model_config()) as opened:

        def read(step):
            if (tmp_path / "checkpoints" / "2").exists():
                shutil.rmtree(tmp_path / "checkpoints" / "2")
            return value(opened.restore_params(model, make_mesh(), step=step))

        assert opened.read(None, read) == 1
        opened.manager.reload()
        shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "2")
        opened.manager.reload()
        with pytest.raises(UserError, match=r"checkpoints/2: .* removed.*there are: 1"):
            opened.read(2, read)
