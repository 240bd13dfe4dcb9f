"""GPTQ, AWQ and SmoothQuant beside slow and plain versions of them in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.compress import awq, gptq
from lmjax.compress.calibrate import Calibration, LinearInputs
from lmjax.compress.choose import choose_steps
from lmjax.compress.fold import find_folds, fold, get, readers_of
from lmjax.nn import quantized
from lmjax.nn.quantized import Format

INT4, INT8 = Format("int4", 8), Format("int8")


@pytest.fixture(scope="module")
def layer():
    """Return inputs that are correlated, of which one is always 0, and a matrix."""
    rng = np.random.default_rng(0)
    x_NI = rng.normal(size=(200, 32)) @ rng.normal(size=(32, 32))
    x_NI *= np.exp(rng.normal(size=32))
    x_NI[:, 5] = 0.0
    return x_NI.astype(np.float32), rng.normal(size=(32, 12)).astype(np.float32)


def measured(x_NI):
    x = x_NI.astype(np.float64)
    sums = np.abs(x).sum(0), np.square(x).sum(0), np.abs(x).max(0), x.T @ x
    return LinearInputs(
        num_tokens=jnp.float32(len(x)),
        **dict(
            zip(
                ("absolute_LI", "squares_LI", "largest_LI", "gram_LII"),
                (jnp.asarray(s, jnp.float32) for s in sums),
                strict=True,
            )
        ),
    )


def round_weight(x, scale, form):
    low, high = (-8, 7) if form.name == "int4" else (-127, 127)
    return np.clip(np.rint(x / scale), low, high) * scale


def scale_of(part, form):
    """Return the scale of each output of a group."""
    if form.name == "int8":
        return np.abs(part).max(0) / 127
    index = np.abs(part).argmax(0)
    scale = part[index, np.arange(part.shape[1])] / -8
    return scale.astype(np.float16).astype(np.float64)


def slow_gptq(x_NI, w, form):
    x, w = x_NI.astype(np.float64), w.astype(np.float64).copy()
    gram = x.T @ x
    dead = np.diag(gram) == 0
    gram += np.diag(dead + gptq.DAMPING * np.diag(gram).mean())
    upper = np.linalg.cholesky(np.linalg.inv(gram)).T
    w[dead] = 0
    scale, rounded = scale_of(w, form), np.zeros_like(w)
    for i in range(len(w)):
        if form.group and i % form.group == 0:
            scale = scale_of(w[i : i + form.group], form)
        rounded[i] = round_weight(w[i], scale, form)
        error = (w[i] - rounded[i]) / upper[i, i]
        for j in range(i + 1, len(w)):
            w[j] -= upper[i, j] * error
    return rounded


@pytest.mark.slow
@pytest.mark.parametrize("form", [INT4, INT8], ids=["int4", "int8"])
def test_gptq_is_the_slow_one_and_better_than_the_nearest(layer, form):
    x_NI, w = layer
    round_gptq = jax.jit(gptq.round_gptq, static_argnums=(1, 2))
    found = quantized.dequantize(
        *round_gptq(jnp.asarray(w), 1, form, measured(x_NI)), num_inputs=1, form=form
    )
    np.testing.assert_allclose(found, slow_gptq(x_NI, w, form), rtol=1e-5, atol=1e-5)
    nearest = quantized.round_to_nearest(jnp.asarray(w), 1, form)
    loss = lambda other: np.square(x_NI @ (np.asarray(other) - w)).sum()
    assert loss(found) < 0.8 * loss(nearest)


def slow_awq(x_NI, w, form):
    x, w = x_NI.astype(np.float64), w.astype(np.float64)
    mean = np.abs(x).mean(0)
    best = np.inf, None
    for k in range(awq.NUM_EXPONENTS):
        scale = np.maximum(mean, 1e-4) ** (k / awq.NUM_EXPONENTS)
        scale /= np.sqrt(scale.max() * scale.min())
        scaled, rounded = w * scale[:, None], np.zeros_like(w)
        for first in range(0, len(w), form.group):
            group = slice(first, first + form.group)
            part = scaled[group]
            rounded[group] = round_weight(part, scale_of(part, form), form)
        loss = np.square(x @ (rounded / scale[:, None] - w)).sum()
        best = min(best, (loss, k, scale), key=lambda found: found[0])
    return best


def test_awq_is_the_slow_one_and_better_than_the_nearest(layer):
    x_NI, w = layer
    inputs = measured(x_NI)
    mean_I = inputs.absolute_LI / inputs.num_tokens
    found = awq.choose_awq(jnp.asarray(w), mean_I, inputs.gram_LII, INT4)
    loss, exponent, expected = slow_awq(x_NI, w, INT4)
    assert exponent > 0
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    nearest = quantized.round_to_nearest(jnp.asarray(w), 1, INT4)
    assert loss < np.square(x_NI @ (np.asarray(nearest) - w)).sum()


def test_smoothquant_is_the_slow_one(layer):
    x_NI, w = layer
    found = awq.choose_smooth(jnp.asarray(w), measured(x_NI).largest_LI)
    for i in range(len(w)):
        largest = max(np.abs(x_NI[:, i]).max(), 1e-5)
        expected = largest**0.5 / np.abs(w[i]).max() ** 0.5
        np.testing.assert_allclose(found[i], expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt2", "bert", "t5"])
def test_folded_scales_change_nothing(make_lm, architecture):
    """Whatever writes what layers read: norms of each kind, values, gates."""
    lm = make_lm(architecture)
    config = lm.config.model
    rng, params, num_folds = np.random.default_rng(0), dict(lm.params), 0
    for part in [name for name in ("encoder", "decoder") if name in params]:
        blocks = params[part]["blocks"]
        for one in find_folds(config):
            names = readers_of(one, blocks)
            num_folds += bool(names)
            for name in names[:1]:
                kernel = get(blocks, name)["kernel"]
                num_inputs = 2 if name.endswith(".out") else 1
                size = np.prod(kernel.shape[1 : 1 + num_inputs])
                scale_LI = np.exp(rng.normal(size=(len(kernel), size)))
                scale_LI = jnp.asarray(scale_LI, jnp.float32)
                blocks = fold(blocks, one, scale_LI, config=config)
        params[part] = {**params[part], "blocks": blocks}
    least = {"llama": 3, "gemma": 3, "gpt2": 3, "bert": 1, "t5": 10}
    assert num_folds == least[architecture]
    tokens = np.arange(40).reshape(2, 20)
    more = {"source": tokens[:, ::-1]} if architecture == "t5" else {}
    expected = lm.logits(tokens, **more)
    object.__setattr__(lm, "params", params)
    found = lm.logits(tokens, **more)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_all_layers_are_rounded_at_once(make_lm, text):
    """A layer of a stack is rounded as it is by itself."""
    lm = make_lm("llama")
    calibration = {"calibrate": text, "num_windows": 4}
    (step,) = choose_steps(quantize="int4:8", method="gptq", **calibration)
    found = step.apply(lm).params["decoder"]["blocks"]["attention"]["out"]
    inputs = Calibration(file=text, num_windows=4).measure(lm, gram=True)
    one = inputs["decoder.blocks.attention.out"]
    one = dataclasses.replace(one, num_tokens=jnp.full(2, one.num_tokens))
    of_layer = jax.tree.map(lambda x: x[1], one)
    kernel = lm.params["decoder"]["blocks"]["attention"]["out"]["kernel"][1]
    round_gptq = jax.jit(gptq.round_gptq, static_argnums=(1, 2))
    codes, scales = round_gptq(kernel, 2, Format("int4", 8), of_layer)
    assert (codes == found["codes"][1]).all()
    assert (scales == found["scales"][1]).all()
