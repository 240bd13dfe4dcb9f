"""Recurrent classifiers and taggers: what their labels depend on."""

import jax
import numpy as np
import pytest

from lmjax import models
from lmjax.config.experiment import parse
from lmjax.errors import UserError
from lmjax.nn.recurrent import layers

LENGTHS = [7, 1, 4, 0]
WIDTH = 24


def batch_of(length=9, seed=1):
    """Return rows that end before others, the last of them all padding."""
    rng = np.random.default_rng(seed)
    positions = np.arange(length)[None].repeat(len(LENGTHS), 0)
    segments = (positions < np.array(LENGTHS)[:, None]).astype(np.int32)
    return {
        "tokens": rng.integers(0, 64, segments.shape).astype(np.int32),
        "token_types": rng.integers(0, 2, segments.shape).astype(np.int32),
        "positions": (positions * segments).astype(np.int32),
        "segments": segments,
    }


@pytest.fixture
def hidden(tiny, random_params):
    """Return a model, its parameters, and its hidden states of a batch."""

    def make(batch, **changes):
        model = tiny("bilstm", **changes)
        params = random_params(model)
        return model, params, np.asarray(jax.jit(model.hidden)(params, batch))

    return make


@pytest.mark.slow
def test_a_tag_sees_the_whole_text_and_no_padding(hidden):
    batch = batch_of()
    _, _, before = hidden(batch)
    padded = {**batch, "tokens": np.where(batch["segments"], batch["tokens"], 5)}
    assert (padded["tokens"] != batch["tokens"]).any()
    real = batch["segments"] > 0
    np.testing.assert_array_equal(hidden(padded)[2][real], before[real])
    changed = {**batch, "tokens": batch["tokens"].copy()}
    changed["tokens"][0, 6] = (changed["tokens"][0, 6] + 1) % 64
    moved = np.abs(hidden(changed)[2] - before)[0].max(-1)
    assert (moved[:7] > 0).all()
    one_way = [hidden(b, bidirectional=False)[2] for b in (batch, changed)]
    assert not (one_way[0] - one_way[1])[0, :6].any()


@pytest.mark.parametrize("summary", ["last", "mean", "max"])
def test_a_summary_is_of_the_text_alone(hidden, summary):
    batch = batch_of()
    model, params, states = hidden(batch, summary=summary)
    found = np.asarray(model.summary(params, states, batch["segments"]))
    assert found.shape == (4, 2 * WIDTH)
    assert np.isfinite(found).all(), "rows of padding, too"
    for row, length in enumerate(LENGTHS[:3]):
        own = states[row, :length]
        expected = {
            "last": np.concatenate([own[-1, :WIDTH], own[0, WIDTH:]]),
            "mean": own.mean(0),
            "max": own.max(0),
        }[summary]
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-6)


def test_the_last_states_are_those_that_the_layers_end_in(hidden):
    batch = batch_of()
    model, params, states = hidden(batch)
    module = model._module(params)
    x = module.embed(batch["tokens"], np.float32)
    x = x + module.token_types(batch["token_types"], np.float32)
    layout = {"positions_BT": batch["positions"], "segments_BT": batch["segments"]}
    _, after = module.recurrent(x, **layout)
    both = np.asarray(after["hidden"])[:, -2:].reshape(4, -1)
    found = model.summary(params, states, batch["segments"])
    np.testing.assert_allclose(found, both, atol=1e-6)


def test_token_types_move_their_tokens_and_are_0_by_default(hidden):
    batch = batch_of()
    zeros = {**batch, "token_types": 0 * batch["token_types"]}
    none = {name: x for name, x in batch.items() if name != "token_types"}
    np.testing.assert_array_equal(hidden(none)[2], hidden(zeros)[2])
    assert np.abs(hidden(batch)[2] - hidden(zeros)[2])[0].max() > 1e-3


def test_dropout_is_applied_once_before_between_and_after_layers(tiny, random_params):
    model, calls = tiny("bilstm", dropout=0.5), []
    params, batch = random_params(model), batch_of()

    def spy(x, *, rate, key):
        calls.append(x.shape[-1])
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "dropout", spy)
        states = model.hidden(params, batch, key=jax.random.key(0))
    assert calls == [32, 2 * WIDTH], "embeddings and between layers"
    same = np.ones_like(states[:1, :2])
    a, b = np.asarray(model.label_logits(params, same, key=jax.random.key(1)))[0]
    assert np.abs(a - b).max() > 1e-3, "the classifier drops what it reads"


def test_a_labeller_generates_no_text_and_has_no_logits(hidden, tiny, random_params):
    model, params, states = hidden(batch_of())
    assert "head" not in model.shapes
    for call in (
        lambda: model.apply(params, batch_of()),
        lambda: model.token_logits(params, states),
        lambda: model.prefill(
            params, np.ones((1, 2), np.int32), np.array([2]), cache_length=4
        ),
    ):
        with pytest.raises(UserError, match=r"config\.model\.num_labels = 5: "):
            call()


LABELLED = {
    "model": {"kind": "recurrent", "dim": 32, "bidirectional": True},
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "jsonl", "path": "x", "length": 16},
    "task": {"kind": "classify"},
}
TEXT = ["task.kind=causal_lm", "data.source=python_stdlib", "data.path="]
WORDS = ["tokenizer.kind=words", "tokenizer.vocab_size=9"]


def test_a_labeller_needs_no_tied_width():
    model = parse(LABELLED, ["model.hidden_dim=8"]).model
    assert model.width == 16
    assert models.build(
        parse(LABELLED, ["model.vocab_size=9", "task.labels=('a','b')"]).model,
        platform="cpu",
    ).shapes["classifier"]["kernel"].shape == (64, 2)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            TEXT,
            ["config.model.bidirectional = True: must be False for config.task.kind"],
        ),
        (
            [*TEXT, "model.bidirectional=false", "model.num_token_types=2"],
            ["config.model.num_token_types = 2: must be 0", "config.task.kind = 'caus"],
        ),
        (
            [*TEXT, "model.bidirectional=false", "model.hidden_dim=8"],
            ["config.model.hidden_dim = 8: must be config.model.dim = 32, unless"],
        ),
        (
            [*TEXT, "model.num_labels=3"],
            ["config.model.num_labels = 3: must be 0", "config.task has: 0"],
        ),
        (
            ["model.summary=first"],
            ["config.model.summary = 'first'", "last, mean, max"],
        ),
        (
            ["task.kind=tag", "task.casing=true"],
            ["config.task.casing = True", "num_token_types of at least 5, not 0"],
        ),
        (
            ["task.kind=tag", *WORDS],
            ["config.tokenizer.split = 'punctuation'", "must be 'white_space'"],
        ),
        (
            ["task.kind=tag", *WORDS, "tokenizer.stop_words=english"],
            ["config.tokenizer.stop_words = 'english'", "needs every word"],
        ),
        (
            ["tokenizer.lowercase=true", "tokenizer.min_count=2"],
            ["config.tokenizer.lowercase = True", "'words'", "min_count = 2"],
        ),
        (["tokenizer.kind=words"], ["config.tokenizer.vocab_size = 0: "]),
        (
            ["init_from=x", "init_embedding_from=y"],
            ["config.init_embedding_from = 'y': must be '' with config.init_from"],
        ),
    ],
)
def test_a_mistake_is_one_line(overrides, parts):
    with pytest.raises(UserError) as error:
        parse(LABELLED, overrides)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)
