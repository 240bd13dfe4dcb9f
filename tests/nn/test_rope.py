"""Rotary positions against complex numbers and the published scaling code."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import ConfigError
from lmjax.nn.rope import rope_angles, rotate


def frequencies_of(config, *, length=1):
    """Return the angles that one position more makes, float32 (P,)."""
    ones = jnp.ones((1, 1), jnp.int32)
    cos, sin = rope_angles(ones, config, lengths_BT=length * ones)
    return np.arctan2(sin, cos)[0, 0, 0]


def turned(x, positions, frequencies):
    """Turn pairs as complex numbers, in float64."""
    a, b = np.split(np.asarray(x, np.float64), 2, axis=-1)
    angles = positions[..., None, None] * frequencies.astype(np.float64)
    z = (a + 1j * b) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], axis=-1)


def test_rotation_is_a_complex_product(make_config):
    config = make_config("llama").model
    frequencies = frequencies_of(config)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 9, 4, 8)).astype(np.float32)
    positions = rng.integers(0, 60, (2, 9))
    y = rotate(jnp.asarray(x), rope_angles(jnp.asarray(positions), config))
    np.testing.assert_allclose(y, turned(x, positions, frequencies), atol=2e-5)


def test_products_depend_on_the_distance_alone(make_config):
    config = make_config("llama").model
    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)

    def product(at_q, at_k):
        a, b = (
            rotate(jnp.asarray(x), rope_angles(jnp.full((1, 1), at), config))
            for x, at in ((q, at_q), (k, at_k))
        )
        return float(jnp.sum(a * b))

    assert product(5, 2) == pytest.approx(product(43, 40), abs=1e-5)
    assert product(5, 2) != pytest.approx(product(5, 3), abs=1e-2)


def published_llama3(frequencies, *, factor, low, high, original_length):
    """Scale as Llama 3.1's reference code does: by wavelength, in three cases."""
    low_wavelength, high_wavelength = original_length / low, original_length / high
    scaled = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < high_wavelength:
            scaled.append(frequency)
        elif wavelength > low_wavelength:
            scaled.append(frequency / factor)
        else:
            smooth = (original_length / wavelength - low) / (high - low)
            scaled.append((1 - smooth) * frequency / factor + smooth * frequency)
    return np.array(scaled)


@pytest.mark.parametrize(
    ("theta", "factor", "low", "high", "original_length", "head_dim"),
    [
        (500_000.0, 8.0, 1.0, 4.0, 8192, 128),  # Llama 3.1
        (500_000.0, 32.0, 1.0, 4.0, 8192, 64),  # Llama 3.2
        (10_000.0, 3.0, 0.5, 7.0, 512, 96),
        (100.0, 2.0, 1.0, 3.5, 100, 32),
    ],
)
def test_llama3_scaling_is_the_published_one(
    make_config, theta, factor, low, high, original_length, head_dim
):
    config = make_config(
        "llama",
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling="llama3",
        rope_factor=factor,
        rope_low_frequency_factor=low,
        rope_high_frequency_factor=high,
        rope_original_length=original_length,
    ).model
    plain = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    expected = published_llama3(
        plain, factor=factor, low=low, high=high, original_length=original_length
    )
    assert len(set(np.round(expected / plain, 6))) > 2  # all three cases occur
    np.testing.assert_allclose(frequencies_of(config), expected, rtol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_linear_scaling_shrinks_positions(make_config, factor):
    config = make_config("llama", rope_scaling="linear", rope_factor=factor).model
    plain = frequencies_of(make_config("llama").model)
    np.testing.assert_allclose(frequencies_of(config), plain / factor, rtol=1e-6)


def test_the_rest_of_a_head_is_not_rotated(make_config):
    config = make_config("llama", rope_fraction=0.5).model
    x = jnp.arange(8.0).reshape(1, 1, 1, 8)
    angles = rope_angles(jnp.full((1, 1), 3), config)
    y = np.asarray(rotate(x, angles))
    np.testing.assert_array_equal(y[..., 4:], x[..., 4:])
    np.testing.assert_allclose(
        y[..., :4], turned(x[..., :4], np.full((1, 1), 3), np.array([1.0, 0.01]))
    )


def test_dynamic_scaling_divides_the_lowest_frequency_by_the_growth(make_config):
    scaling = {"rope_scaling": "dynamic", "rope_factor": 3.0}
    config = make_config("llama", **scaling, rope_original_length=10).model
    plain = frequencies_of(make_config("llama").model)
    np.testing.assert_array_equal(frequencies_of(config, length=10), plain)
    # At 4 times the length: 3 * (4 - 1) + 1.
    longer = frequencies_of(config, length=40)
    np.testing.assert_allclose(longer[[0, -1]], plain[[0, -1]] / [1, 10], rtol=1e-5)


BAD = [
    ({"rope_scaling": "longrope"}, "rope_short_factors = .*must be 4 numbers"),
    (
        {"rope_scaling": "longrope", "rope_short_factors": (1.0,) * 4},
        "rope_long_factors",
    ),
    ({"rope_scaling": "yarn", "rope_beta_fast": 0.5}, "rope_beta_slow = 1.0"),
    ({"rope_beta_fast": 8.0}, "rope_beta_fast = 8.0: needs .*'yarn', not 'none'"),
    ({"rope_attention_factor": 2.0}, "rope_attention_factor"),
    ({"rope_fraction": 0.4}, "rope_fraction = 0.4"),
    ({"rope_fraction": 0.25, "rope_scaling": "dynamic"}, "'dynamic'"),
    ({"rope_local_theta": 5.0}, "rope_local_theta = 5.0: needs config.model.window"),
    ({"position": "learned", "rope_fraction": 0.5}, "rope_fraction = 0.5: needs"),
    ({"position": "learned", "rope_scaling": "yarn"}, "rope_scaling = 'yarn'"),
    ({"rope_factor": 0.0}, "rope_factor = 0.0"),
]


@pytest.mark.parametrize(("leaves", "message"), BAD, ids=str)
def test_leaves_that_do_not_fit_are_named(make_config, leaves, message):
    with pytest.raises(ConfigError, match=message):
        make_config("llama", **leaves)
