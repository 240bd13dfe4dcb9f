"""Beam search against exhaustive search, greedy search, and by its own numbers."""

import dataclasses
import functools
import itertools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.decoding import DecodingConfig, choose_decoding
from lmjax.config.experiment import MeshConfig
from lmjax.errors import UserError
from lmjax.generate.beam import BeamSearch
from lmjax.generate.decode import Generator
from lmjax.generate.sampling import Sampling
from lmjax.generate.score import Scorer
from lmjax.nn.decode_state import take_beams
from lmjax.parallel import sharding

PROMPTS = [[3, 1, 0, 1, 2], [2], [2, 3, 1]]
SOURCES = [[5, 6, 7], [8] * 20, [9, 10]]
EOS = 0
CAUSAL = ("gpt2", "gemma", "gru", "lstm")
READERS = ("t5", "bart", "bahdanau", "luong")


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    model: object
    params: object
    generator: Generator
    search: BeamSearch

    def find(self, prompts=PROMPTS, *, sources=None, stop_ids=(EOS,), **options):
        return self.search.search(
            self.params,
            prompts,
            config=DecodingConfig(**{"max_tokens": 6, **options}),
            stop_ids=stop_ids,
            sources=sources,
        )

    def greedy(self, prompts=PROMPTS, *, max_tokens=6, **options):
        return self.generator.generate(
            self.params,
            prompts,
            max_tokens=max_tokens,
            **{"stop_ids": (EOS,), "sampling": Sampling(temperature=0.0), **options},
        )


@pytest.fixture(scope="module")
def setup(tiny, random_params):
    @functools.cache
    def make(architecture="llama", **changes):
        model = tiny(architecture, **changes)
        generator = Generator(model)
        search = BeamSearch(generator)
        return Setup(model, random_params(model), generator, search)

    return make


def every_text(vocab_size, max_tokens):
    """Yield each sequence that ends in EOS, or has all the tokens it may."""
    others = [i for i in range(vocab_size) if i != EOS]
    for length in range(max_tokens):
        for text in itertools.product(others, repeat=length):
            yield [*text, EOS]
    for text in itertools.product(others, repeat=max_tokens):
        yield list(text)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.5])
def test_a_beam_that_holds_everything_is_an_exhaustive_search(setup, length_penalty):
    here = setup(vocab_size=4)
    texts = list(every_text(4, 4))
    found = here.find(
        max_tokens=4,
        num_beams=len(texts),
        num_return=len(texts),
        length_penalty=length_penalty,
    )
    for prompt, row in zip(PROMPTS, found, strict=True):
        scores = Scorer(here.model).log_probs(here.params, [(prompt, t) for t in texts])
        expected = sorted(
            (log_prob / length**length_penalty, log_prob, text)
            for (log_prob, length), text in zip(scores, texts, strict=True)
        )[::-1]
        assert len(row) == len(expected)
        for hypothesis, (score, log_prob, text) in zip(row, expected, strict=True):
            assert hypothesis.tokens == [t for t in text if t != EOS]
            assert hypothesis.log_prob == pytest.approx(log_prob, rel=1e-5)
            assert hypothesis.score == pytest.approx(score, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"early_finish": True}, {"length_penalty": 0.0}])
def test_one_beam_is_greedy(setup, options):
    here = setup()
    for eos in (EOS, here.greedy(stop_ids=())[0][2]):
        found = here.find(num_beams=1, max_tokens=12, stop_ids=(eos,), **options)
        expected = here.greedy(max_tokens=12, stop_ids=(eos,))
        assert [row[0].tokens for row in found] == expected


@pytest.mark.slow
@pytest.mark.parametrize("architecture", READERS)
def test_one_beam_is_greedy_given_sources(setup, architecture):
    here = setup(architecture)
    prompts = [[here.model.config.start_id]] * 3
    options = {"max_tokens": 12, "sources": SOURCES}
    first = here.greedy(prompts, stop_ids=(), **options)[0]
    for eos in (EOS, first[2]):
        found = here.find(prompts, num_beams=1, stop_ids=(eos,), **options)
        expected = here.greedy(prompts, stop_ids=(eos,), **options)
        assert [row[0].tokens for row in found] == expected


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [*CAUSAL, *READERS])
def test_the_log_probability_is_that_of_the_text(setup, architecture):
    here = setup(architecture)
    sources = SOURCES
    more, prompts = {}, PROMPTS
    if here.model.config.is_encoder_decoder:
        more, prompts = {"sources": sources}, [[here.model.config.start_id]] * 3
    eos = here.greedy(prompts, stop_ids=(), **more)[0][1]
    options = {"num_beams": 4, "num_return": 4, "stop_ids": (eos,), **more}
    found = here.find(prompts, max_tokens=8, length_penalty=0.7, **options)
    assert len({len(h.tokens) for row in found for h in row}) > 1
    scorer = Scorer(here.model)
    for i, row in enumerate(found):
        assert [h.score for h in row] == sorted([h.score for h in row], reverse=True)
        texts = [h.tokens + [eos] * (len(h.tokens) < 8) for h in row]
        given = {"sources": [sources[i]] * 4} if more else {}
        pairs = [(prompts[i], text) for text in texts]
        scores = scorer.log_probs(here.params, pairs, **given)
        for h, (log_prob, length) in zip(row, scores, strict=True):
            assert h.log_prob == pytest.approx(log_prob, rel=1e-5)
            assert h.score == pytest.approx(log_prob / length**0.7, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["t5", "luong"])
def test_rows_do_not_depend_on_their_neighbours(setup, architecture):
    here = setup(architecture)
    prompts, sources = [[1]] * 3, SOURCES
    options = {"num_beams": 3, "num_return": 3, "stop_ids": range(16)}
    whole = here.find(prompts, sources=sources, **options)
    for i, row in enumerate(whole):
        (alone,) = here.find([[1]], sources=[sources[i]], **options)
        assert [h.tokens for h in alone] == [h.tokens for h in row]


LIMITS = {"min_tokens": 12, "no_repeat_ngram": 2}


@pytest.mark.slow
def test_constraints_hold(setup):
    here = setup(vocab_size=16)
    stops = range(6)
    plain = here.find(max_tokens=20, num_beams=4, stop_ids=stops)
    assert any(len(row[0].tokens) < 12 for row in plain)
    common, limits = {"max_tokens": 20, "stop_ids": stops}, LIMITS
    found = here.find(num_beams=4, num_return=4, **common, **limits)
    sampling = Sampling(temperature=0.0, **limits)
    greedy = here.greedy(**common, sampling=sampling)
    for prompt, row, single in zip(PROMPTS, found, greedy, strict=True):
        for tokens in (*[h.tokens for h in row], single):
            assert 12 <= len(tokens) <= 20
            old, new = list(pairwise(prompt)), list(pairwise([*prompt, *tokens]))
            assert len(set(new)) - len(set(old)) == len(new) - len(old)


def test_a_search_compiles_once_for_a_shape(setup, tiny, random_params):
    here = setup()
    search = BeamSearch(here.generator)
    for prompts, max_tokens, penalty in ((PROMPTS, 5, 1.0), (PROMPTS[::-1], 9, 0.5)):
        search.search(
            here.params,
            prompts,
            config=DecodingConfig(
                num_beams=2, length_penalty=penalty, max_tokens=max_tokens
            ),
            stop_ids=(EOS,),
        )
    assert search._search._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "t5", "luong"])
@pytest.mark.parametrize("num_prompts", [1, 4])
def test_on_a_mesh_it_finds_the_same(setup, architecture, num_prompts):
    """One row is held by every device, of four each quarter of the mesh has one."""
    here = setup(architecture)
    model = here.model
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = sharding.param_shardings(model.axes, model.shapes, mesh)
    prompts, more = [*PROMPTS, [4, 4]][:num_prompts], {}
    if model.config.is_encoder_decoder:
        more = {"sources": [*SOURCES, [3] * 9][:num_prompts]}
        prompts = [[1]] * num_prompts
    options = {"num_beams": 4, "num_return": 4, "stop_ids": range(8), **more}
    expected = here.find(prompts, **options)
    split = dataclasses.replace(here, params=jax.device_put(here.params, shardings))
    with jax.set_mesh(mesh):
        found = split.find(prompts, **options)
    for a, b in zip(found, expected, strict=True):
        assert [h.tokens for h in a] == [h.tokens for h in b]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hidden:
    """A decode state."""

    hidden: object  # (R, 2, 8)

    def take(self, parents_BK):
        return Hidden(take_beams(self.hidden, parents_BK))


@dataclasses.dataclass(frozen=True, eq=False)
class Recurrent:
    """A cell of two layers behind `prefill` and `decode_step`."""

    config: object

    def prefill(self, params, tokens_BT, lengths_B, *, cache_length, source=None):
        hidden = jnp.zeros((len(tokens_BT), 2, 8))
        logits = jnp.zeros((len(tokens_BT), 16))
        for t in range(tokens_BT.shape[1]):
            after, state = self.decode_step(params, tokens_BT[:, t], t, Hidden(hidden))
            here_B1 = (t < lengths_B)[:, None]
            logits = jnp.where(here_B1, after, logits)
            hidden = jnp.where(here_B1[..., None], state.hidden, hidden)
        return logits, Hidden(hidden)

    def decode_step(self, params, tokens_B, positions_B, state):
        x_BD, layers = params["embed"][tokens_B], []
        for layer, w in enumerate(params["cells"]):
            x_BD = jnp.tanh((x_BD + state.hidden[:, layer]) @ w)
            layers.append(x_BD)
        return x_BD @ params["embed"].T, Hidden(jnp.stack(layers, axis=1))


def test_any_model_with_a_decode_state_can_be_searched(tiny):
    """A search needs of a model `prefill`, `decode_step` and a state with `take`.

    The log-probabilities that a wide beam finds are those of its texts read anew.
    """
    rng = np.random.default_rng(0)
    params = {
        "embed": jnp.asarray(rng.standard_normal((16, 8)), jnp.float32),
        "cells": jnp.asarray(rng.standard_normal((2, 8, 8)), jnp.float32),
    }
    model = Recurrent(tiny("llama", vocab_size=16).config)
    search = BeamSearch(Generator(model))
    found = search.search(
        params,
        PROMPTS,
        config=DecodingConfig(num_beams=5, num_return=5, max_tokens=7),
        stop_ids=(EOS,),
    )
    step = jax.jit(model.decode_step)
    for prompt, row in zip(PROMPTS, found, strict=True):
        for h in row:
            end = [EOS] if len(h.tokens) < 7 else []
            text, total = [*prompt, *h.tokens, *end], 0.0
            state = Hidden(jnp.zeros((1, 2, 8)))
            for t, token in enumerate(text[:-1]):
                logits, state = step(params, jnp.asarray([token]), t, state)
                log_probs = np.asarray(jax.nn.log_softmax(logits[0]))
                total += log_probs[text[t + 1]] * (t + 1 >= len(prompt))
            assert h.log_prob == pytest.approx(total, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, r"num_beams = 0: must be an integer in \[1, 1024\]"),
        ({"num_return": 5}, "num_return = 5: must be at most write.num_beams = 4"),
        ({"num_return": 0}, "num_return = 0: must be an integer in"),
        ({"length_penalty": float("nan")}, "length_penalty = nan: must be a finite nu"),
        ({"length_penalty": 9.0}, r"length_penalty = 9.0: must be .* in \[-5, 5\]"),
        ({"min_tokens": -1}, "min_tokens = -1: must be an integer >= 0"),
        ({"num_beam": 4}, r"num_beam: no such field \(did you mean 'num_beams'"),
        ({"temperature": 0.7}, "temperature = 0.7: must be 0 or left out with num_be"),
        ({"top_k": 3}, "top_k = 3: must be 0 or left out with num_beams = 4"),
        ({"top_p": 0.5}, "top_p = 0.5: must be 1 or left out with num_beams = 4"),
    ],
)
def test_user_errors(options, message):
    with pytest.raises(UserError, match=message):
        choose_decoding(**{"num_beams": 4, **options})
