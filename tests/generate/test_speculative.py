"""Speculative decoding writes what the model alone would write."""

import jax
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.generate.decode import Generator
from lmjax.generate.sampling import Sampling
from lmjax.generate.speculative import SpeculativeGenerator


@pytest.fixture(scope="module")
def pair(tiny, random_params):
    """Return a model and a worse one of the same family, both with parameters."""
    model, draft = tiny("llama"), tiny("llama", num_layers=1)
    params = random_params(model)
    cut = lambda x: x[:1]
    own = {**params, "decoder": dict(params["decoder"])}
    own["decoder"]["blocks"] = jax.tree.map(cut, params["decoder"]["blocks"])
    return Generator(model), params, Generator(draft), own


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"repetition_penalty": 1.3, "no_repeat_ngram": 2, "min_tokens": 9}],
)
@pytest.mark.parametrize("num_draft", [1, 4])
def test_greedy_texts_are_those_of_the_model(pair, num_draft, options):
    target, params, draft, draft_params = pair
    both = SpeculativeGenerator(target, draft, num_draft)
    sampling = Sampling(temperature=0.0, **options)
    for prompt in ([3, 1, 4], [9], [2, 6, 5, 3, 5]):
        common = {"max_tokens": 21, "sampling": sampling, "stop_ids": [7, 11]}
        (expected,) = target.generate(params, [prompt], **common)
        parts = list(both.stream(params, draft_params, prompt, **common))
        assert [t for part in parts for t in part] == expected


@pytest.mark.slow
def test_samples_have_the_distribution_of_the_model(pair):
    """Of the second and third tokens together, in many texts.

    The first is drawn by the model, so that the second is the first to be drafted.
    """
    target, params, draft, draft_params = pair
    both = SpeculativeGenerator(target, draft, 3)
    sampling = Sampling(temperature=0.7, top_k=4)
    common = {"max_tokens": 3, "sampling": sampling, "stop_ids": ()}
    num = 600
    counts = [{}, {}]
    for seed in range(num):
        parts = both.stream(params, draft_params, [3, 1, 4], **common, seed=seed)
        text = tuple(t for part in parts for t in part)
        counts[0][text] = counts[0].get(text, 0) + 1
    for text in target.generate(params, [[3, 1, 4]] * num, **common, seed=1 << 20):
        counts[1][tuple(text)] = counts[1].get(tuple(text), 0) + 1
    texts = sorted({*counts[0], *counts[1]})
    a, b = (np.array([c.get(text, 0) for text in texts]) for c in counts)
    # Two samples of one distribution: chi squared is about the number of texts.
    statistic = (np.square(a - b) / (a + b)).sum()
    freedom = len(texts) - 1
    assert freedom > 4 and statistic < freedom + 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("architecture", "num_draft", "message"),
    [("gru", 4, "config.model.kind = 'recurrent'"), ("llama", 0, "num_draft = 0")],
)
def test_user_errors(tiny, architecture, num_draft, message):
    target = Generator(tiny("llama"))
    with pytest.raises(UserError, match=message):
        SpeculativeGenerator(target, Generator(tiny(architecture)), num_draft)
