"""Rows split in length over devices compute what one device computes."""

import jax
import numpy as np
import pytest

from lmjax.config.experiment import MeshConfig
from lmjax.errors import UserError
from lmjax.nn import attention_kernels, chunked_attention
from lmjax.nn.attention_choice import choose_attention
from lmjax.parallel import sharding
from lmjax.parallel.batch import put_batch
from lmjax.training.compiled import make_program
from tests.nn.attention_cases import pack

LENGTH = 32


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """Let all rows count as long, so that they are computed in blocks."""
    monkeypatch.setattr(attention_kernels, "LONG", 0)
    monkeypatch.setattr(chunked_attention, "BLOCK", 8)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    positions, segments = pack([[20, 9], [5, 8, 13], [32], [1, 30, 1]], LENGTH)
    tokens = rng.integers(1, 64, positions.shape).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "weights": (segments > 0).astype(np.float32),
        "positions": positions,
        "segments": segments,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        # A layer with a window, and one without.
        ("gemma", {"attention": "chunked", "num_layers": 2, "scan_layers": True}),
        ("llama", {"attention": "xla", "num_layers": 1}),
    ],
)
def test_loss_and_gradients_are_those_of_one_device(
    make_config, batch, architecture, changes
):
    def loss_and_gradients(sizes):
        # So few gigabytes that the loss is computed in tiles.
        overrides = ["data.length=32", "task.logits_gigabytes=2e-6", "batch_size=4"]
        config = make_config(architecture, overrides=overrides, **changes)
        num_devices = np.prod([*sizes.values()])
        mesh = sharding.make_mesh(MeshConfig(**sizes), jax.devices()[:num_devices])
        program = make_program(config, mesh)

        def loss(params, batch):
            return program.task.loss(program.model, params, batch, key=None).loss_sum

        with jax.set_mesh(mesh):
            params = program.init(jax.random.key(0)).params
            placed = put_batch(batch, mesh)
            return placed, jax.jit(jax.value_and_grad(loss))(params, placed)

    _, expected = loss_and_gradients({"data": 1})
    placed, found = loss_and_gradients({"data": 2, "context": 2, "tensor": 2})
    for array in placed.values():
        shapes = {shard.data.shape for shard in array.addressable_shards}
        assert shapes == {(2, LENGTH // 2)}
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("architecture", "overrides", "parts"),
    [
        ("lstm", ["mesh.context=2"], ["config.mesh.context = 2", "'recurrent'"]),
        ("llama", ["mesh.context=8"], ["config.data.length = 12", "context = 8"]),
        ("llama", ["mesh.context=0"], ["config.mesh.context = 0"]),
    ],
)
def test_rows_that_cannot_be_split_are_named(
    make_config, architecture, overrides, parts
):
    with pytest.raises(UserError) as error:
        make_config(architecture, overrides=overrides)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("kernel", "platform"), [("splash", "tpu"), ("cudnn", "gpu"), ("auto", "tpu")]
)
def test_kernels_that_need_whole_rows_are_not_taken(make_config, kernel, platform):
    config = make_config("llama", dtype="bfloat16", attention=kernel).model
    mesh = sharding.abstract_mesh(MeshConfig(data=1, context=2), 2)
    choose = lambda: choose_attention(config, platform=platform, mesh=mesh)
    if kernel == "auto":
        assert choose() == "chunked"
    else:
        with pytest.raises(UserError, match=r"attention = .*config\.mesh\.context = 2"):
            choose()
