"""Quantized models: their bytes, what they compute, and the verbs that read them."""

import dataclasses

import jax
import numpy as np
import pytest

from lmjax.compress.choose import choose_steps
from lmjax.compress.step import change_model
from lmjax.config.matrices import QuantizeConfig
from lmjax.errors import ConfigError
from lmjax.nn import quantized

FORMATS = ["int8", "fp8", "int4:16", "nf4:16"]


def compress(lm, **flags):
    for step in choose_steps(**flags):
        lm = step.apply(lm)
    return lm


def in_floats(lm):
    params, config = quantized.dequantize_params(lm.params, lm.config.model)
    return change_model(lm, params, config)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_a_model_computes_what_its_levels_say(make_lm, architecture, format):
    """Whatever the format, the layers of its blocks and the tables are rounded."""
    lm = compress(make_lm(architecture), quantize=format)
    dense = in_floats(lm)
    tokens = np.arange(60).reshape(2, 30)
    more = {"source": tokens[:, ::-1]} if architecture == "t5" else {}
    found, expected = (one.logits(tokens, **more) for one in (lm, dense))
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-3)
    bits = 8 if format in ("int8", "fp8") else 4
    for name, leaf in quantized.named_leaves(lm.params).items():
        is_code = name.endswith("codes")
        assert is_code == (leaf.dtype in (np.int8, np.uint8, "float8_e4m3fn")), name
    before, after = (
        sum(x.nbytes for n, x in quantized.named_leaves(one.params).items() if test(n))
        for one, test in (
            (make_lm(architecture), lambda n: ".blocks." in n and "kernel" in n),
            (lm, lambda n: n.endswith(".codes")),
        )
    )
    assert after * 32 == before * bits


def test_rounded_activations_are_close(make_lm):
    lm = make_lm()
    rounded = compress(lm, quantize="int8", activations="int8", embeddings="float")
    tokens = np.arange(30)[None]
    exact, close = (np.asarray(one.logits(tokens)) for one in (lm, rounded))
    assert 0 < np.sqrt(np.square(exact - close).mean()) < 0.1 * exact.std()
    assert rounded.params["embed"].keys() == {"embedding"}


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_what_was_trained_to_be_quantized_computes_the_same_once_it_is(
    make_lm, weights
):
    rounded = "int8" if weights == "int8" else ""
    group = 16 if weights == "int4" else 0
    aware = {"weights": weights, "group": group, "activations": rounded}
    config = QuantizeConfig(**aware, embeddings="int8", aware=True)
    lm = make_lm()
    lm = change_model(
        lm, lm.params, dataclasses.replace(lm.config.model, quantize=config)
    )
    flags = {"activations": "int8"} if rounded else {}
    text = f"{weights}:{group}" if group else weights
    quantized_lm = compress(lm, quantize=text, **flags)
    tokens = np.arange(30)[None]
    found, expected = (np.asarray(one.logits(tokens)) for one in (lm, quantized_lm))
    difference = np.sqrt(np.square(found - expected).mean())
    assert difference < 1e-3 * expected.std()
    batch = lm._batch(tokens, None, None, None, None)
    loss = lambda params: lm.model.apply(params, batch).var()
    grads = jax.jit(jax.grad(loss))(lm.params)
    assert all(abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_recurrent_networks_are_refused(make_lm):
    with pytest.raises(ConfigError, match=r"config.model.kind = 'recurrent'"):
        compress(make_lm("lstm"), quantize="int8")
