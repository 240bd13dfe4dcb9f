"""Runs in contiguous order: the carry between batches, saved and evaluated."""

import dataclasses
import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import tasks
from lmjax.config.experiment import parse
from lmjax.config.optim import OptimConfig
from lmjax.config.text_task import CausalLMConfig
from lmjax.data import pipeline
from lmjax.data.batches import train_batches
from lmjax.errors import UserError
from lmjax.parallel import sharding
from lmjax.run.checkpoint import Checkpoints
from lmjax.training import loop, optim, step
from lmjax.training.compiled import make_program
from lmjax.training.evaluate import Evaluation
from lmjax.training.throughput import Meter

TASK = tasks.build(CausalLMConfig())
TINY = {
    "num_steps": 12,
    "batch_size": 4,
    "model": {
        "kind": "recurrent",
        "cell": "lstm",
        "dim": 16,
        "num_layers": 2,
        "dropout": 0.1,
    },
    "tokenizer": {"kind": "bytes"},
    "data": {
        "source": "text",
        "document": "line",
        "length": 16,
        "order": "contiguous",
        "isolate_documents": False,
    },
    "optim": {"name": "sgd", "learning_rate": 1.0, "weight_decay": 0.0},
    "mesh": {"data": 1},
    "checkpoint": {"every_steps": 4},
    "eval": {"every_steps": 6},
    "sample": {"prompts": ("ab",), "max_tokens": 4},
    "log": {"every_steps": 1, "tensorboard": False},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    words = random.Random(0).choices(["to", "be", "or", "not", "that"], k=120)
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n".join(" ".join(words[i : i + 9]) for i in range(0, 120, 9)))
    return path


@pytest.fixture
def tiny(corpus, monkeypatch):
    """Return a function from overrides to a config; meshes take the devices needed."""

    def make(*overrides):
        config = parse(TINY, [f"data.path={corpus}", *overrides])
        size = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
        monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:size])
        return config

    return make


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """Return the workdir of a run that was never stopped."""
    directory = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
        assert loop.train(parse(TINY, [f"data.path={corpus}"]), directory)
    return directory


def last_state(directory, config):
    """Return every array of the newest checkpoint."""
    checkpoints = Checkpoints(directory, config.checkpoint)
    items = checkpoints.manager.restore(checkpoints.steps()[-1])
    checkpoints.close()
    return jax.tree.map(np.asarray, {name: items[name] for name in ("params", "train")})


def kill_at(monkeypatch, step):
    add = Meter.add

    def wrapped(self, number, metrics, **options):
        add(self, number, metrics, **options)
        if number == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Meter, "add", wrapped)


def test_a_killed_run_resumes_with_its_carry(tmp_path, tiny, finished, monkeypatch):
    config = tiny()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, 6)
        loop.train(config, tmp_path)
    assert loop.train(config, tmp_path)
    ours, theirs = last_state(tmp_path, config), last_state(finished, config)
    carry = theirs["train"]["carry"]
    assert {name: x.shape for name, x in carry.items()} == {
        "hidden": (4, 2, 16),
        "cell": (4, 2, 16),
    }
    assert all(np.abs(x).max() > 0.01 for x in carry.values())
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("change", [("mesh.fsdp=2", "mesh.tensor=2"), ("mesh.data=4",)])
def test_meshes_and_microbatches_agree(tmp_path, tiny, change):
    plain = "model.dropout=0"  # each microbatch has a key of its own
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    parts = () if "mesh.data=4" in change else ("num_microbatches=2",)
    states = []
    for path, overrides in ((ours, (plain, *change, *parts)), (theirs, (plain,))):
        config = tiny(*overrides)
        assert loop.train(config, path)
        states.append(jax.tree.leaves(last_state(path, config)))
    for x, y in zip(*states, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.fixture
def learner(tiny):
    """Return a program on one device, its first state, and its data."""

    def make(directory, *overrides):
        config = tiny("model.dropout=0", *overrides)
        config = pipeline.resolve_vocabulary(config)
        datasets = pipeline.prepare(config, workdir=directory)
        mesh = sharding.make_mesh(config.mesh)
        with jax.set_mesh(mesh):
            program = make_program(config, mesh)
            return program, program.init(jax.random.key(0)), datasets

    return make


def test_windows_are_read_as_one_text(tmp_path, learner):
    """The loss of each window, and the state after the last, are those of all."""
    program, state, datasets = learner(tmp_path, "optim.learning_rate=0")
    batches = list(train_batches(datasets, program.config, start_step=0))[:5]
    run = jax.jit(
        functools.partial(
            step.train_step,
            model=program.model,
            task=program.task,
            optimizer=program.optimizer,
            num_microbatches=2,
        )
    )
    total = 0.0
    for batch in batches:
        state, metrics = run(state, batch)
        total += float(metrics["loss"][0])
    whole = {k: np.concatenate([b[k] for b in batches], axis=1) for k in batches[0]}
    start = program.model.init_carry(4)
    loss_of = jax.jit(functools.partial(TASK.loss, program.model, key=None))
    loss, _, _, carry = loss_of(state.params, whole, carry=start)
    assert total == pytest.approx(float(loss), rel=1e-5)
    for name, part in carry.items():
        np.testing.assert_allclose(state.carry[name], part, atol=1e-5)


def test_nothing_is_carried_into_an_epoch(tmp_path, learner):
    program, state, datasets = learner(tmp_path)
    tokens = datasets.stores["train"][0].num_tokens
    epoch = -(-tokens // (4 * 16))
    batches = train_batches(datasets, program.config, start_step=0)
    first = [next(batches) for _ in range(12)]
    begins = [(batch["positions"][:, 0] == 0).all() for batch in first]
    assert np.flatnonzero(begins).tolist() == [0, epoch]
    other = {name: np.asarray(x) + 1 for name, x in state.carry.items()}
    jitted = jax.jit(functools.partial(TASK.evaluate, program.model))
    evaluate = lambda batch, carry: jitted(state.params, batch, carry=carry)
    jax.tree.map(
        np.testing.assert_array_equal,
        evaluate(first[0], state.carry),
        evaluate(first[0], other),
    )
    loss = lambda carry: float(evaluate(first[1], carry).metrics["loss"][0])
    assert loss(state.carry) != loss(other)


def test_a_skipped_update_keeps_the_carry(tmp_path, learner):
    program, state, datasets = learner(tmp_path, "optim.on_nonfinite=skip")
    optimizer = optim.build(
        OptimConfig(name="sgd", on_nonfinite="skip", weight_decay=0.0),
        axes=program.model.axes,
        num_steps=9,
    )
    opt_state = jax.jit(optimizer.init)(state.params)
    state = dataclasses.replace(state, opt_state=opt_state)
    batch = next(train_batches(datasets, program.config, start_step=0))
    bad = {**batch, "weights": np.full_like(batch["weights"], np.inf)}
    parts = {"model": program.model, "task": TASK, "optimizer": optimizer}
    train = jax.jit(functools.partial(step.train_step, **parts, num_microbatches=1))
    after, _ = train(state, bad)
    assert int(after.num_skipped) == 1
    jax.tree.map(np.testing.assert_array_equal, after.carry, state.carry)


def test_held_out_text_is_read_in_one_pass(tmp_path, learner):
    """Its perplexity is that of the whole text, whatever the windows and the mesh."""
    found = []
    for length, batch_size, parts in ((7, 1, 1), (16, 4, 1), (5, 6, 2)):
        program, state, datasets = learner(
            tmp_path,
            f"data.length={length}",
            f"eval.batch_size={batch_size}",
            f"mesh.data={parts}",
            "data.holdout_every=2",
        )
        # What is read matters.
        sharp = jax.tree.map(lambda x: 4 * np.asarray(x), state.params)
        with jax.set_mesh(program.mesh):
            results = Evaluation(program, datasets).metrics("valid", sharp)
        found.append(results)
    (store,) = datasets.stores["valid"]
    text, eos = store.read(0, store.num_tokens), datasets.tokenizer.eos_id
    begins = store.document_starts(0, store.num_tokens)
    tokens = np.concatenate([[eos], text[:-1]])
    tokens[begins] = datasets.tokenizer.bos_id
    batch = {
        "tokens": tokens[None],
        "targets": text[None],
        "weights": np.ones((1, len(text)), np.float32),
        "segments": np.ones((1, len(text)), np.int32),
        "positions": np.arange(len(text))[None],
    }
    evaluate = jax.jit(functools.partial(TASK.evaluate, program.model))
    total, weight = evaluate(sharp, batch).metrics["loss"]
    assert weight == store.num_tokens > 4 * 16
    for results in found:
        assert results["loss"] == pytest.approx(float(total / weight), rel=1e-5)
        assert results["perplexity"] == pytest.approx(np.exp(results["loss"]))
        assert "word_perplexity" in results


def test_another_batch_size_is_another_run(finished, tiny):
    with pytest.raises(UserError, match=r"config\.batch_size was 4, is 8"):
        loop.train(tiny("batch_size=8"), finished)


def test_the_state_is_split_by_rows(tiny):
    config = pipeline.resolve_vocabulary(tiny("mesh.data=2", "mesh.fsdp=2"))
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        program = make_program(config, mesh)
        state = program.init(jax.random.key(0))
    for part in state.carry.values():
        assert {s.data.shape for s in part.addressable_shards} == {(1, 2, 16)}
    assert not jnp.concatenate([x.ravel() for x in state.carry.values()]).any()
