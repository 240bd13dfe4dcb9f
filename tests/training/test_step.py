"""The training step: exact sums, also where there is nothing to sum."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import tasks
from lmjax.config.optim import OptimConfig
from lmjax.config.text_task import CausalLMConfig
from lmjax.training import optim, step

TASK = tasks.build(CausalLMConfig())


LEARNING_RATES = {
    "adamw": 0.01,
    "adafactor": 0.05,
    "adagrad": 0.03,
    "lion": 0.003,
    "muon": 0.01,
    "sgd": 0.3,
}


@functools.cache
def make_step(model, name="adamw", frozen=(), num_microbatches=1):
    """Return the first state and the jitted step of an optimizer with all its parts."""
    config = OptimConfig(
        name=name,
        learning_rate=LEARNING_RATES[name],
        schedule="constant",
        warmup_steps=2,
        weight_decay=0.0,
        ema_decay=0.75,
        on_nonfinite="skip",
        frozen=frozen,
    )
    optimizer = optim.build(config, axes=model.axes, num_steps=200)
    parts = {"model": model, "optimizer": optimizer}
    options = {"task": TASK, "num_microbatches": num_microbatches}
    train = functools.partial(step.train_step, **options, **parts)
    start = jax.jit(functools.partial(step.init_state, **parts))
    return start(jax.random.key(0)), jax.jit(train)


@pytest.fixture
def learner(tiny):
    """Return `make_step` of a small scanned model, which compiles fastest."""

    def make(name="adamw", *, architecture="llama", **changes):
        return make_step(tiny(architecture, scan_layers=True, **changes), name)

    return make


@pytest.fixture(scope="module")
def accumulate():
    """Return gradients, weight and metrics over `num` microbatches, jitted."""

    @functools.cache
    def make(model, num):
        run = functools.partial(
            step.accumulate, model=model, task=TASK, num_microbatches=num
        )
        return jax.jit(run)

    return make


def test_microbatches_equal_one_batch(
    tiny, random_params, make_batch, accumulate, assert_close
):
    model = tiny("llama", scan_layers=True)
    params, batch, key = random_params(model), make_batch(), jax.random.key(0)
    batch["weights"][[1, 5]] = 0.0  # of four microbatches, one weighs nothing
    rows = batch["weights"].sum(axis=1)
    assert len(set(rows)) > 3, "ragged"
    one = accumulate(model, 1)(params, batch, key)
    assert_close(accumulate(model, 4)(params, batch, key), one)


def test_microbatches_drop_other_elements(tiny, random_params, make_batch, accumulate):
    """Equal halves of a batch have unequal gradients: each has a dropout key."""
    model = tiny("llama", scan_layers=True, dropout=0.5)
    params, key = random_params(model), jax.random.key(0)
    half = make_batch(rows=4)
    batch = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), half)
    both, *_ = accumulate(model, 2)(params, batch, key)
    keys = jax.random.split(key, 2)
    parts = [
        accumulate(model, 1)(params, half, k)[0]["decoder"]["norm"]["scale"]
        for k in keys
    ]
    assert np.abs(parts[0] - parts[1]).max() > 0.1
    np.testing.assert_allclose(
        both["decoder"]["norm"]["scale"], sum(parts), rtol=1e-4, atol=1e-4
    )


def test_a_batch_without_weights_moves_nothing(learner, make_batch):
    state, train = learner()
    batch = make_batch()
    batch["weights"][:] = 0.0
    after, metrics = train(state, batch)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert metrics["loss"] == (0.0, 0.0)
    assert metrics["grad_norm"] == (0.0, 1.0) and after.step == 1


@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
def test_a_skipped_update_leaves_everything(learner, make_batch, name):
    state, train = learner(name)
    batch = make_batch()
    state, _ = train(state, batch)
    bad = {**batch, "weights": np.full_like(batch["weights"], np.inf)}
    after, metrics = train(state, bad)
    kept = lambda s: (s.params, s.opt_state, s.ema_params)
    jax.tree.map(np.testing.assert_array_equal, kept(after), kept(state))
    assert (int(after.step), int(after.num_skipped)) == (2, 1)
    assert not np.isfinite(metrics["grad_norm"][0])
    assert metrics["num_skipped"] == (1, 1.0)
    again, _ = train(after, batch)
    assert int(again.num_skipped) == 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(again.params))


def test_the_average_of_the_parameters(learner, make_batch, assert_close):
    state, train = learner()
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, state.params)
    average = state.ema_params
    for seed in range(3):
        state, _ = train(state, make_batch(seed=seed))
        kept = (1 + seed) / (10 + seed)  # less than 0.75
        mix = lambda a, p, kept=kept: kept * a + (1 - kept) * p
        average = jax.tree.map(mix, average, state.params)
    assert_close(state.ema_params, average, rtol=1e-6)


def test_the_average_of_a_short_run_is_not_that_of_its_beginning():
    average = {"x": jnp.float32(0.0)}
    for t in range(100):  # a tenth of the steps that 0.999 averages over
        average = step._update_average(
            average, {"x": jnp.float32(1.0)}, decay=0.999, step=jnp.int32(t)
        )
    assert float(average["x"]) == pytest.approx(1.0, abs=1e-6)
    late = step._update_average(
        {"x": jnp.float32(0.0)}, average, decay=0.999, step=jnp.int32(100_000)
    )
    assert float(late["x"]) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("num_microbatches", [1, 4])
@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_frozen_parameters_stay_to_the_bit(tiny, make_batch, name, num_microbatches):
    model = tiny("llama", scan_layers=True)
    frozen = ("embed.*", "decoder.blocks.attention.*")
    state, train = make_step(model, name, frozen, num_microbatches)
    after, metrics = train(state, make_batch())
    same = jax.tree.map(np.array_equal, after.params, state.params)
    assert same["embed"]["embedding"]
    assert all(jax.tree.leaves(same["decoder"]["blocks"]["attention"]))
    assert not any(jax.tree.leaves(same["decoder"]["blocks"]["mlp"]))
    assert not same["head"]["embedding"]
    assert float(metrics["grad_norm"][0]) > 0
    shapes = [x.shape for x in jax.tree.leaves(state.opt_state)]
    assert (2, 32, 4, 8) not in shapes, "moments of a frozen query kernel"


def test_dropout_keys_follow_the_step(learner, make_batch):
    """A step's randomness is a function of the run's key and the step alone."""
    state, train = learner(dropout=0.5)
    batch = make_batch()
    norm = lambda s: float(train(s, batch)[1]["grad_norm"][0])
    at = lambda n: dataclasses.replace(state, step=jnp.int32(n))
    after, _ = train(state, batch)
    np.testing.assert_array_equal(
        jax.random.key_data(after.key), jax.random.key_data(state.key)
    )
    assert norm(at(3)) == norm(at(3)) != norm(at(4))


def test_metrics_say_what_was_done(tiny, learner, make_batch):
    state, train = learner("sgd")
    batch = make_batch()
    after, metrics = train(state, batch)
    moved = jax.tree.map(np.subtract, *jax.device_get((after.params, state.params)))
    norm = lambda tree: np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(tree)))
    assert metrics["learning_rate"][0] == pytest.approx(0.15)  # half warmed up
    assert metrics["update_norm"][0] == pytest.approx(norm(moved), rel=1e-4)
    evaluate = jax.jit(functools.partial(TASK.evaluate, tiny("llama")))
    loss = evaluate(state.params, batch).metrics["loss"]
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


def eight_sequences(one_text):
    """Return eight texts, each of which its first token tells apart."""
    tokens = np.random.default_rng(0).integers(0, 64, (8, 13)).astype(np.int32)
    tokens[:, 0] = np.arange(8)
    weights = np.ones((8, 12), np.float32)
    targets = {"targets": tokens[:, 1:], "weights": weights}
    return {**one_text(tokens[:, :-1]), **targets}


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        *((name, "llama") for name in LEARNING_RATES),
        *(("adamw", a) for a in ("gpt2", "gemma")),
    ],
)
def test_eight_sequences_are_overfitted(learner, one_text, overfit, name, architecture):
    state, train = learner(name, architecture=architecture)
    overfit(train, state, eight_sequences(one_text), num_steps=200)


def test_steps_do_not_recompile(learner, make_batch):
    state, train = learner()
    for seed in range(3):
        state, _ = train(state, make_batch(seed=seed))
    # Once from NumPy batches and a fresh state; its own output changes nothing.
    assert train._cache_size() == 1
