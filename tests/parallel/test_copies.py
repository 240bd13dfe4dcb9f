"""Copies of parameters on several devices: found when they differ, read once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lmjax.config.experiment import MeshConfig
from lmjax.parallel import copies, sharding
from lmjax.parallel.copies import Copies, DriftError


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


SPECS = {
    "whole": ((6, 4), jnp.float32, P()),
    "rows": ((6, 4), jnp.float32, P("fsdp", None)),
    "both": ((4, 6), jnp.bfloat16, P("fsdp", "tensor")),
    "own": ((8, 3), jnp.float32, P(("data", "fsdp", "tensor"), None)),
    "one": ((), jnp.int32, P()),
    "odd": ((5,), jnp.float32, P()),
    "mask": ((8,), jnp.bool_, P("tensor")),
}


@pytest.fixture(scope="module")
def params(mesh):
    rng = np.random.default_rng(0)
    return {
        name: jax.device_put(
            jnp.asarray(rng.standard_normal(shape) * 100, dtype),
            NamedSharding(mesh, spec),
        )
        for name, (shape, dtype, spec) in SPECS.items()
    }


def drifted(array, *places):
    """Return an array whose copies on some devices differ in the last bit of one."""
    devices = [*array.sharding.mesh.devices.flat]
    parts = {shard.device: np.array(shard.data) for shard in array.addressable_shards}
    for place in places:
        flat = parts[devices[place]].reshape(-1)
        flat.view(np.uint8)[-flat.itemsize] ^= 1
    return jax.make_array_from_single_device_arrays(
        array.shape,
        array.sharding,
        [jax.device_put(part, device) for device, part in parts.items()],
    )


@pytest.fixture(scope="module")
def shapes(params):
    leaf = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    return jax.tree.map(leaf, params)


def test_equal_copies_are_equal(mesh, params, shapes):
    with jax.transfer_guard("disallow"):
        found = Copies(shapes, mesh)
        for step in (1, 2):
            found.compare(step, params)
        found.check()
    assert found.equal_at == 2 and found.pending is None
    assert {*found.groups} == {*SPECS} - {"own"}


@pytest.mark.parametrize(
    ("name", "places", "devices"),
    [
        ("whole", [5], [5]),
        ("whole", [2, 7], [2, 7]),
        ("one", [0], [0]),
        ("odd", [1], [1]),
        ("mask", [6], [6]),
        ("rows", [3], [3]),
        ("both", [4], [0, 4]),  # two copies: either may be the wrong one
    ],
)
def test_copies_that_drift_apart_are_named(mesh, params, shapes, name, places, devices):
    found = Copies(shapes, mesh)
    found.compare(3, params)
    found.compare(6, {**params, name: drifted(params[name], *places)})
    with pytest.raises(DriftError) as error:
        found.check()
    named = ", ".join(f"device {i} of process 0" for i in devices)
    assert "step 6: " in str(error.value) and f"{name} on {named} (" in str(error.value)
    assert "last at step 3" in str(error.value)


def test_exchanged_elements_and_many_parameters(mesh, params, shapes):
    """A checksum depends on the places of elements; the text stays short."""
    swapped = {}
    for name in ("whole", "rows", "odd", "mask"):
        array = drifted(params[name])
        parts = [np.array(shard.data) for shard in array.addressable_shards]
        flat = parts[7].reshape(-1)
        flat[0], flat[-1] = (not flat[-1], flat[0]) if name == "mask" else flat[[-1, 0]]
        swapped[name] = jax.make_array_from_single_device_arrays(
            array.shape,
            array.sharding,
            [
                jax.device_put(part, shard.device)
                for part, shard in zip(parts, array.addressable_shards, strict=True)
            ],
        )
    found = Copies(shapes, mesh)
    found.compare(1, params | swapped)
    with pytest.raises(DriftError, match=r"and of 1 more \(seen equal never"):
        found.check()


def test_one_device_has_nothing_to_compare(params):
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    one = jax.device_put({"w": np.ones(3)}, sharding.replicated(mesh))
    found = Copies(one, mesh)
    found.compare(1, one)
    assert found.pending is None


def test_copies_are_read_in_parts_and_gathered_bit_for_bit(mesh, shapes):
    """Each device gets a part of its own; zeros keep their signs, NaNs their bits."""
    split = copies.split_copies(shapes)
    rng = np.random.default_rng(0)
    values = {}
    for name, leaf in split.items():
        bits = rng.integers(0, 256, (*leaf.shape, leaf.dtype.itemsize), np.uint8)
        if leaf.dtype == jnp.bool_:
            bits &= 1
        values[name] = bits.view(leaf.dtype).reshape(leaf.shape)
    values["whole"][0, :2] = (-0.0, np.nan)
    parts = {
        name: jax.device_put(value, split[name].sharding)
        for name, value in values.items()
    }
    num_parts = {
        name: len({str(shard.index) for shard in array.addressable_shards})
        for name, array in parts.items()
    }
    expected = {"whole": 1, "rows": 8, "both": 8, "own": 8, "one": 1, "odd": 1}
    assert num_parts == {**expected, "mask": 8}
    whole = copies.gather_copies(parts, shapes)
    for name, array in whole.items():
        assert array.sharding == shapes[name].sharding
        for shard in array.addressable_shards:
            part = np.asarray(shard.data)
            assert part.tobytes() == values[name][shard.index].tobytes(), name
