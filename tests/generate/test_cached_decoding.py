"""Decoding with a cache against the full forward pass, for every architecture."""

import jax
import numpy as np
import pytest

from lmjax.generate.decode import Generator
from lmjax.generate.sampling import Sampling

PROMPTS = [[5], [9, 3, 7, 1, 1, 2, 8], [4, 4, 60, 11, 0, 2, 6, 13, 31]]
GREEDY = Sampling(temperature=0.0)


@pytest.fixture
def setup(tiny, random_params, architecture):
    model = tiny(architecture)
    return model, random_params(model)


def test_cached_logits_are_those_of_the_full_pass(setup, apply, one_text):
    model, params = setup
    tokens = np.random.default_rng(0).integers(0, 64, (3, 24)).astype(np.int32)
    full = np.asarray(apply(model)(params, one_text(tokens)))
    lengths = np.array([1, 6, 13])
    decode = jax.jit(model.decode_step)
    prompt = np.where(np.arange(16) < lengths[:, None], tokens[:, :16], 63)
    logits, cache = jax.jit(model.prefill, static_argnames="cache_length")(
        params, prompt, lengths, cache_length=28
    )
    rows = np.arange(3)
    for i in range(11):
        close = {"rtol": 1e-5, "atol": 2e-5}
        np.testing.assert_allclose(logits, full[rows, lengths - 1 + i], **close)
        at = lengths + i
        logits, cache = decode(params, tokens[rows, at], at, cache)


def test_greedy_takes_the_argmax_of_the_full_pass(setup, apply, one_text):
    model, params = setup
    found = Generator(model).continuations(
        params, PROMPTS, max_tokens=8, sampling=GREEDY, eos_id=None
    )
    for prompt, continuation in zip(PROMPTS, found, strict=True):
        row = np.array(prompt + continuation)
        padded = np.zeros((1, 24), np.int32)
        padded[0, : len(row)] = row
        best = np.asarray(apply(model)(params, one_text(padded)))[0].argmax(-1)
        assert continuation == best[len(prompt) - 1 : len(row) - 1].tolist()
