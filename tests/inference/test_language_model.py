"""The trained model in Python: texts in, texts and numbers out."""

import jax
import numpy as np
import pytest

from lmjax.config.experiment import MeshConfig
from lmjax.data.tokenizers.plain import Bytes
from lmjax.errors import ConfigError, UserError
from lmjax.inference.language_model import LanguageModel
from lmjax.parallel import sharding

ATTENTIVE = ("bahdanau", "luong")


@pytest.fixture(scope="module")
def make_lm(make_config, tiny, random_params):
    def make(architecture="llama", *, bos=True, num_unused=0, **sizes):
        vocab = {"vocab_size": 257 + bos + num_unused}
        scan = {} if architecture in ATTENTIVE else {"scan_layers": True}
        model = tiny(architecture, **scan, **vocab)
        config = MeshConfig(**sizes) if sizes else MeshConfig(data=1)
        devices = jax.devices() if sizes else jax.devices()[:1]
        mesh = sharding.make_mesh(config, devices)
        shardings = sharding.param_shardings(model.axes, model.shapes, mesh)
        return LanguageModel(
            config=make_config(architecture, **vocab),
            tokenizer=Bytes(bos=bos),
            model=model,
            params=jax.device_put(random_params(model), shardings),
            mesh=mesh,
            step=1,
        )

    return make


@pytest.fixture(scope="module")
def lm(make_lm):
    return make_lm()


def log_probs(lm, tokens):
    logits = np.float64(lm.logits([tokens]))[0]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_scores_are_sums_of_log_probabilities(lm):
    tokens = [lm.tokenizer.bos_id, *"héllo".encode()]
    each = [row[t] for row, t in zip(log_probs(lm, tokens), tokens[1:], strict=False)]
    (score,) = lm.score(["héllo"])
    assert score["num_tokens"] == 6
    assert score["log_prob"] == pytest.approx(sum(each), rel=1e-5)
    assert score["perplexity"] == pytest.approx(np.exp(-sum(each) / 6), rel=1e-5)
    (given,) = lm.score([("hé", "llo")])
    assert given["num_tokens"] == 3
    assert given["log_prob"] == pytest.approx(sum(each[3:]), rel=1e-5)
    (ended,) = lm.score([("hé", "llo")], eos=True)
    end = log_probs(lm, tokens)[-1, lm.tokenizer.eos_id]
    assert ended["num_tokens"] == 4
    assert ended["log_prob"] == pytest.approx(sum(each[3:]) + end, rel=1e-5)


def test_a_text_of_no_tokens_has_no_perplexity(lm):
    nothing = {"log_prob": 0.0, "num_tokens": 0, "perplexity": None}
    assert lm.score([""]) == [nothing]
    assert lm.score([]) == []


def test_without_bos_the_first_token_is_not_scored(make_lm):
    lm = make_lm(bos=False)
    (score,) = lm.score(["abc"])
    assert score["num_tokens"] == 2
    each = log_probs(lm, [*b"abc"])
    expected = each[0, ord("b")] + each[1, ord("c")]
    assert score["log_prob"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="prompt: empty"):
        lm.generate([""])


def test_segments_keep_texts_apart(lm):
    a, b = [5, 6, 7], [8, 9]
    packed = lm.logits([a + b + [0]], segments=[[1, 1, 1, 2, 2, 0]])
    np.testing.assert_allclose(packed[0, :3], lm.logits([a])[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(packed[0, 3:5], lm.logits([b])[0], rtol=1e-5, atol=1e-5)
    assert lm.hidden([a]).shape == (1, 3, 32)


def test_by_default_as_many_tokens_as_fit_are_generated(lm):
    """At most 64 tokens, and to the model's last position."""
    common = {"temperature": 0.0, "min_tokens": 4}
    for prompt in ("a" * 59, "a" * 50):
        whole = lm.generate([prompt], max_tokens=63 - len(prompt), **common)
        assert lm.generate([prompt], **common) == whole
        assert "".join(lm.stream(prompt, **common)) == whole[0]
    for way in ({}, {"num_beams": 2}):
        with pytest.raises(ConfigError, match=r"prompt: 70 tokens .*max_length = 6"):
            lm.generate(["a" * 69], **way)


@pytest.mark.parametrize("architecture", ATTENTIVE)
def test_pairs_in_one_row_are_independent(make_lm, architecture):
    """Each begins in the state that its own source gives, and reads no other."""
    lm, sources, texts = make_lm(architecture), [[5, 6, 7], [10]], [[8, 9], [3, 2, 1]]
    numbers = {"segments": [[1, 1, 2, 2, 2, 0]], "source_segments": [[1, 1, 1, 2, 0]]}
    source, tokens = [[5, 6, 7, 10, 0]], [[8, 9, 3, 2, 1, 0]]
    packed = lm.logits(tokens, source=source, **numbers)[0]
    for i, here in enumerate((packed[:2], packed[2:5])):
        alone = lm.logits([texts[i]], source=[sources[i]])[0]
        np.testing.assert_allclose(here, alone, rtol=1e-5, atol=1e-5)


def test_the_stream_is_what_generate_returns(lm):
    options = {"max_tokens": 20, "seed": 0}
    pieces = list(lm.stream("def ", temperature=0.0, **options))
    assert "".join(pieces) == lm.generate(["def "], temperature=0.0, **options)[0]
    for way in ({"top_k": 50, "top_p": 0.9}, {"num_beams": 2}):
        streamed = "".join(lm.stream("def ", **way, **options))
        assert [streamed] == lm.generate(["def "], **way, **options)


class Scripted:
    """A generator that says given bytes, one at a time."""

    def __init__(self, text):
        self.text = text

    def stream(self, params, prompts, **options):
        for byte in self.text:
            yield np.array([byte], np.int32)
        yield np.array([-1], np.int32)


@pytest.mark.parametrize("architecture", ["llama", "t5", "bahdanau"])
def test_beams(make_lm, architecture):
    lm, prompts = make_lm(architecture), ["ab", "def f"]
    options = {"max_tokens": 6, "num_beams": 3, "length_penalty": 0.5}
    options |= {"min_tokens": 2, "no_repeat_ngram": 2}
    best = lm.generate(prompts, **options)
    several = lm.generate(prompts, num_return=3, temperature=0.0, **options)
    assert len(best) == 2 and several[::3] == best
    found = lm.search(prompts, num_return=3, **options)
    assert [text["text"] for texts in found for text in texts] == several
    assert all(text["score"] < 0 and text["log_prob"] < 0 for text in found[0])
    greedy = lm.generate(prompts, max_tokens=6, temperature=0.0)
    assert lm.generate(prompts, max_tokens=6, temperature=0.0, num_beams=1) == greedy


def test_user_errors_of_beams(lm):
    for options, message in (
        ({"num_beams": 2, "temperature": 0.5}, "temperature = 0.5: "),
        ({"num_return": 2}, "num_return = 2: must be at most write.num_beams = 1"),
        ({"min_tokens": 65}, "min_tokens = 65: must be at most max_tokens = 62"),
        ({"max_tokens": 63}, "max_tokens = 63: after a prompt of 2 tokens must be"),
        ({"max_tokens": 0}, "max_tokens = 0: must be >= 1"),
    ):
        with pytest.raises(UserError, match=message):
            lm.generate(["a"], **options)


@pytest.mark.parametrize("architecture", ["t5", "luong"])
def test_an_encoder_decoder_scores_texts_given_sources(make_lm, architecture):
    lm = make_lm(architecture)
    start, eos = lm.config.model.start_id, lm.tokenizer.eos_id
    (score,) = lm.score([("né", "abc")], eos=True)
    source = lm.encode_rows(["né"])
    logits = np.float64(lm.logits([[start, *b"abc"]], source=source))[0]
    each = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = each[range(4), [*b"abc", eos]].sum()
    assert score["num_tokens"] == 4
    assert score["log_prob"] == pytest.approx(expected, rel=1e-5)
    assert lm.score([]) == []
    with pytest.raises(UserError, match="score: text 1 has no context"):
        lm.score([("a", "b"), "c"])
    with pytest.raises(UserError, match=r"source: config.model.kind = '.*' needs"):
        lm.logits([[start]])


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (b"a\xc3\xa9b", ["a", "é", "b"]),
        ("x€😀y".encode(), ["x", "€", "😀", "y"]),
        (b"a\xffb", ["a", "�b"]),  # not UTF-8: shown when what follows is known
        (b"a\xe2\x82", ["a", "�"]),  # cut off within a character
        (b"", []),
    ],
)
def test_the_stream_splits_no_character(lm, monkeypatch, text, pieces):
    monkeypatch.setitem(vars(lm), "_generator", Scripted(text))
    found = list(lm.stream("é", max_tokens=9, temperature=0.0))
    assert [piece for piece in found if piece] == pieces


def test_a_paused_stream_leaves_the_mesh_of_its_caller_alone(lm):
    stream = lm.stream("ab", max_tokens=3, temperature=0.0)
    next(stream)
    assert jax.sharding.get_abstract_mesh().empty


def test_ids_beyond_the_tokenizer_are_never_sampled(make_lm, monkeypatch):
    """A table may be filled up; SentencePiece cannot decode what it lacks."""
    lm = make_lm(num_unused=254)
    seen = []
    monkeypatch.setattr(
        lm.tokenizer, "decode", lambda ids: seen.extend(ids) or "", raising=True
    )
    lm.generate(["a"] * 8, max_tokens=20, temperature=5.0)
    assert len(seen) > 50 and max(seen) < lm.tokenizer.vocab_size


def test_a_mesh_changes_no_result(lm, make_lm):
    split = make_lm(data=2, fsdp=2, tensor=2)
    prompts = ["ab", "def f", "c"]
    options = {"max_tokens": 5, "temperature": 0.0}
    assert split.generate(prompts, **options) == lm.generate(prompts, **options)
    for a, b in zip(split.score(prompts), lm.score(prompts), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
