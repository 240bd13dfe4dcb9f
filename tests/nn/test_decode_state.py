"""Selection of beams within each row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.config.experiment import MeshConfig
from lmjax.nn.decode_state import take_beams
from lmjax.nn.kv_cache import KVCache, SourceKV, Stored, TransformerDecodeState
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


def test_a_source_is_shared_by_the_beams_of_its_row():
    kv, row = jnp.zeros((2, 12, 5, 1, 4)), jnp.zeros((12, 5), jnp.int32)
    own = KVCache(
        k=Stored(values_LRSKH=kv),
        v=Stored(values_LRSKH=kv, scales_LRSK=kv[..., 0]),
        positions_RS=row,
        segments_RS=row,
        next_slot=jnp.int32(3),
    )
    source = SourceKV(k_LBSKH=kv[:, :4], v_LBSKH=kv[:, :4], segments_BS=row[:4])
    state = TransformerDecodeState(own=own, source=source).take(PARENTS)
    assert state.own.k.values_LRSKH.shape == (2, 8, 5, 1, 4)
    assert state.own.segments_RS.shape == (8, 5)
    assert state.source is source
