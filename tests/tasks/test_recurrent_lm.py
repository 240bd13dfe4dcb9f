"""Recurrent language models in use: trained, generating, scoring, counted."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from lmjax import models, tasks
from lmjax.config.decoding import DecodingConfig
from lmjax.config.experiment import MeshConfig, load, parse
from lmjax.config.optim import OptimConfig
from lmjax.config.text_task import CausalLMConfig
from lmjax.data.tokenizers.plain import Bytes
from lmjax.errors import UserError
from lmjax.generate.sampling import Sampling
from lmjax.generate.score import Scorer
from lmjax.inference.language_model import LanguageModel
from lmjax.parallel import sharding
from lmjax.training import optim, step

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def lm(make_config, tiny, random_params):
    options = {"vocab_size": 258, "max_length": 16}
    model = tiny("lstm", **options)
    return LanguageModel(
        config=make_config("lstm", **options),
        tokenizer=Bytes(bos=True),
        model=model,
        params=random_params(model),
        mesh=sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1]),
        step=1,
    )


def log_probs(lm, tokens):
    logits = np.float64(lm.logits([tokens]))[0]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_the_greedy_continuation_is_that_of_the_whole_text(lm):
    """Beyond `max_length`, too: there are no positions to run out of."""
    prompt = [lm.tokenizer.bos_id, *b"ab"]
    tokens = lm._generator.generate(
        lm.params,
        [prompt],
        max_tokens=20,
        sampling=Sampling(temperature=0.0),
        stop_ids=(),
    )[0]
    whole = [*prompt, *tokens]
    best = np.asarray(lm.logits([whole]))[0].argmax(-1)
    assert len(whole) > lm.model.config.max_length
    assert best[len(prompt) - 1 : -1].tolist() == tokens


def test_generate_and_stream_agree(lm):
    options = {"max_tokens": 9, "seed": 1}
    (text,) = lm.generate(["to be"], **options)
    pieces = lm.stream("to be", temperature=1.0, **options)
    assert "".join(pieces) == text


def test_beams_carry_states_of_their_own(lm):
    """What a search finds is as likely as it says, and more than what is greedy."""
    prompt = [lm.tokenizer.bos_id, *b"to be"]
    ((found,),) = lm._searcher.search(
        lm.params, [prompt], config=DecodingConfig(max_tokens=8), stop_ids=()
    )
    (greedy,) = lm._generator.generate(
        lm.params,
        [prompt],
        max_tokens=8,
        sampling=Sampling(temperature=0.0),
        stop_ids=(),
    )
    texts = [(prompt, found.tokens), (prompt, greedy)]
    (best, _), (first, _) = Scorer(lm.model).log_probs(lm.params, texts)
    assert found.log_prob == pytest.approx(best, rel=1e-5)
    assert best >= first - 1e-5


@pytest.mark.parametrize("length", [1, 16, 17, 90])
def test_a_text_is_scored_to_its_end_whatever_its_length(lm, length):
    text = "".join(np.random.default_rng(length).choice(list("abc "), length))
    tokens = [lm.tokenizer.bos_id, *text.encode()]
    each = log_probs(lm, tokens)[np.arange(length), tokens[1:]]
    (score,) = lm.score([text])
    assert score["num_tokens"] == length
    assert score["log_prob"] == pytest.approx(each.sum(), rel=1e-5)
    (given,) = lm.score([(text[:1], text[1:])])
    assert given["num_tokens"] == length - 1
    assert given["log_prob"] == pytest.approx(each[1:].sum(), rel=1e-5)


def test_texts_of_a_batch_are_scored_independently(lm):
    scorer, rng = Scorer(lm.model), np.random.default_rng(0)
    ids = lambda n: rng.integers(0, 256, n).tolist()
    texts = [(ids(c), ids(t)) for c, t in [(0, 0), (0, 1), (3, 0), (2, 40), (0, 9)] * 5]
    together = scorer.log_probs(lm.params, texts)
    assert scorer._score_with_carry._cache_size() <= 2
    for text, (log_prob, count) in zip(texts, together, strict=True):
        ((alone, expected),) = scorer.log_probs(lm.params, [text])
        assert count == expected == max(len(text[1]) - (not text[0]), 0)
        assert log_prob == pytest.approx(alone, rel=1e-5, abs=1e-6)


def test_texts_have_vectors_as_wide_as_the_hidden_states(lm):
    assert lm.embed(["ab", "c"]).shape == (2, 24)
    assert lm.hidden([[5, 6, 7]]).shape == (1, 3, 24)


def test_flops_are_those_of_the_kernels_and_the_head(tiny):
    model = tiny("gru")
    kernels = 3 * 24 * (32 + 24) + 3 * 24 * (24 + 24)
    batch = {"tokens": np.zeros((1, 8))}
    found = model.flops_per_token(batch)
    assert found == 6 * (kernels + 24 * 64)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_eight_sequences_are_overfitted(tiny, one_text, overfit, cell):
    model = tiny(cell)
    config = OptimConfig(learning_rate=0.02, schedule="constant", weight_decay=0.0)
    optimizer = optim.build(config, axes=model.axes, num_steps=200)
    parts = {"model": model, "optimizer": optimizer}
    options = {"task": tasks.build(CausalLMConfig()), "num_microbatches": 1}
    train = jax.jit(functools.partial(step.train_step, **options, **parts))
    start = jax.jit(functools.partial(step.init_state, **parts))
    tokens = np.random.default_rng(0).integers(0, 64, (8, 13)).astype(np.int32)
    tokens[:, 0] = np.arange(8)
    weights = np.ones((8, 12), np.float32)
    batch = one_text(tokens[:, :-1]) | {"targets": tokens[:, 1:], "weights": weights}
    overfit(train, start(jax.random.key(0)), batch, num_steps=200)


def test_dropout_is_where_zaremba_has_it(tiny, random_params, one_text):
    """Twice and once for each layer: embeddings, between layers, before the head."""
    from lmjax.nn.recurrent import layers

    model, calls = tiny("lstm", dropout=0.5), []
    params = random_params(model)

    def spy(x, *, rate, key):
        calls.append((x.shape[-1], rate, tuple(jax.random.key_data(key).tolist())))
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "dropout", spy)
        model.hidden(params, one_text([[1, 2, 3]]), key=jax.random.key(0))
    assert [width for width, _, _ in calls] == [32, 24, 24]
    assert {rate for _, rate, _ in calls} == {0.5}
    assert len({key for *_, key in calls}) == 3


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"hidden_dim": 24}, "config.model.hidden_dim = 24: must be config.model.dim"),
        ({"variational_dropout": True}, "needs config.model.dropout"),
        ({"num_heads": 4}, "config.model.num_heads: no such field"),
        ({"cell": "gur"}, "did you mean 'gru'"),
    ],
)
def test_a_mistake_is_named(model, text):
    with pytest.raises(UserError) as error:
        sections = {"tokenizer": {"kind": "bytes"}, "data": {"source": "none"}}
        parse({"model": {"kind": "recurrent", "dim": 32, **model}, **sections})
    assert text in str(error.value)


def test_a_hidden_size_that_the_mesh_does_not_divide_is_named(make_config):
    with pytest.raises(UserError, match=r"hidden_dim = 24: must be a multiple of"):
        make_config("lstm", overrides=["mesh.tensor=5"])


def test_tied_embeddings_are_the_default(make_config):
    tied = make_config("lstm", tie_embeddings=True, hidden_dim=0)
    model = models.build(tied.model, platform="cpu")
    assert tied.model.hidden_dim == 32
    assert "embedding" not in model.shapes["head"]


@pytest.mark.parametrize(("size", "millions"), [("small", 4.65), ("medium", 19.8)])
def test_the_models_on_penn_treebank_have_the_published_sizes(size, millions):
    config = load(f"{ROOT}/experiments/rnn/ptb_lstm.py:{size}")
    model = dataclasses.replace(config.model, vocab_size=10_001)
    shapes = models.build(model, platform="cpu").shapes
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count / 1e6 == pytest.approx(millions, rel=0.005)
