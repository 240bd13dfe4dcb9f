"""Zeros in the weights: those that stay while a run trains, and those it makes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_loop import TINY, Killed, at_step, corpus, final_state, kill, losses, tiny

from lmjax import models
from lmjax.config.experiment import parse
from lmjax.config.optim import OptimConfig
from lmjax.config.prune import PruneConfig
from lmjax.errors import ConfigError
from lmjax.inference.language_model import load
from lmjax.nn.matrices import is_hidden_matrix
from lmjax.training import loop, optim, pruning
from lmjax.types import named_axes, named_leaves

FIXTURES = (corpus, tiny)


def matrices(params, axes):
    """Return the hidden matrices by name."""
    named = named_axes(axes)
    leaves = named_leaves(params)
    return {k: x for k, x in leaves.items() if is_hidden_matrix(k, named[k])}


def with_zeros(params, axes):
    """Return parameters whose hidden matrices are 0 where a weight is negative."""
    named = named_axes(axes)
    leaves = [
        jnp.maximum(x, 0) if is_hidden_matrix(name, named[name]) else x
        for name, x in named_leaves(params).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
def test_zeros_stay_whatever_the_optimizer(tiny_model, random_params, name):
    model, config = tiny_model, PruneConfig(method="keep")
    options = {"weight_decay": 0.1, "ema_decay": 0.9, "clip_norm": 0.5}
    optimizer = optim.build(
        OptimConfig(name=name, learning_rate=0.01, prune=config, **options),
        axes=model.axes,
        num_steps=10,
    )
    first = params = with_zeros(random_params(model), model.axes)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for number in range(3):
        grads = random_params(model, seed=number + 1)
        updates, state = update(grads, state, params, number)
        params = optax.apply_updates(params, updates)
        params, state, average = optimizer.prune(params, state, grads, number + 1)
    before = matrices(first, model.axes)
    for tree in (params, average):
        after = matrices(tree, model.axes)
        for path, old in before.items():
            new = np.asarray(after[path])
            np.testing.assert_array_equal(new == 0, old == 0, err_msg=path)
            assert (new != old)[old != 0].mean() > 0.9, path
    change = params["embed"]["embedding"] != first["embed"]["embedding"]
    assert change.all(), "no hidden matrix"


@pytest.fixture
def tiny_model(make_config):
    """Return a model; the fixture of its name here makes configs."""
    config = make_config("llama")
    return models.build(config.model, platform="cpu")


AXES = {"a": {"kernel": ("layers", "embed", "mlp")}, "b": {"kernel": ("mlp", "embed")}}
SHAPES = {"a": (2, 6, 5), "b": (9, 4)}


def draw(rng):
    return {
        name: {"kernel": rng.standard_normal(shape, np.float32)}
        for name, shape in SHAPES.items()
    }


def schedule(**options):
    options = {"begin_step": 2, "end_step": 10, "every_steps": 4, **options}
    return pruning.build(PruneConfig(**options), AXES)


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_sparsity_grows_by_a_cubic_schedule(scope):
    """Zhu and Gupta 2017; the smallest become 0, and what is 0 stays 0."""
    chosen = schedule(method="magnitude", scope=scope, sparsity=0.75)
    prune = jax.jit(chosen.prune)
    first = params = draw(np.random.default_rng(0))
    fractions = []
    for number in range(1, 13):
        params, _ = prune(params, (), number)
        zeros = [np.ravel(x["kernel"] == 0) for x in params.values()]
        fractions.append(np.concatenate(zeros).mean())
    halfway = 0.75 * (1 - 0.5**3)
    np.testing.assert_allclose(fractions[:5], 0)
    np.testing.assert_allclose(fractions[5:9], halfway, atol=0.02)
    np.testing.assert_allclose(fractions[9:], 0.75, atol=0.02)
    parts = [("a", 0), ("a", 1), ("b", ...)]
    if scope == "layer":
        for name, layer in parts:
            old, new = first[name]["kernel"][layer], params[name]["kernel"][layer]
            assert np.mean(new == 0) == pytest.approx(0.75, abs=0.02)
            assert np.abs(old[new == 0]).max() < np.abs(old[new != 0]).min()


def test_movement_pruning_equals_its_definition():
    """Scores fall by gradient * weight, of all weights; zeros may come back."""
    chosen = schedule(method="movement", sparsity=0.5, begin_step=0, every_steps=2)
    rng = np.random.default_rng(0)
    params = jax.tree.map(jnp.asarray, draw(rng))
    weights = {k: np.array(x["kernel"], np.float64) for k, x in params.items()}
    scores = {k: np.zeros_like(x) for k, x in weights.items()}
    masks = {k: np.ones_like(x, bool) for k, x in weights.items()}
    state, came_back = chosen.init(params), 0
    observe, prune = jax.jit(chosen.observe), jax.jit(chosen.prune)
    for number in range(1, 13):
        grads = draw(rng)
        state = observe(state, grads, params)
        masked = chosen.mask(grads, params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, masked)
        params, state = prune(params, state, number)
        for name, weight in weights.items():
            scores[name] -= grads[name]["kernel"] * weight
            weight -= 0.1 * grads[name]["kernel"] * masks[name]
            if number in (2, 4, 6, 8, 10):
                sparsity = 0.5 * (1 - (1 - number / 10) ** 3)
                stacked = scores[name].reshape(len(weight) if name == "a" else 1, -1)
                num = round(sparsity * stacked.shape[1])
                lowest = np.sort(stacked, axis=1)[:, num]
                mask = (stacked >= lowest[:, None]).reshape(weight.shape)
                came_back += (mask & ~masks[name]).sum()
                masks[name] = mask
            ours = np.asarray(params[name]["kernel"])
            np.testing.assert_array_equal(ours != 0, masks[name])
            np.testing.assert_allclose(ours, weight * masks[name], rtol=1e-5, atol=1e-6)
    assert came_back > 0


PRUNED = (
    "optim.prune.method=movement",
    "optim.prune.end_step=10",
    "optim.prune.every_steps=3",
    "optim.ema_decay=0.9",
    "optim.name=sgd",
    "optim.learning_rate=0.05",
    "sample.prompts=()",
)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """Return the workdir of a run with pruning that was never stopped."""
    directory = tmp_path_factory.mktemp("whole")
    config = parse(TINY, [f"data.path={corpus}", *PRUNED])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
        assert loop.train(config, directory)
    return directory


def test_a_killed_run_resumes_with_its_zeros(tmp_path, tiny, whole, monkeypatch):
    killed = tmp_path
    with monkeypatch.context() as patch:
        at_step(patch, 7, kill)
        with pytest.raises(Killed):
            loop.train(tiny(*PRUNED), killed)
    assert loop.train(tiny(*PRUNED), killed)
    assert losses(whole) == losses(killed)
    states = final_state(whole), final_state(killed)
    jax.tree.map(np.testing.assert_array_equal, *states)
    average = average_of(whole)
    for name, kernel in named_leaves(states[0][1]["params"]).items():
        if name.endswith("kernel"):
            assert np.mean(kernel == 0) == pytest.approx(0.5, abs=0.01), name
            assert (average[name][kernel == 0] == 0).all(), name


def average_of(directory):
    """Return the moving average of the parameters by name."""
    return named_leaves(load(directory).params)


def test_a_mesh_makes_the_same_zeros(tmp_path, tiny, whole):
    mesh = ("mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2")
    assert loop.train(tiny(*PRUNED, *mesh), tmp_path)
    ours, theirs = np.array(losses(tmp_path)), np.array(losses(whole))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    one, split = average_of(whole), average_of(tmp_path)
    for name, kernel in one.items():
        assert np.sum(kernel == 0) == np.sum(split[name] == 0), name


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["end_step=5", "begin_step=5"], ["prune.begin_step = 5", "end_step = 5"]),
        (["end_step=13"], ["prune.end_step = 13", "num_steps = 12"]),
        (["sparsity=1.0"], ["prune.sparsity = 1.0", ">= 0, < 1"]),
        (["method=magnitud"], ["prune.method", "did you mean 'magnitude'"]),
    ],
)
def test_schedules_that_cannot_be(tiny, overrides, words):
    with pytest.raises(ConfigError) as error:
        tiny("optim.prune.method=magnitude", *(f"optim.prune.{o}" for o in overrides))
    for word in words:
        assert word in str(error.value)


def test_adapters_and_frozen_matrices_are_refused(tiny, tiny_model):
    with pytest.raises(ConfigError, match=r"'none' with config\.model\.lora\.rank = 2"):
        tiny("optim.prune.method=keep", "model.lora.rank=2")
    config = OptimConfig(frozen=("*kernel",), prune=PruneConfig(method="keep"))
    with pytest.raises(ConfigError, match="no hidden matrix is trainable"):
        optim.build(config, axes=tiny_model.axes, num_steps=10)


def test_leaves_of_another_method_are_told(tiny):
    config = tiny("optim.prune.method=keep", "optim.prune.sparsity=0.8")
    (line,) = config.optim.unused_leaves("config.optim")
    assert line.startswith("config.optim.prune.sparsity = 0.8: ignored")
