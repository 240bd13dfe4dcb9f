"""Weights in few bits: their levels, their bytes, and products with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.matrices import QuantizeConfig
from lmjax.nn import quantized
from lmjax.nn.quantized import Format

FORMATS = [Format("int8"), Format("fp8"), Format("int4", 8), Format("nf4", 8)]
SHAPES = [((32, 12), 1), ((4, 16, 12), 2), ((32, 3, 4), 1)]
by_name = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)


def levels_of(form):
    """Return all levels of a format, and the level of the largest magnitude."""
    if form.name == "int8":
        return np.arange(-127, 128), 127.0
    if form.name == "int4":
        return np.arange(-8, 8), -8.0
    if form.name == "nf4":
        return quantized.NF4, 1.0
    bits = np.arange(256, dtype=np.uint8).view(jnp.float8_e4m3fn).astype(np.float32)
    return np.unique(bits[np.isfinite(bits)]), 448.0


def round_slowly(w, form, num_inputs):
    """Return what a matrix is once quantized, one weight at a time."""
    levels, top = levels_of(form)
    shape = w.shape
    w = w.reshape(-1, int(np.prod(shape[num_inputs:])))
    rounded = np.zeros_like(w)
    group = form.group or len(w)
    for first in range(0, len(w), group):
        for o in range(w.shape[1]):
            part = w[first : first + group, o]
            largest = part[np.abs(part).argmax()]
            scale = largest / top if form.name == "int4" else abs(largest) / top
            scale = np.float16(scale) if form.group else np.float32(scale)
            for i, x in enumerate(part):
                nearest = levels[np.abs(levels - x / np.float64(scale)).argmin()]
                rounded[first + i, o] = nearest * np.float32(scale)
    return rounded.reshape(shape)


@by_name
@pytest.mark.parametrize(("shape", "num_inputs"), SHAPES)
def test_each_weight_is_the_nearest_level(form, shape, num_inputs):
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    codes, scales = quantized.quantize(jnp.asarray(w), num_inputs, form)
    found = quantized.dequantize(codes, scales, num_inputs=num_inputs, form=form)
    expected = round_slowly(w, form, num_inputs)
    # Ties go either way: they are equally near.
    np.testing.assert_allclose(abs(found - w), abs(expected - w), atol=2e-6)
    bits = 8 * codes.nbytes / w.size
    assert bits == (4 if form.group else 8)
    assert scales.size == w.size / (form.group or np.prod(shape[:num_inputs]))


@by_name
def test_zeros_stay_zeros(form):
    codes, scales = quantized.quantize(jnp.zeros((16, 3)), 1, form)
    assert not quantized.dequantize(codes, scales, num_inputs=1, form=form).any()


@by_name
@pytest.mark.parametrize("num_rows", [1, 3, 40])
def test_products_are_those_of_the_levels(form, num_rows):
    rng = np.random.default_rng(0)
    for shape, num_inputs in SHAPES:
        w = jnp.asarray(rng.normal(size=shape), jnp.float32)
        x = jnp.asarray(rng.normal(size=(1, num_rows, *shape[:num_inputs])))
        codes, scales = quantized.quantize(w, num_inputs, form)
        dense = quantized.dequantize(codes, scales, num_inputs=num_inputs, form=form)
        found = quantized.multiply(x, codes, scales, num_inputs=num_inputs, form=form)
        expected = np.tensordot(x, dense, num_inputs)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_rows", [1, 40])
def test_rounded_inputs_are_multiplied_as_integers(num_rows):
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(2, 16, 12)), jnp.float32)
    x = rng.normal(size=(num_rows, 2, 16)).astype(np.float32)
    codes, scales = quantized.quantize(w, 2, FORMATS[0])
    found = quantized.multiply(
        jnp.asarray(x), codes, scales, num_inputs=2, form=FORMATS[0], round_inputs=True
    )
    scale = abs(x).max(axis=(1, 2), keepdims=True) / 127
    levels = np.rint(x / scale).astype(np.int64)
    matrix = np.asarray(codes, np.int64).reshape(12, 32)
    sums = levels.reshape(num_rows, 32) @ matrix.T
    expected = sums * scale[:, 0] * np.asarray(scales)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    aware = quantized.round_inputs(jnp.asarray(x), 2)
    np.testing.assert_allclose(aware, levels * scale, rtol=1e-5, atol=1e-6)


@by_name
def test_the_gradient_passes_straight_through(form):
    w = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)
    codes, scales = quantized.quantize(w, 1, form)
    value, pull = jax.vjp(lambda w: quantized.round_to_nearest(w, 1, form), w)
    dense = quantized.dequantize(codes, scales, num_inputs=1, form=form)
    np.testing.assert_allclose(value, dense, atol=1e-6)
    assert (pull(value)[0] == value).all()


def test_logits_of_a_table_are_those_of_its_levels():
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(20, 16)), jnp.float32)
    codes, scale = quantized.quantize_table(table)
    dense = np.asarray(codes, np.float32) * np.asarray(scale)[:, None]
    assert abs(dense - table).max() <= np.asarray(scale).max() / 2 * 1.0001
    for num_rows in (1, 40):
        x = jnp.asarray(rng.normal(size=(num_rows, 16)), jnp.float32)
        found = quantized.logits(x, codes, scale)
        np.testing.assert_allclose(found, x @ dense.T, rtol=1e-5, atol=1e-5)


def test_a_group_is_at_most_the_last_dimension_of_the_inputs():
    config = QuantizeConfig(weights="int4", group=128)
    assert quantized.choose_format(config, last_input=64) == Format("int4", 64)
    assert quantized.choose_format(config, last_input=512) == Format("int4", 128)
