"""Norms, linear layers and dropout against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.nn.linear import Embed, Linear, table_logits
from lmjax.nn.norm import make_norm
from lmjax.nn.param import dropout, fan_in

KEY = jax.random.key(0)


def normalised(x, kind):
    x = np.asarray(x, np.float64)
    if kind == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norms(kind):
    norm = make_norm(KEY, kind, 16, epsilon=1e-5, bias=True)
    scale, bias = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    norm.scale[...] = scale
    expected_bias = 0.0
    if kind == "layernorm":
        norm.bias[...] = expected_bias = bias
    x = 3.0 + 2.0 * jax.random.normal(KEY, (5, 16))
    expected = normalised(x, kind) * scale + expected_bias
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_statistics_are_float32_under_bfloat16(kind):
    """A mean of 4096 numbers near 100 would drown in bfloat16."""
    norm = make_norm(KEY, kind, 4096, epsilon=1e-5, bias=False)
    x = (100.0 + jax.random.normal(KEY, (4, 4096))).astype(jnp.bfloat16)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    # One rounding to bfloat16, at the very end: 8 bits of mantissa.
    np.testing.assert_allclose(y, normalised(x, kind), rtol=2**-8, atol=1e-3)


def test_linear_contracts_several_dimensions():
    linear = Linear(KEY, {"heads": 3, "head_dim": 4}, {"embed": 5}, bias=True)
    linear.bias[...] = jnp.arange(5.0)
    x = jax.random.normal(KEY, (2, 7, 3, 4))
    expected = np.asarray(x).reshape(14, 12) @ linear.kernel[...].reshape(12, 5)
    expected = np.asarray(expected).reshape(2, 7, 5) + np.arange(5)
    np.testing.assert_allclose(linear(x), expected, rtol=1e-5, atol=1e-5)


def test_embed_looks_up_and_multiplies():
    embed = Embed(KEY, {"vocab": 9, "embed": 4})
    table = embed.embedding[...]
    ids = jnp.array([[0, 8, 3]])
    np.testing.assert_array_equal(
        embed(ids, jnp.float32), np.asarray(table)[np.asarray(ids)]
    )
    x = jax.random.normal(KEY, (2, 3, 4))
    np.testing.assert_allclose(
        table_logits(x, table), x @ table.T, rtol=1e-5, atol=1e-7
    )
    assert table_logits(x.astype(jnp.bfloat16), table).dtype == jnp.float32


def test_initial_weights_have_the_variance_they_claim():
    weights = fan_in(64, scale=0.5)(KEY, (64, 4096))
    assert float(weights.std()) == pytest.approx(0.5 / 8, rel=0.01)


def test_dropout_keeps_the_mean():
    x = jnp.ones((1000, 100))
    y = dropout(x, rate=0.3, key=KEY)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7)}
    assert float(y.mean()) == pytest.approx(1.0, abs=0.01)
    assert dropout(x, rate=0.3, key=None) is x
    assert dropout(x, rate=0.0, key=KEY) is x
