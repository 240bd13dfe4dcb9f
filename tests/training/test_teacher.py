"""A teacher in the training step: exact sums, meshes, resuming, and what is refused."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from lmjax import models
from lmjax.config.experiment import MeshConfig, parse
from lmjax.data.tokenizers.plain import Bytes
from lmjax.errors import UserError
from lmjax.parallel import sharding
from lmjax.parallel.batch import put_batch
from lmjax.run import checkpoint, workdir
from lmjax.run.checkpoint import Checkpoints
from lmjax.tasks.distill import Teacher
from lmjax.training import loop, step, teacher
from lmjax.training.compiled import make_program
from lmjax.types import named_leaves

SIZES = {"num_layers": 2, "num_heads": 2, "max_length": 16, "scan_layers": True}
LABELS = ("B-X", "I-X", "O")
KINDS = {
    "causal_lm": {
        "model": {"kind": "decoder"},
        "data": {"source": "text", "path": "x.txt", "document": "line"},
        "task": {"kind": "causal_lm"},
    },
    "masked_lm": {
        "model": {"kind": "encoder", "mlm_head": True},
        "data": {"source": "text", "path": "x.txt", "document": "line"},
        "task": {"kind": "masked_lm"},
    },
    "tag": {
        "model": {"kind": "encoder"},
        "data": {"source": "conll", "path": "x.txt", "columns": ("tokens", "tags")},
        "task": {"kind": "tag", "labels": LABELS},
    },
    "classify": {
        "model": {"kind": "encoder", "pooler": True},
        "data": {"source": "jsonl", "path": "x.jsonl"},
        "task": {"kind": "classify", "labels": ("a", "b", "c")},
    },
}
DISTILL = {"temperature": 2.0, "weight": 0.4, "relations": 0.5}
TEXT = "".join(f"line number {i} of the text\n" for i in range(60))


def make_config(kind, *, dim=16, distill=None, overrides=(), **sections):
    own = KINDS[kind]
    task = {**own["task"], **({"distill": distill} if distill else {})}
    return parse(
        {
            "num_steps": 4,
            "batch_size": 8,
            "tokenizer": {"kind": "bytes", "mask": kind == "masked_lm"},
            "optim": {
                "name": "sgd",
                "learning_rate": 0.1,
                "schedule": "constant",
                "warmup_steps": 0,
                "clip_norm": 0.0,
            },
            "checkpoint": {"every_steps": 2},
            "log": {"every_steps": 1, "tensorboard": False},
            "mesh": {"data": 1},
            **sections,
            "model": {**SIZES, "vocab_size": 258, "dim": dim, **own["model"]},
            "data": {"length": 16, **own["data"]},
            "task": task,
        },
        overrides,
    )


@pytest.fixture(scope="module")
def make_teacher(tmp_path_factory):
    """Return what makes workdirs with random parameters, each once."""

    @functools.cache
    def make(kind, *, dim=24, bos=True, labels=(), **model):
        directory = tmp_path_factory.mktemp("teacher")
        config = make_config(kind, dim=dim)
        if labels:
            task = dataclasses.replace(config.task, labels=labels)
            config = dataclasses.replace(config, task=task)
        model = dataclasses.replace(config.model, **model)
        data = dataclasses.replace(config.data, length=min(16, model.max_length))
        config = dataclasses.replace(config, model=model, data=data)
        network = models.build(model, platform="cpu")
        checkpoint.save_params(directory, jax.jit(network.init)(jax.random.key(7)))
        workdir.write_config(directory, config)
        Bytes(bos=bos).save(directory / "tokenizer")
        return str(directory)

    return make


def batch_of(task, length=16):
    """Return a ragged batch of eight rows, with random numbers in their range."""
    rng = np.random.default_rng(0)
    batch = {}
    for name, shape in task.batch_shapes(8, length).items():
        high = {"tokens": 256, "targets": 256, "predict_positions": length}.get(name, 3)
        batch[name] = rng.integers(0, high, shape.shape).astype(shape.dtype)
    lengths = rng.integers(4, length + 1, 8)
    batch["segments"] = np.int32(np.arange(length) < lengths[:, None])
    batch["positions"] = np.arange(length, dtype=np.int32) * batch["segments"]
    if "token_types" in batch:
        batch["token_types"] *= 0
    weights = rng.random(batch["weights"].shape) < rng.random(8).reshape(
        -1, *[1] * (batch["weights"].ndim - 1)
    )
    batch["weights"] = np.float32(weights)
    if weights.shape == batch["segments"].shape:
        batch["weights"] *= batch["segments"]
    batch["weights"].reshape(8, -1)[:, 0] = 1
    return batch


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked_lm", "classify"])
def test_microbatches_and_meshes_give_the_same_step(kind, make_teacher, assert_close):
    """Gradients and metrics; the teacher is wider, and split as the student is."""
    distill = {**DISTILL, "teacher": make_teacher(kind)}
    found = []
    for sizes, num in (({}, 1), ({"fsdp": 2, "tensor": 2}, 4)):
        config = make_config(kind, distill=distill, num_microbatches=num)
        config = dataclasses.replace(config, mesh=MeshConfig(data=1, **sizes))
        count = 4 if sizes else 1
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:count])
        with jax.set_mesh(mesh):
            program = make_program(config, mesh)
            taught = teacher.load_teacher(
                config, program.teacher, tokenizer=Bytes(bos=True), mesh=mesh
            )
            state = program.init(jax.random.key(0))
            before = jax.device_get(state.params)
            batch = batch_of(program.task)
            state, metrics = program.train_step(state, put_batch(batch, mesh), taught)
            found.append(
                jax.device_get(
                    (
                        jax.tree.map(np.subtract, jax.device_get(state.params), before),
                        {name: metrics[name] for name in ("loss", "soft_loss")},
                        metrics["hidden_loss"],
                    )
                )
            )
            # It is not donated, and of its own shards.
            kept = jax.tree.leaves(taught.params)
            assert not any(leaf.is_deleted() for leaf in kept)
            assert not sizes or any(not leaf.is_fully_replicated for leaf in kept)
    assert_close(*found, rtol=2e-5)


def test_who_is_as_good_as_the_teacher_learns_nothing(make_teacher):
    kind = "causal_lm"
    directory = make_teacher(kind, dim=16)
    distill = {"teacher": directory, "weight": 1.0, "hidden": 1.0, "relations": 1.0}
    config = make_config(kind, distill=distill)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        program = make_program(config, mesh)
        taught = teacher.load_teacher(
            config, program.teacher, tokenizer=Bytes(bos=True), mesh=mesh
        )
        task = dataclasses.replace(program.task, teacher=taught)
        found = jax.jit(
            functools.partial(
                step.accumulate, model=program.model, task=task, num_microbatches=1
            )
        )(taught.params, batch_of(task), jax.random.key(0))
    for name in ("soft_loss", "hidden_loss"):
        assert abs(found.metrics[name][0]) < 1e-4
    assert found.metrics["loss"][0] > 1
    for leaf in jax.tree.leaves(found.grads):
        np.testing.assert_allclose(leaf, 0, atol=1e-4)


def test_a_teacher_drops_nothing_out(make_teacher):
    directory = make_teacher("causal_lm", dropout=0.5, attention_dropout=0.5)
    config = make_config("causal_lm", distill={"teacher": directory})
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    shaped = teacher.shape_teacher(config, mesh)
    assert isinstance(shaped, Teacher)
    assert shaped.model.config.dropout == shaped.model.config.attention_dropout == 0
    assert shaped.model.config.dtype == "float32"


def test_labels_of_a_teacher_may_come_in_another_order(make_teacher):
    directory = make_teacher("tag", labels=LABELS[::-1])
    config = make_config("tag", distill={"teacher": directory})
    teacher.check(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    assert teacher.shape_teacher(config, mesh).labels == (2, 1, 0)


@pytest.mark.slow
def test_a_run_with_a_teacher_resumes_bit_for_bit(make_teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    distill = {**DISTILL, "teacher": make_teacher("causal_lm")}
    config = make_config(
        "causal_lm",
        distill=distill,
        overrides=[f"data.path={text}", "model.dropout=0.1"],
    )
    assert loop.train(config, tmp_path / "whole")
    half = dataclasses.replace(config, num_steps=2)
    assert loop.train(half, tmp_path / "parts")
    assert loop.train(config, tmp_path / "parts")
    states, logs = [], []
    for name in ("whole", "parts"):
        checkpoints = Checkpoints(tmp_path / name, config.checkpoint)
        items = checkpoints.manager.restore(4)
        checkpoints.close()
        states.append({key: items[key] for key in ("params", "train")})
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").open())
        train = [line for line in lines if line["split"] == "train"]
        logs.append([(line["step"], line["loss"], line["soft_loss"]) for line in train])
    assert logs[0] == logs[1]
    jax.tree.map(np.testing.assert_array_equal, *states)
    # Nothing of the teacher is in the checkpoint.
    model = models.build(config.model, platform="cpu")
    assert {*named_leaves(states[0]["params"])} == {*named_leaves(model.shapes)}


def test_a_teacher_that_does_not_suit_is_one_line(make_teacher, tmp_path):
    lm, tagger = make_teacher("causal_lm"), make_teacher("tag")
    cases = [
        ("causal_lm", {"teacher": str(tmp_path / "none")}, "none'.*holds no run"),
        ("causal_lm", {"teacher": tagger}, "trained for config.task.kind = 'tag'"),
        (
            "tag",
            {"teacher": make_teacher("tag", labels=("B-Y", "I-Y", "O"))},
            "has the labels B-Y, I-Y, O, not B-X, I-X, O",
        ),
        (
            "causal_lm",
            {"teacher": make_teacher("causal_lm", vocab_size=300)},
            "config.model.vocab_size = 300.* 258",
        ),
        (
            "causal_lm",
            {"teacher": make_teacher("causal_lm", max_length=8)},
            "config.model.max_length = 8.* 16",
        ),
        ("causal_lm", {"teacher": lm, "hidden": 1.0}, "distill.hidden = 1.*24.*16"),
    ]
    for kind, distill, match in cases:
        with pytest.raises(UserError, match=match) as caught:
            teacher.check(make_config(kind, distill=distill))
        assert "\n" not in str(caught.value)
        assert "config.task.distill" in str(caught.value)
    config = make_config("causal_lm", distill={"teacher": lm})
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    shaped = teacher.shape_teacher(config, mesh)
    with pytest.raises(UserError, match="another tokenizer"):
        teacher.load_teacher(config, shaped, tokenizer=Bytes(bos=False), mesh=mesh)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["task.distill.weight=1.5"], "weight = 1.5: must be .* in \\[0, 1\\]"),
        (["task.distill.temperature=0"], "temperature = 0"),
        (["task.distill.weight=0"], "weight = 0.0: must be > 0, or .*hidden"),
        (["task.distill.temperatur=2"], "did you mean 'temperature'"),
        (["data.order=contiguous"], "distill.teacher = 'x': must be '' with"),
    ],
)
def test_leaves_are_checked_first(overrides, match):
    with pytest.raises(UserError, match=match):
        make_config("causal_lm", distill={"teacher": "x"}, overrides=overrides)
