"""The loss in tiles of tokens is that of all logits, and never holds them all."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.distill import DistillConfig
from lmjax.config.experiment import MeshConfig
from lmjax.config.text_task import CausalLMConfig
from lmjax.models.heads import OutputLayer
from lmjax.parallel.sharding import make_mesh
from lmjax.tasks.vocabulary import count_tiles, vocabulary_loss, vocabulary_metrics

B, T, D, V = 4, 7, 8, 24
ALL, SOME = 0.0, 1.1e-6  # gigabytes: SOME is less than half of B * T * V floats
OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-2}


def normal(*shape, seed=0):
    rng = np.random.default_rng([seed, *shape])
    return rng.standard_normal(shape).astype(np.float32)


def batch():
    rng = np.random.default_rng(0)
    weights = (rng.random((B, T)) < 0.8).astype(np.float32)
    return {"targets": rng.integers(0, V, (B, T)), "weights": weights}


def layer(*, bias=True, softcap=0.0, dtype=np.float32):
    x = jnp.asarray(normal(B, T, D), dtype)
    return OutputLayer(x, 2 * normal(V, D), normal(V) if bias else None, softcap)


def loss_and_grads(layer, config, teacher=None):
    """Return a multiple of the loss and the metric, and the gradients of the layer."""

    def loss(layer, batch):
        output = vocabulary_loss(layer, batch, config, teacher=teacher)
        # The cotangent is not 1, and one of the metric counts for nothing.
        return 3.0 * output.loss_sum / output.weight_sum, output.metrics

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(layer, batch())


@pytest.mark.parametrize(
    ("bias", "softcap", "options"),
    [(False, 0.0, {}), (True, 0.0, OPTIONS), (True, 5.0, OPTIONS)],
)
def test_tiles_give_the_loss_of_all_logits(bias, softcap, options):
    own = layer(bias=bias, softcap=softcap)
    assert count_tiles(own, gigabytes=SOME) > 1 == count_tiles(own, gigabytes=ALL)
    expected, found = (
        loss_and_grads(own, CausalLMConfig(logits_gigabytes=size, **options))
        for size in (ALL, SOME)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        expected,
    )


DISTILL = DistillConfig(teacher="runs/x", temperature=2.0, weight=0.3)


def teacher(softcap=0.0):
    """Return the layer of a model of another width."""
    wide = normal(B, T, D + 3, seed=5), normal(V, D + 3, seed=5)
    return OutputLayer(*map(jnp.asarray, wide), normal(V, seed=5), softcap)


@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_tiles_give_the_loss_of_a_teacher_s_logits(softcap):
    config = CausalLMConfig(distill=DISTILL, **OPTIONS)
    own, other = layer(softcap=5.0), teacher(softcap)
    assert count_tiles(own, gigabytes=SOME, copies=2) > count_tiles(own, gigabytes=SOME)
    expected, found = (
        loss_and_grads(own, dataclasses.replace(config, logits_gigabytes=size), other)
        for size in (ALL, SOME)
    )
    assert {*expected[0][1]} == {"loss", "soft_loss"}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        expected,
    )


def test_a_teacher_s_tiles_on_a_mesh():
    config = CausalLMConfig(logits_gigabytes=ALL, distill=DISTILL)
    expected = loss_and_grads(layer(), config, teacher())
    sizes = MeshConfig(data=1, fsdp=2, tensor=2)
    mesh = make_mesh(sizes, jax.devices()[:4])
    with jax.set_mesh(mesh):
        own = jax.device_put(layer(), jax.NamedSharding(mesh, jax.P()))
        small = dataclasses.replace(config, logits_gigabytes=SOME / 4)
        found = loss_and_grads(own, small, teacher())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        found,
        expected,
    )


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 8}]
)
def test_on_a_mesh(sizes):
    """Rows, the vocabulary, and columns of the table are split."""
    config = CausalLMConfig(logits_gigabytes=ALL, **OPTIONS)
    expected = loss_and_grads(layer(softcap=5.0), config)
    num = int(np.prod([*sizes.values()]))
    mesh = make_mesh(MeshConfig(**{"fsdp": 1} | sizes), jax.devices()[:num])
    shard = lambda x, *spec: jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))
    own = layer(softcap=5.0)
    own = dataclasses.replace(
        own,
        x=shard(own.x, ("data", "fsdp")),
        table_VD=shard(own.table_VD, "tensor", "fsdp"),
        bias_V=shard(own.bias_V, "tensor"),
    )
    with jax.set_mesh(mesh):
        assert count_tiles(own, gigabytes=SOME / num) > 1
        found = loss_and_grads(
            own, dataclasses.replace(config, logits_gigabytes=SOME / num)
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        found,
        expected,
    )


def test_gradients_of_a_table_are_summed_in_float32():
    """In bfloat16 the products are rounded, but not their sum over tiles."""
    exact = loss_and_grads(layer(), CausalLMConfig(logits_gigabytes=ALL))[1].table_VD
    rounded = layer(dtype=jnp.bfloat16)
    for size in (ALL, SOME):
        found = loss_and_grads(rounded, CausalLMConfig(logits_gigabytes=size))[1]
        assert found.x.dtype == jnp.bfloat16 and found.table_VD.dtype == jnp.float32
        np.testing.assert_allclose(found.table_VD, exact, atol=0.02)


@pytest.mark.parametrize("size", [ALL, SOME])
def test_no_product_of_the_backward_pass_is_of_float32(size):
    """Neither of all logits nor of tiles: on a GPU it would take twice the time."""
    config = CausalLMConfig(logits_gigabytes=size)
    grads = jax.jit(lambda own: loss_and_grads(own, config))
    text = grads.lower(layer(dtype=jnp.bfloat16)).as_text()
    products = re.findall(r"dot_general.*: \((.*)\) ->", text)
    assert len(products) >= 3
    assert not [types for types in products if "f32" in types.replace("bf16", "")]


def test_the_gradient_of_a_table_is_laid_as_the_table():
    """A reduce-scatter; an all-reduce would send twice the bytes."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=4), jax.devices()[:4])
    shape = lambda x, *spec: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.NamedSharding(mesh, jax.P(*spec))
    )
    own = layer(bias=False)
    own = dataclasses.replace(
        own, x=shape(own.x, "fsdp"), table_VD=shape(own.table_VD, None, "fsdp")
    )
    config = CausalLMConfig(logits_gigabytes=SOME / 4)
    grad = jax.grad(lambda own: vocabulary_loss(own, batch(), config).loss_sum)
    with jax.set_mesh(mesh):
        text = jax.jit(grad).lower(own).as_text()
    assert "reduce_scatter" in text


def test_metrics_are_those_of_all_logits():
    found, expected = (
        jax.jit(
            lambda own, batch, c=CausalLMConfig(logits_gigabytes=size): (
                vocabulary_metrics(own, batch, c)
            )
        )(layer(softcap=5.0), batch())
        for size in (SOME, ALL)
    )
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    assert found["accuracy"] == expected["accuracy"]


def test_no_array_has_all_tokens_and_the_vocabulary():
    config = CausalLMConfig(logits_gigabytes=SOME)
    grad = jax.jit(
        jax.grad(lambda own, batch: vocabulary_loss(own, batch, config).loss_sum)
    )
    text = grad.lower(layer(), batch()).as_text()
    assert re.search(rf"tensor<{B}x\dx{V}xf32>", text)
    assert f"tensor<{B}x{T}x{V}xf32>" not in text


def test_the_budget_is_of_a_device(caplog):
    """16 devices hold a sixteenth each."""
    shapes = (4, 1024, 8), (1_000_000, 8)
    own = OutputLayer(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    caplog.set_level("INFO", "lmjax")
    assert count_tiles(own, gigabytes=8.0) == 3
    assert "16.4 GB" in caplog.text and "logits_gigabytes = 8" in caplog.text
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=4, tensor=2))):
        assert count_tiles(own, gigabytes=8.0) == 1
