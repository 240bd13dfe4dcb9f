"""One program on any mesh: the same numbers, really split, or an error."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lmjax.config.experiment import MeshConfig
from lmjax.config.optim import OptimConfig
from lmjax.errors import UserError
from lmjax.parallel import sharding
from lmjax.parallel.batch import put_batch
from lmjax.training import optim
from lmjax.training.compiled import make_program
from lmjax.training.step import init_state

MESHES = [(1, 1, 1), (2, 2, 1), (1, 2, 2), (4, 1, 1)]
SIZES = {"data": 2, "fsdp": 2, "tensor": 2}


def make_mesh(shape):
    config = MeshConfig(**dict(zip(SIZES, shape, strict=True)))
    return sharding.make_mesh(config, jax.devices()[: int(np.prod(shape))])


@pytest.fixture(scope="module")
def program(make_config):
    """Return a program whose first momentum is the gradient itself."""
    overrides = ["optim.name=sgd", "optim.learning_rate=0.1", "optim.clip_norm=0"]

    @functools.cache
    def make(shape):
        config = make_config(
            "gemma", overrides=[*overrides, "num_microbatches=2"], scan_layers=True
        )
        return make_program(config, make_mesh(shape))

    return make


@pytest.fixture(scope="module")
def states(program, make_batch):
    """Return the states after 0, 1 and 3 steps, and the last metrics."""

    def start():
        p = program(MESHES[0])
        with jax.set_mesh(p.mesh):
            return p.init(jax.random.key(0))

    first = start()

    @functools.cache
    def run(shape):
        p = program(shape)
        place = lambda x, like: jax.device_put(x, like.sharding)
        state = jax.tree.map(place, jax.tree.map(jnp.copy, first), p.state_shapes)
        seen = [jax.device_get(_without_key(state))]
        with jax.set_mesh(p.mesh):
            step = p.train_step
            for i in range(3):
                batch = put_batch(make_batch(seed=i), p.mesh)
                state, metrics = step(state, batch)
                seen.append(jax.device_get((_without_key(state), metrics)))
        return seen, state

    return run


def _without_key(state):
    return dataclasses.replace(state, key=())


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES[1:])
def test_every_mesh_computes_the_same(states, assert_close, shape):
    """Loss, gradients, and parameters after 1, 2 and 3 steps."""
    (one, _), (other, _) = states(MESHES[0]), states(shape)
    for a, b in zip(one, other, strict=True):
        assert_close(b, a, rtol=1e-5)


def test_every_mesh_starts_from_the_same_parameters(program, assert_close):
    starts = []
    for shape in (MESHES[0], (1, 2, 2)):
        with jax.set_mesh(program(shape).mesh):
            state = program(shape).init(jax.random.key(0))
        starts.append(jax.device_get(state.params))
    assert_close(*starts, rtol=1e-6)


@pytest.mark.parametrize("shape", MESHES[1:])
def test_the_state_stays_split_as_its_axes_say(states, program, shape):
    _, state = states(shape)
    for x, like in zip(
        jax.tree.leaves(state),
        jax.tree.leaves(program(shape).state_shapes),
        strict=True,
    ):
        assert x.sharding.is_equivalent_to(like.sharding, x.ndim)
    _, fsdp, tensor = shape
    blocks = state.params["decoder"]["blocks"]
    query, norm = blocks["attention"]["query"]["kernel"], blocks["mlp_norm"]["scale"]
    assert query.addressable_shards[0].data.size == query.size // (fsdp * tensor)
    assert norm.addressable_shards[0].data.size == norm.size
    momentum = state.opt_state[1].trace["decoder"]["blocks"]["attention"]["query"]
    assert momentum["kernel"].sharding == query.sharding


@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
@pytest.mark.parametrize("dim", [32, 256])  # adafactor factors from 128 on
def test_optimizer_state_follows_its_parameter(tiny, name, dim):
    model = tiny("llama", dim=dim, mlp_dim=3 * dim)
    mesh = sharding.abstract_mesh(MeshConfig(**SIZES), 8)
    config = OptimConfig(name=name, ema_decay=0.9)
    optimizer = optim.build(config, axes=model.axes, num_steps=10)
    make = functools.partial(init_state, model=model, optimizer=optimizer)
    state = jax.eval_shape(make, jax.random.key(0))
    params = sharding.param_shardings(model.axes, model.shapes, mesh)
    specs = jax.tree.map(
        lambda s: s.spec, sharding.state_shardings(state, model.shapes, params, mesh)
    )
    allowed = collections.defaultdict(set)
    flat_axes = jax.tree.leaves(model.axes, is_leaf=lambda x: isinstance(x, tuple))
    for leaf, names in zip(jax.tree.leaves(model.shapes), flat_axes, strict=True):
        split = [sharding.RULES[name][0] for name in names]
        allowed[leaf.shape].add(P(*split))
        for i in range(leaf.ndim):  # factored statistics lack one dimension
            less = leaf.shape[:i] + leaf.shape[i + 1 :]
            allowed[less].add(P(*split[:i], *split[i + 1 :]))
    flat_specs = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))
    pairs = list(zip(jax.tree.leaves(state), flat_specs, strict=True))
    assert all(spec in allowed[leaf.shape] for leaf, spec in pairs if leaf.ndim > 1)
    num_split = sum(any(spec) for _, spec in pairs)
    num_split_params = sum(any(p.spec) for p in jax.tree.leaves(params))
    # The parameters, their average, and at least one moment of each.
    assert num_split >= 3 * num_split_params


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (None, r"parameter a\.b of shape \(6, 8\) has axes None"),
        (("embed",), r"parameter a\.b of shape \(6, 8\) has axes"),
        (("embed", "nlp"), r"parameter a\.b: no rule for \['nlp'\]; known: .*'mlp'"),
        (("mlp", "heads"), r"parameter a\.b: .* puts one mesh axis on two"),
    ],
)
def test_axes_that_make_no_sense(axes, message):
    with pytest.raises(ValueError, match=message):
        sharding.param_spec("a.b", (6, 8), axes, SIZES)


def test_a_size_that_does_not_divide():
    message = r"parameter a\.b: its mlp dimension of 7 .* config\.mesh\.tensor = 2"
    with pytest.raises(UserError, match=message):
        sharding.param_spec("a.b", (6, 7), ("embed", "mlp"), SIZES)


def test_a_missing_axis_is_found_in_the_tree(tiny):
    model = tiny("llama")
    mesh = sharding.abstract_mesh(MeshConfig(data=1), 1)
    axes = jax.tree.map(lambda a: a, model.axes, is_leaf=lambda x: isinstance(x, tuple))
    axes["decoder"]["blocks"]["mlp"]["up"]["kernel"] = ("embed", "mlp")
    with pytest.raises(ValueError, match=r"parameter decoder\.blocks\.mlp\.up\.kernel"):
        sharding.param_shardings(axes, model.shapes, mesh)


@pytest.mark.parametrize(
    ("mesh", "num_devices", "sizes"),
    [
        ({}, 8, (8, 1, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, 8, (2, 2, 2)),
        ({"data": 1, "tensor": -1}, 6, (1, 1, 6)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 4, None),
        ({"context": 2}, 8, (4, 1, 1)),
        ({"data": -1, "fsdp": 3}, 8, None),
        ({"data": -1, "fsdp": 16}, 8, None),
        ({"data": 2, "fsdp": 1}, 8, None),
    ],
)
def test_mesh_sizes(mesh, num_devices, sizes):
    config = MeshConfig(**mesh)
    if sizes is None:
        with pytest.raises(UserError, match=rf"config\.mesh = .*{num_devices}"):
            sharding.mesh_sizes(config, num_devices)
    else:
        found = sharding.mesh_sizes(config, num_devices)
        assert tuple(found[axis] for axis in SIZES) == sizes
        assert found["context"] == mesh.get("context", 1)


def test_rows_that_do_not_divide():
    mesh = make_mesh((2, 2, 1))
    sharding.check_rows("config.batch_size", 8, mesh)
    with pytest.raises(UserError, match=r"config\.batch_size = 6: .* the 4 shards"):
        sharding.check_rows("config.batch_size", 6, mesh)


def test_batches_are_split_by_rows(make_batch):
    mesh = make_mesh((2, 2, 1))
    batch = put_batch(make_batch(), mesh)
    for array in batch.values():
        assert {s.data.shape for s in array.addressable_shards} == {(2, 12)}


def test_activations_are_pinned_where_a_mesh_is_set():
    pinned = lambda x: sharding.constrain(x, "batch", "length", "mlp")
    mesh = make_mesh((2, 2, 2))
    with jax.set_mesh(mesh):
        for rows, spec in ((4, sharding.BATCH_AXES), (3, None)):
            y = jax.jit(pinned)(np.zeros((rows, 5, 6), np.float32))
            expected = jax.NamedSharding(mesh, P(spec, None, "tensor"))
            assert y.sharding.is_equivalent_to(expected, 3)
    x = np.zeros((4, 5, 6), np.float32)
    assert pinned(x) is x
    with pytest.raises(KeyError):
        sharding.constrain(x, "batch", "length", "nlp")


def test_row_operations_stay_on_their_device():
    """The compiler alone would send every row to every device."""
    mesh, x = make_mesh((2, 2, 1)), np.random.default_rng(0).standard_normal((8, 50))
    best = functools.partial(jax.lax.top_k, k=3)
    with jax.set_mesh(mesh):
        find = jax.jit(functools.partial(sharding.map_row_shards, best))
        split = jax.device_put(jnp.asarray(x), sharding.batch_sharding(mesh))
        found, places = find(split)
        assert "all-gather" not in find.lower(split).compile().as_text()
        whole = find(x[:3])[1]  # rows that do not divide
    np.testing.assert_array_equal(places, np.argsort(-x, axis=1)[:, :3])
    np.testing.assert_array_equal(whole, places[:3])
    assert found.sharding.shard_shape(found.shape) == (2, 3)


@pytest.mark.parametrize(
    ("sizes", "dim", "shape"),
    [
        ({"data": 1, "fsdp": 4, "tensor": 2}, 32, (1, 4, 2)),
        ({"data": 1, "fsdp": 256}, 32, (1, 8, 1)),  # trained elsewhere: parts
        ({"data": 1, "fsdp": 6}, 36, (8, 1, 1)),  # that do not divide: copies
    ],
)
def test_the_first_mesh_that_fits_is_taken(tiny, sizes, dim, shape):
    model = tiny("llama", dim=dim, head_dim=8)
    candidates = (MeshConfig(**sizes), MeshConfig(data=1, fsdp=-1))
    mesh = sharding.fitting_mesh(candidates, axes=model.axes, shapes=model.shapes)
    assert tuple(mesh.shape[axis] for axis in SIZES) == shape
