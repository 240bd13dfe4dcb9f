"""Runs that change their devices, drift apart, or cannot write their checkpoints."""

import errno
import json
import os
import pathlib
import random

import jax
import numpy as np
import pytest
from test_loop import TINY, Killed, at_step, corpus, kill, lines, losses, tiny

from lmjax.config.experiment import parse
from lmjax.data import pipeline
from lmjax.errors import UserError
from lmjax.training import loop
from lmjax.training.compiled import CompiledStep
from lmjax.types import named_leaves

FIXTURES = (corpus, tiny)


@pytest.mark.slow
def test_a_run_in_buckets_resumes_on_other_devices(tmp_path, monkeypatch):
    """On 6 devices other buckets would be chosen; dropout, too, stays what it was."""
    rng = random.Random(0)
    rows = [{"text": "ab" * rng.randint(1, 15), "label": i % 2} for i in range(80)]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": "jsonl", "path": str(path), "length": 32, "num_buckets": 2}
    config = {
        "num_steps": 6,
        "batch_size": 12,
        "model": {**TINY["model"], "num_layers": 1},
        "tokenizer": {"kind": "bytes"},
        "data": data,
        "task": {"kind": "classify"},
        "optim": {"learning_rate": 1e-3, "schedule": "constant"},
        "checkpoint": {"every_steps": 2},
        "log": {"every_steps": 1, "tensorboard": False},
    }

    def train(directory, *, devices):
        monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:devices])
        return loop.train(pipeline.resolve_vocabulary(parse(config)), directory)

    assert train(tmp_path / "one", devices=1)
    with monkeypatch.context() as stopped:
        at_step(stopped, 3, kill)
        with pytest.raises(Killed):
            train(tmp_path / "moved", devices=1)
    assert train(tmp_path / "moved", devices=6)
    moved, one = losses(tmp_path / "moved"), losses(tmp_path / "one")
    np.testing.assert_allclose(moved, one, rtol=1e-5)
    noted = json.loads((tmp_path / "moved" / "rows.json").read_text())
    assert noted == {"row_multiple": 1}


def test_parameters_that_drift_apart_end_a_run(tmp_path, tiny, monkeypatch):
    """A device that computes wrongly is named before its parameters are saved."""
    compile_step, drifted = CompiledStep.compile, []

    def drift(params):
        named = named_leaves(params)
        name, leaf = [*named.items()][-1]
        parts = [np.array(shard.data) for shard in leaf.addressable_shards]
        parts[3].flat[0] *= 1 + 1e-6
        put = [
            jax.device_put(part, shard.device)
            for part, shard in zip(parts, leaf.addressable_shards, strict=True)
        ]
        leaves, tree = jax.tree.flatten(params)
        leaves[-1] = jax.make_array_from_single_device_arrays(
            leaf.shape, leaf.sharding, put
        )
        drifted.append(name)
        return jax.tree.unflatten(tree, leaves)

    def faulty(self, batch, **options):
        compiled = compile_step(self, batch, **options)

        def step(state, *inputs):
            number = int(jax.device_get(state.step)) + 1
            state, metrics = compiled(state, *inputs)
            if number == 5:
                with jax.transfer_guard("allow"):
                    state.params.update(drift(state.params))
            return state, metrics

        return step

    monkeypatch.setattr(CompiledStep, "compile", faulty)
    config = tiny("mesh.data=4", "log.copies_every_steps=2", "eval.every_steps=0")
    with pytest.raises(UserError) as error:
        loop.train(config, tmp_path)
    text = str(error.value)
    assert "step 6: " in text and f"{drifted[0]} on device 3 of process 0" in text
    assert "last at step 4" in text
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"4"}


@pytest.mark.slow
def test_a_save_that_fails_stops_training_at_once(tmp_path, tiny, monkeypatch):
    """The next save would be a long time away; what is complete stays."""
    rename = os.rename

    def refuse(source, target, **options):
        if pathlib.Path(target).name == "700":
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return rename(source, target, **options)

    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    config = tiny("num_steps=2000", "eval.every_steps=0", "checkpoint.every_steps=700")
    with pytest.raises(UserError, match=r"No space left.*complete ones: \[\]"):
        loop.train(config, tmp_path)
    assert 700 <= len(lines(tmp_path)) < 1400
