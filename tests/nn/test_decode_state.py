"""Selection of beams within each row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.config.experiment import MeshConfig
from lmjax.nn.decode_state import take_beams
from lmjax.parallel import sharding

PARENTS = np.array([[2, 0], [1, 1], [0, 2], [2, 2]])


@pytest.mark.parametrize("axis", [0, 1])
def test_each_beam_is_a_copy_of_its_parent(axis):
    rng = np.random.default_rng(0)
    before = rng.standard_normal((12, 5, 2)).astype(np.float32)
    expected = np.stack(
        [before[3 * b + p] for b, row in enumerate(PARENTS) for p in row]
    )
    found = take_beams(jnp.moveaxis(jnp.asarray(before), 0, axis), PARENTS, axis=axis)
    np.testing.assert_array_equal(np.moveaxis(found, axis, 0), expected)


def test_beams_are_selected_without_communication():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    rows = NamedSharding(mesh, PartitionSpec(None, sharding.BATCH_AXES))
    x = jax.ShapeDtypeStruct((3, 12, 5), jnp.float32, sharding=rows)
    parents = jax.ShapeDtypeStruct(
        (4, 2), jnp.int32, sharding=sharding.batch_sharding(mesh)
    )
    with jax.set_mesh(mesh):
        take = jax.jit(functools.partial(take_beams, axis=1), out_shardings=rows)
        text = take.lower(x, parents).compile().as_text()
    assert "all-gather" not in text and "all-to-all" not in text
