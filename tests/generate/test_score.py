"""Log-probabilities against sums by hand; each token is scored exactly once."""

import numpy as np
import pytest

from lmjax.generate.score import Scorer, cut_windows


@pytest.fixture(scope="module")
def setup(tiny, random_params):
    model = tiny("llama", max_length=16)
    return model, random_params(model), Scorer(model)


def by_hand(apply, one_text, model, params, window):
    """Return the log-probability of the last `num_scored` tokens, in float64."""
    tokens = np.array(window.tokens)
    padded = np.zeros((1, 16), np.int32)
    padded[0, : len(tokens) - 1] = tokens[:-1]
    logits = np.float64(apply(model)(params, one_text(padded)))[0]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    scored = range(len(tokens) - 1 - window.num_scored, len(tokens) - 1)
    return sum(log_probs[t, tokens[t + 1]] for t in scored)


def test_scores_are_sums_of_log_probabilities(setup, apply, one_text):
    model, params, scorer = setup
    rng = np.random.default_rng(0)
    ids = lambda n: rng.integers(0, 64, n).tolist()
    sizes = [(0, 5), (1, 5), (4, 1), (3, 0), (0, 0), (0, 1), (1, 16), (9, 40), (50, 7)]
    texts = [(ids(c), ids(t)) for c, t in sizes for _ in range(3)]
    found = scorer.log_probs(params, texts)
    for (context, text), (log_prob, count) in zip(texts, found, strict=True):
        windows = list(cut_windows(0, context, text, length=16))
        expected = sum(by_hand(apply, one_text, model, params, w) for w in windows)
        assert count == max(len(text) - (not context), 0)
        assert log_prob == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_one_compilation_for_a_padded_length(setup):
    model, params, _ = setup
    scorer = Scorer(model)
    for num_texts in (1, 17, 40):
        scorer.log_probs(params, [([1], [2] * n) for n in range(num_texts)])
    assert scorer._score._cache_size() == 1
    assert scorer.log_probs(params, []) == []


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8])
def test_windows_score_each_token_once(length):
    for context in range(2 * length + 3):
        for num in range(4 * length + 3):
            tokens = list(range(context + num))
            text = tokens[context:]
            windows = list(cut_windows(0, tokens[:context], text, length=length))
            scored = [
                t for w in windows for t in w.tokens[len(w.tokens) - w.num_scored :]
            ]
            assert scored == (text if context else text[1:])
            for window in windows:
                assert 2 <= len(window.tokens) <= length + 1
                given = window.tokens[0]
                first = window.tokens[-window.num_scored]
                # At least half a window of what came before, where there is so much.
                assert first - given > min(length // 2, first - 1)
