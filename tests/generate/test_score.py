"""Log-probabilities against sums by hand; each token is scored exactly once."""

import jax
import numpy as np
import pytest

from lmjax.config.experiment import MeshConfig
from lmjax.errors import UserError
from lmjax.generate import score as score_module
from lmjax.generate.prompts import pad_sources
from lmjax.generate.score import (
    Scorer,
    Windows,
    choose_windows,
    cut_windows,
    padded_length,
)
from lmjax.parallel.sharding import fill_shards, make_mesh


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
        windows = list(cut_windows(0, context, text, Windows(16, 8)))
        expected = sum(by_hand(apply, one_text, model, params, w) for w in windows)
        assert count == max(len(text) - (not context), 0)
        assert log_prob == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_batches_have_few_shapes_and_little_padding(setup, monkeypatch):
    model, params, _ = setup
    scorer = Scorer(model)
    for num_texts in (2, 17, 40):
        scorer.log_probs(params, [([1], [2] * (1 + n % 9)) for n in range(num_texts)])
    assert scorer._score._cache_size() == 4  # of 1, 2, 8 and 16 rows
    assert scorer.log_probs(params, []) == []
    sizes = {1: 32, 33: 48, 48: 48, 49: 64, 65: 96, 129: 192, 653: 768, 1025: 1536}
    assert {n: padded_length(n, limit=2000) for n in sizes} == sizes
    assert padded_length(1537, limit=2000) == 2000
    assert scorer._max_rows(16) == 16
    monkeypatch.setattr(score_module, "MAX_LOGITS", 16 * 64 * 5)
    assert scorer._max_rows(16) == 4
    assert scorer._max_rows(4096) == 1


def test_the_scores_of_tokens_are_those_of_the_whole(setup):
    _, params, scorer = setup
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 64, 40).tolist()
    texts = [(ids[:9], ids[9:]), ([], ids), (ids[:1], [])]
    for (context, text), found in zip(
        texts, scorer.score_tokens(params, texts), strict=True
    ):
        count = max(len(text) - (not context), 0)
        assert len(found.log_probs) == len(found.is_greedy) == count
        for i in range(count):  # one at a time, through windows as the whole
            (one,) = scorer.log_probs(
                params, [(context, text[: i + 1 + (not context)])]
            )
            assert found.log_probs[: i + 1].sum() == pytest.approx(one[0], rel=1e-4)


def test_a_token_is_greedy_if_no_other_is_more_likely(setup, apply, one_text):
    model, params, scorer = setup
    tokens = [3]
    for _ in range(6):  # as greedy decoding continues
        padded = np.zeros((1, 16), np.int32)
        padded[0, : len(tokens)] = tokens
        logits = np.asarray(apply(model)(params, one_text(padded)))
        tokens.append(int(logits[0, len(tokens) - 1].argmax()))
    (found,) = scorer.score_tokens(params, [(tokens[:1], tokens[1:])])
    assert found.is_greedy.all()
    changed = [*tokens[1:4], (tokens[4] + 1) % 64]
    (found,) = scorer.score_tokens(params, [(tokens[:1], changed)])
    assert found.is_greedy.tolist() == [True, True, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["t5", "bart", "bahdanau", "luong"])
def test_with_a_source_scores_match_decoding_token_by_token(
    tiny, random_params, architecture
):
    model = tiny(architecture)
    params, start = random_params(model), model.config.start_id
    prefill = jax.jit(model.prefill, static_argnames="cache_length")
    step = jax.jit(model.decode_step)
    rng = np.random.default_rng(0)
    ids = lambda n: rng.integers(0, 64, n).tolist()
    sizes = [(3, 5), (1, 1), (33, 40), (60, 2), (7, 0), (9, 64), (3, 4)]
    if model.config.longest_text > 64:  # there are no positions to run out of
        sizes.append((64, 90))
    sources, texts = zip(*[(ids(s), ids(t)) for s, t in sizes], strict=True)
    pairs = [([start], text) for text in texts]
    found = Scorer(model).log_probs(params, pairs, sources=sources)
    for source, text, (log_prob, count) in zip(sources, texts, found, strict=True):
        read = pad_sources([source], shape=(1, 64))
        before = np.full((1, 1), start), np.ones(1, int)
        logits, cache = prefill(params, *before, cache_length=128, source=read)
        total = 0.0
        for i, token in enumerate(text):
            total += np.asarray(jax.nn.log_softmax(logits))[0, token]
            logits, cache = step(params, np.array([token]), np.array([i + 1]), cache)
        assert count == len(text)
        assert log_prob == pytest.approx(total, rel=1e-5)


def test_sources_share_compilations(tiny, random_params):
    model = tiny("t5")
    scorer = Scorer(model)
    for num in (1, 17):
        pairs = [([1], [2] * n) for n in range(num)]
        sources = [[5] * (n + 1) for n in range(num)]
        scorer.log_probs(random_params(model), pairs, sources=sources)
    assert scorer._score._cache_size() == 1
    # Relative positions have no end.
    scorer.log_probs(random_params(model), [([1], [2])], sources=[[5] * 100])
    with pytest.raises(UserError, match="context: a source of 100 tokens"):
        model = tiny("bart")
        scorer = Scorer(model)
        scorer.log_probs(random_params(model), [([1], [2])], sources=[[5] * 100])


@pytest.mark.parametrize(
    ("length", "stride"), [(1, 1), (2, 1), (3, 2), (7, 4), (8, 4), (8, 1), (8, 8)]
)
def test_windows_score_each_token_once(length, stride):
    for context in range(2 * length + 3):
        for num in range(4 * length + 3):
            tokens = list(range(context + num))
            text = tokens[context:]
            windows = [*cut_windows(0, tokens[:context], text, Windows(length, stride))]
            scored = [
                t for w in windows for t in w.tokens[len(w.tokens) - w.num_scored :]
            ]
            assert scored == (text if context else text[1:])
            for window in windows:
                assert 2 <= len(window.tokens) <= length + 1
                given = window.tokens[0]
                first = window.tokens[-window.num_scored]
                # So much of what came before, where there is so much.
                assert first - given > min(length - stride, first - 1)


def test_a_long_text_is_read_in_windows_of_a_stated_length(setup, apply, one_text):
    """As in transformers' page on perplexity: in turn, the last tokens of a window."""
    model, params, scorer = setup
    text = np.random.default_rng(0).integers(0, 64, 61).tolist()
    (score,) = scorer.score_tokens(params, [([], text)], windows=Windows(12, 5))
    stops = [13, *range(18, 61, 5), 61]
    for before, stop in zip([1, *stops], stops, strict=False):
        given = text[max(stop - 13, 0) if stop < 61 else before - 1 - 7 : stop]
        window = score_module.Window(0, given, stop - before)
        expected = by_hand(apply, one_text, model, params, window)
        found = score.log_probs[before - 1 : stop - 1].sum()
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [
        (17, None, "window = 17: must be between 1 and 16 tokens"),
        (8, 9, "stride = 9: must be between 1 and 8, the window"),
        (None, 0, "stride = 0: must be between 1 and 16, the window"),
    ],
)
def test_windows_that_cannot_be_are_refused(window, stride, message):
    with pytest.raises(UserError, match=message):
        choose_windows(window, stride, longest=16)
    assert choose_windows(None, None, longest=16) is None
    assert choose_windows(9, None, longest=16) == Windows(9, 5)


def test_no_device_computes_the_rows_of_others(setup):
    """On a mesh rows of padding fill the batch; the scores are those of one device."""
    model, params, scorer = setup
    texts = [([1], [2 + n, 3, 5]) for n in range(3)]
    expected = scorer.log_probs(params, texts)
    mesh = make_mesh(MeshConfig(), jax.devices()[:6])
    with jax.set_mesh(mesh):
        assert [fill_shards(n) for n in (1, 6, 8)] == [6, 6, 12]
        ((shape, _),) = scorer._groups(texts, None, None)
        found = Scorer(model).log_probs(params, texts)
    assert shape[0] == 6
    np.testing.assert_allclose(found, expected, rtol=1e-5)
