"""Decoding token by token gives the logits of the whole text read at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import models

LENGTHS = np.array([6, 1, 3, 8])
NUM_STEPS = 5


@pytest.fixture(scope="module")
def steps():
    """Return `prefill` and `decode_step`, jitted once for each model."""

    @functools.cache
    def make(model):
        prefill = jax.jit(model.prefill, static_argnames="cache_length")
        return prefill, jax.jit(model.decode_step)

    return make


def assert_equal(cached, whole):
    for row, length in enumerate(LENGTHS):
        expected = whole[row, length - 1 : length - 1 + NUM_STEPS]
        np.testing.assert_allclose(cached[row], expected, rtol=1e-5, atol=2e-5)


def cached_logits(model, steps, params, tokens):
    """Return logits (B, NUM_STEPS, V) after prompts of LENGTHS, one token at a time."""
    prefill, decode_step = steps(model)
    rows = np.arange(len(LENGTHS))
    prompts = np.where(np.arange(8) < LENGTHS[:, None], tokens[:, :8], 0)
    logits, state = prefill(params, prompts, LENGTHS, cache_length=16)
    seen = [logits]
    for i in range(NUM_STEPS - 1):
        at = LENGTHS + i
        logits, state = decode_step(params, tokens[rows, at], at, state)
        seen.append(logits)
    return jnp.stack(seen, axis=1)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 64, (len(LENGTHS), 13))


@pytest.mark.parametrize("scan_layers", [True, False])
def test_an_int8_cache_is_near_and_smaller(
    make_config, tiny, random_params, apply, one_text, steps, tokens, scan_layers
):
    config = make_config("llama", scan_layers=scan_layers, quantize={"cache": "int8"})
    model = models.build(config.model, platform="cpu")
    params = random_params(tiny("llama"))
    whole = np.asarray(apply(tiny("llama"))(params, one_text(tokens)))
    cached = cached_logits(model, steps, params, tokens)
    errors = [
        np.abs(cached[row] - whole[row, length - 1 : length - 1 + NUM_STEPS]).max()
        for row, length in enumerate(LENGTHS)
    ]
    assert 1e-5 < max(errors) < 0.05 * np.abs(whole).max()
    prefill, _ = steps(model)
    _, state = prefill(params, tokens[:, :8], LENGTHS, cache_length=16)
    assert state.own.k.values_LRSKH.dtype == jnp.int8
    assert state.own.k.scales_LRSK.shape == state.own.k.values_LRSKH.shape[:-1]


@pytest.mark.parametrize("scan_layers", [True, False])
def test_cached_is_whole(
    tiny, random_params, apply, one_text, steps, tokens, architecture, scan_layers
):
    model = tiny(architecture, scan_layers=scan_layers)
    params = random_params(tiny(architecture))
    whole = np.asarray(apply(tiny(architecture))(params, one_text(tokens)))
    assert_equal(cached_logits(model, steps, params, tokens), whole)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_recurrent_decoding_is_whole(
    tiny, random_params, apply, one_text, steps, tokens, cell
):
    model = tiny(cell)
    params = random_params(model)
    whole = np.asarray(apply(model)(params, one_text(tokens)))
    assert_equal(cached_logits(model, steps, params, tokens), whole)


def test_a_cache_is_bfloat16_in_a_bfloat16_model(tiny, random_params, steps, tokens):
    exact, rounded = tiny("gemma"), tiny("gemma", dtype="bfloat16")
    params = random_params(exact)
    _, state = jax.eval_shape(
        functools.partial(rounded.prefill, cache_length=16), params, tokens, LENGTHS
    )
    stored = jax.tree.leaves((state.own.k, state.own.v))
    assert [leaf.dtype for leaf in stored] == [jnp.bfloat16] * 2
    logits = cached_logits(rounded, steps, params, tokens)
    expected = cached_logits(exact, steps, params, tokens)
    error = np.abs(np.asarray(logits - expected))
    assert error.mean() < 0.03 * np.abs(expected).mean()
