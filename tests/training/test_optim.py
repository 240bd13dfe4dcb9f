"""Schedules, decay and clipping against their formulae."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.config.optim import OPTIMIZER_LEAVES, SCHEDULE_LEAVES, OptimConfig
from lmjax.errors import ConfigError
from lmjax.training import optim
from lmjax.types import named_leaves

PEAK = 0.5


@pytest.mark.parametrize(
    ("schedule", "corners"),
    [
        ("constant", {10: 1, 60: 1, 110: 1}),
        ("cosine", {10: 1, 60: 0.55, 35: 0.55 + 0.45 * math.sqrt(0.5), 110: 0.1}),
        ("linear", {10: 1, 60: 0.55, 110: 0.1}),
        ("inverse_sqrt", {10: 1, 40: 0.5, 90: 1 / 3}),
        ("wsd", {10: 1, 60: 1, 87: 1, 88: 1 - 0.9 / 23, 110: 0.1}),
    ],
)
def test_schedules(schedule, corners):
    config = OptimConfig(
        schedule=schedule, learning_rate=PEAK, warmup_steps=10, final_fraction=0.1
    )
    rate = optim.make_schedule(config, num_steps=110)
    for step, expected in ({0: 0.1, 4: 0.5, 9: 1} | corners).items():
        assert float(rate(step)) == pytest.approx(PEAK * expected, rel=1e-5), step
    assert float(rate(10_000)) <= float(rate(110)) + 1e-7
    after_warmup = [float(rate(step)) for step in range(10, 111)]
    assert all(a >= b for a, b in itertools.pairwise(after_warmup))


@pytest.mark.parametrize(
    ("num_steps", "warmup", "fraction"),
    [(100, 0, 0.2), (100, 50, 0.2), (1000, 100, 0.2), (1000, 500, 0.5), (7, 0, 0.5)],
)
def test_wsd_falls_in_the_last_fraction_of_num_steps(num_steps, warmup, fraction):
    config = OptimConfig(
        schedule="wsd",
        learning_rate=PEAK,
        warmup_steps=warmup,
        decay_fraction=fraction,
        final_fraction=0.0,
    )
    rates = optim.make_schedule(config, num_steps=num_steps)(np.arange(num_steps))
    falling = np.flatnonzero(np.diff(rates) < 0) + 1
    assert falling[0] == num_steps - round(num_steps * fraction)
    assert len(falling) == round(num_steps * fraction)
    assert 0 < rates[-1] == pytest.approx(PEAK / (len(falling) + 1), rel=1e-4)
    assert (rates[max(warmup - 1, 0) : falling[0]] == PEAK).all()


def test_without_warmup_the_first_step_has_the_full_learning_rate():
    for schedule in ("constant", "cosine", "linear", "inverse_sqrt", "wsd"):
        config = OptimConfig(schedule=schedule, learning_rate=PEAK)
        assert float(optim.make_schedule(config, num_steps=9)(0)) == PEAK


def build(model, **options):
    options = {"schedule": "constant", "learning_rate": 1.0, **options}
    return optim.build(OptimConfig(**options), axes=model.axes, num_steps=10)


def test_weight_decay_applies_to_the_chosen_kinds(tiny, random_params):
    model = tiny("gpt2")
    params = random_params(model)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for kinds in (("kernel", "embedding"), ("scale",), ()):
        optimizer = build(
            model, name="sgd", weight_decay=0.25, clip_norm=0.0, decay_kinds=kinds
        )
        state = optimizer.init(params)
        updates, _ = optimizer.update(zeros, state, params, jnp.int32(0))
        for path, update in jax.tree_util.tree_leaves_with_path(updates):
            param = params
            for key in path:
                param = param[key.key]
            expected = -0.25 * param if path[-1].key in kinds else 0 * param
            np.testing.assert_allclose(update, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 1e6])
def test_clipping_is_by_the_global_norm(tiny, random_params, clip_norm):
    model = tiny("llama")
    params = random_params(model)
    optimizer = build(model, name="sgd", weight_decay=0.0, clip_norm=clip_norm)
    updates, _ = optimizer.update(params, optimizer.init(params), params, jnp.int32(0))
    norm = float(optax.tree.norm(params))
    expected = 0.5 if clip_norm == 0.5 else norm
    assert float(optax.tree.norm(updates)) == pytest.approx(expected, rel=1e-5)


def test_adamw_is_the_published_one(tiny, random_params, assert_close):
    model = tiny("llama")
    params = random_params(model)
    grads = [random_params(model, seed) for seed in (1, 2)]
    ours = build(model, learning_rate=0.1, weight_decay=0.0, clip_norm=0.0)
    state = ours.init(params)
    for grad in grads:
        updates, state = ours.update(grad, state, params, jnp.int32(0))

    def by_hand(g1, g2):
        m = 0.9 * 0.1 * g1 + 0.1 * g2
        v = 0.95 * 0.05 * g1**2 + 0.05 * g2**2
        m, v = m / (1 - 0.9**2), v / (1 - 0.95**2)
        return -0.1 * m / (jnp.sqrt(v) + 1e-8)

    assert_close(updates, jax.tree.map(by_hand, *grads))


TWO_LAYERS = {
    "kernel": ("layers", "embed", "mlp"),
    "bias": ("layers", "mlp"),
    "embedding": ("vocab", "embed"),
}


def two_layers(seed):
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (2, 4, 6), "bias": (2, 6), "embedding": (5, 4)}
    return {k: jnp.asarray(rng.standard_normal(s)) for k, s in shapes.items()}


def steps(*, axes=TWO_LAYERS, params=None, grads=None, **options):
    """Return the updates of two steps; clipping and decay are apart from the rest."""
    config = OptimConfig(**{"clip_norm": 0.0, "weight_decay": 0.0, **options})
    optimizer = optim.build(config, axes=axes, num_steps=10)
    params = params or two_layers(0)
    state, found = optimizer.init(params), []
    for step, grad in enumerate(grads or [two_layers(1), two_layers(2)]):
        update, state = optimizer.update(grad, state, params, jnp.int32(step))
        found.append(update)
    return found


OTHER = {"b1": 0.5, "b2": 0.5, "epsilon": 0.1}


@pytest.mark.parametrize("leaf", OTHER)
@pytest.mark.parametrize("name", OPTIMIZER_LEAVES)
def test_the_leaves_that_an_optimizer_reads(name, leaf):
    before = steps(name=name)
    after = steps(name=name, **{leaf: OTHER[leaf]})
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), before, after)
    assert all(jax.tree.leaves(same)) == (leaf not in OPTIMIZER_LEAVES[name])


@pytest.mark.parametrize("leaf", ["final_fraction", "decay_fraction"])
@pytest.mark.parametrize("schedule", SCHEDULE_LEAVES)
def test_the_leaves_that_a_schedule_reads(schedule, leaf):
    curves = []
    for more in ({}, {leaf: 0.5}):
        config = OptimConfig(schedule=schedule, **more)
        rate = optim.make_schedule(config, num_steps=10)
        curves.append([float(rate(step)) for step in range(10)])
    assert (curves[0] == curves[1]) == (leaf not in SCHEDULE_LEAVES[schedule])


def test_adafactor_sees_one_layer_at_a_time(assert_close):
    """A layer of a stack is updated as if it stood alone, whatever the others do."""
    params, grads = two_layers(0), [two_layers(1), two_layers(2)]
    loud = lambda x: x.at[1].multiply(100.0)
    params["kernel"], params["bias"] = loud(params["kernel"]), loud(params["bias"])
    stacked = steps(name="adafactor", params=params, grads=grads)
    for layer in range(2):
        pick = lambda tree, i=layer: {k: tree[k][i] for k in ("kernel", "bias")}
        alone = steps(
            name="adafactor",
            axes={"kernel": ("embed", "mlp"), "bias": ("mlp",)},
            params=pick(params),
            grads=list(map(pick, grads)),
        )
        assert_close(list(map(pick, stacked)), alone)


def test_muon_orthogonalizes_kernels_only(tiny, random_params):
    model = tiny("llama")
    params = random_params(model)
    muon, adamw = (
        build(model, name=name, weight_decay=0.0, clip_norm=0.0)
        for name in ("muon", "adamw")
    )
    updates, expected = (
        o.update(params, o.init(params), params, jnp.int32(0))[0] for o in (muon, adamw)
    )
    for name in ("embed", "head"):
        jax.tree.map(np.testing.assert_array_equal, updates[name], expected[name])
    norm, blocks = updates["decoder"]["norm"], updates["decoder"]["blocks"]
    np.testing.assert_array_equal(norm["scale"], expected["decoder"]["norm"]["scale"])
    matrices = {
        "query": blocks["attention"]["query"]["kernel"].reshape(2, 32, 32),
        "value": blocks["attention"]["value"]["kernel"].reshape(2, 32, 16),
        "out": blocks["attention"]["out"]["kernel"].reshape(2, 32, 32),
        "up": blocks["mlp"]["up"]["kernel"],
        "down": blocks["mlp"]["down"]["kernel"],
    }
    for name, matrix in matrices.items():
        scale = 0.2 * math.sqrt(max(matrix.shape[1:]))
        singular = np.linalg.svd(np.asarray(matrix), compute_uv=False) / scale
        # Five Newton-Schulz steps bring them near 1, not to it.
        assert singular.min() > 0.3 and singular.max() < 1.4, (name, singular)


def labels_of_muon(axes, **options):
    """Return the names of the parameters that Muon updates."""
    config = OptimConfig(name="muon", **options)
    optim.build(config, axes=axes, num_steps=10)  # raises, warns
    numbers = optim._map_axes(
        lambda path, a: optim._muon_numbers(path, a, also=config.muon_also), axes
    )
    return {
        name
        for name, value in named_leaves(numbers, is_leaf=optim._is_numbers).items()
        if optim._is_numbers(value)
    }


OUTER = ("embed", "head", "pooler", "pair", "classifier", "token_types", "positions")


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("gpt2", {}),
        ("llama", {"tie_embeddings": False}),
        ("bert", {"pooler": True, "pair_head": True, "num_labels": 3}),
        ("t5", {}),
        ("bart", {}),
        ("lstm", {}),
        ("luong", {}),
    ],
)
def test_muon_takes_hidden_matrices_only(tiny, architecture, more):
    axes = tiny(architecture, **more).axes
    names = {*named_leaves(axes, is_leaf=lambda x: isinstance(x, tuple))}
    found = labels_of_muon(axes)
    inner = [n for n in names if not {*OUTER} & {*n.split(".")}]
    matrices = {n for n in inner if n.endswith(".kernel") and "blocks" in n}
    assert matrices <= found <= {n for n in inner if n.endswith(".kernel")}
    assert found, "some are hidden"


def test_muon_takes_other_matrices_when_asked(caplog):
    axes = {
        "embed": {"embedding": ("vocab", "embed")},
        "block": {
            "kernel": ("layers", "embed", "heads", "head_dim"),
            "bias": ("layers", "heads", "head_dim"),
            "lora_a": ("layers", "embed", "rank"),
            "lora_b": ("layers", "rank", "heads", "head_dim"),
        },
        "classifier": {"kernel": ("embed", "features"), "bias": ("features",)},
    }
    assert labels_of_muon(axes) == {"block.kernel"}
    asked = labels_of_muon(axes, muon_also=("classifier.*", "*.lora_?", "embed*"))
    assert asked == {
        *("block.kernel", "classifier.kernel", "block.lora_a", "block.lora_b"),
        "embed.embedding",
    }
    numbers = optim._map_axes(
        lambda path, a: optim._muon_numbers(path, a, also=("*",)), axes
    )
    lora_b = numbers["block"]["lora_b"]
    assert (lora_b.reduction_axis, lora_b.output_axis) == ((1,), (2, 3))
    for pattern in ("clasifier.kernel", "classifier.bias"):
        with pytest.raises(ConfigError, match=rf"muon_also: '{pattern}' matches no"):
            labels_of_muon(axes, muon_also=(pattern,))
    assert not caplog.records
    assert not labels_of_muon({"classifier": axes["classifier"]})
    assert "no trainable parameter is a hidden matrix" in caplog.text


def test_muon_knows_inputs_from_outputs(tiny):
    axes = tiny("gpt2").axes["decoder"]["blocks"]
    numbers = optim._map_axes(optim._muon_numbers, axes)
    sides = lambda n: (n.reduction_axis, n.output_axis)
    assert sides(numbers["attention"]["query"]["kernel"]) == ((1,), (2, 3))
    assert sides(numbers["attention"]["out"]["kernel"]) == ((1, 2), (3,))
    assert sides(numbers["mlp"]["up"]["kernel"]) == ((1,), (2,))
    assert sides(numbers["mlp"]["down"]["kernel"]) == ((1,), (2,))
    assert numbers["mlp"]["up"]["bias"] == optax.MaskedNode()


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd", "muon"])
def test_momentum_is_kept_in_its_dtype(tiny, random_params, name):
    model = tiny("llama", num_layers=1)
    params = random_params(model)
    updates = {}
    for dtype in ("float32", "bfloat16"):
        config = OptimConfig(name=name, momentum_dtype=dtype, schedule="constant")
        optimizer = optim.build(config, axes=model.axes, num_steps=10)
        state = optimizer.init(params)
        updates[dtype], state = optimizer.update(params, state, params, jnp.int32(0))
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim > 1}
        assert jnp.dtype(dtype) in dtypes
        assert (jnp.dtype("bfloat16") in dtypes) == (dtype == "bfloat16")
        kinds = {leaf.dtype for leaf in jax.tree.leaves(updates[dtype])}
        assert kinds == {jnp.dtype("float32")}


def test_adagrad_is_that_of_the_paper(assert_close):
    """What has no gradient stays, and its past is not forgotten."""
    params, grads = two_layers(0), [two_layers(1), two_layers(2), two_layers(3)]
    grads = [jax.tree.map(lambda g: g.at[0].set(0.0), grad) for grad in grads]
    options = {"learning_rate": 0.1, "schedule": "constant", "epsilon": 1e-6}
    updates = steps(name="adagrad", params=params, grads=grads, **options)
    for name, x in params.items():
        total = np.zeros(x.shape)
        for grad, update in zip(grads, updates, strict=True):
            g = np.array(grad[name], np.float64)
            total += np.square(g)
            assert_close(update[name], (-0.1 * g / (np.sqrt(total) + 1e-6)))
            assert not np.any(update[name][0])
