"""The trained model in Python: texts in, texts and numbers out."""

import dataclasses

import jax
import numpy as np
import pytest

from lmjax.config.experiment import MeshConfig
from lmjax.data.tokenizers.plain import Bytes, Ids
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


def numbers(score):
    return score["log_prob"], score["num_tokens"]


def test_ids_are_scored_as_they_are(lm, make_lm):
    bos, ids = lm.tokenizer.bos_id, [*b"hello"]
    given = ["hello", ("he", "llo")]
    expected = [numbers(score) for score in lm.score(given, eos=True)]

    def check(texts, **options):
        for score, one in zip(lm.score(texts, **options), expected, strict=True):
            assert numbers(score) == pytest.approx(one, rel=1e-5)

    check([[bos, *ids], ([bos, *ids[:2]], ids[2:])], eos=True)
    check([ids, (ids[:2], np.array(ids[2:]))], prefix_token=bos, eos=True)
    arrays = np.array([bos, *ids[:2]]), np.array(ids[2:])
    check([np.concatenate(arrays), arrays], eos=True)
    check(["hello", ("he", ids[2:])], eos=True)
    assert lm.score([ids])[0]["num_tokens"] == 4  # nothing is before the first
    other, same = lm.score(["hello", ([7], ids)], prefix_token=7)
    assert other["num_tokens"] == same["num_tokens"] == 5
    assert other["log_prob"] != pytest.approx(expected[0][0])
    for texts, options, why in (
        ([[5, 999]], {}, r"texts\[0\]: no token id 999; .*vocab_size = 258"),
        (["a", 5], {}, r"texts\[1\]: must be a text, token ids, .* not int"),
        ([[0.5, 1.5, 2.5]], {}, r"texts\[0\]: must be text or a list of token ids"),
        (["a"], {"prefix_token": 258}, "prefix_token: no token id 258"),
    ):
        with pytest.raises(UserError, match=why):
            lm.score(texts, **options)
    pairs = make_lm("t5")
    text, ids = pairs.score([("ab", "cd"), ([257, *b"ab", 256], [*b"cd"])])
    assert text == ids
    with pytest.raises(UserError, match=r"prefix_token = 5: .* encoder-decoder"):
        pairs.score([("ab", "cd")], prefix_token=5)


def test_an_end_that_there_is_not_cannot_be_scored(lm):
    deaf = dataclasses.replace(lm, tokenizer=Ids(258))
    with pytest.raises(UserError, match="eos: the tokenizer has no end of text"):
        deaf.score(["5 6"], eos=True)
    ended = dataclasses.replace(lm, tokenizer=Ids(258, eos_id=256))
    assert ended.score(["104 105"], eos=True)[0]["num_tokens"] == 2
    joined, whole = ended.score([("5 6", "7"), ([5, 6], [7])])
    assert joined == whole  # not "5 67"


def test_each_token_is_scored_by_choice(lm):
    (found,) = lm.score([("hé", "llo")], eos=True, per_token=True)
    assert found["tokens"] == [*b"llo", 256]
    each = log_probs(lm, [257, *"héllo".encode()])[3:]
    expected = each[range(4), found["tokens"]]
    np.testing.assert_allclose(found["token_log_probs"], expected, rtol=1e-5)
    assert found["log_prob"] == pytest.approx(sum(expected), rel=1e-6)
    greedy = [*(each.argmax(axis=1) == found["tokens"])]
    assert found["token_is_greedy"] == greedy
    assert found["is_greedy"] is bool(all(greedy))
    likely = int(log_probs(lm, [*b"ab"])[-1].argmax())
    (best,) = lm.score([([*b"ab"], [likely])], per_token=True)
    assert best["is_greedy"] is True


def test_logits_of_similar_lengths_share_a_compilation(make_lm):
    lm = make_lm()
    rows = {n: lm.logits([[5] * n]) for n in (1, 7, 31, 32)}
    assert lm._apply._cache_size() == 1
    for n, logits in rows.items():
        assert logits.shape == (1, n, 258)
        np.testing.assert_allclose(logits[0], rows[32][0, :n], rtol=1e-5, atol=1e-5)
    assert lm.logits([[5] * 64]).shape == (1, 64, 258)  # all its positions


def test_a_model_describes_itself_on_one_line(lm):
    text = repr(lm)
    assert "\n" not in text
    assert len(text) < 150
    assert "decoder" in text and "step 1" in text


def test_segments_keep_texts_apart(lm):
    a, b = [5, 6, 7], [8, 9]
    packed = lm.logits([a + b + [0]], segments=[[1, 1, 1, 2, 2, 0]])
    np.testing.assert_allclose(packed[0, :3], lm.logits([a])[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(packed[0, 3:5], lm.logits([b])[0], rtol=1e-5, atol=1e-5)
    assert lm.hidden([a]).shape == (1, 3, 32)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_mesh_changes_no_result(lm, make_lm):
    split = make_lm(data=2, fsdp=2, tensor=2)
    prompts = ["ab", "def f", "c"]
    options = {"max_tokens": 5, "temperature": 0.0}
    assert split.generate(prompts, **options) == lm.generate(prompts, **options)
    for a, b in zip(split.score(prompts), lm.score(prompts), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.slow
def test_a_draft_changes_no_greedy_text(lm, make_lm):
    options = {"max_tokens": 9, "temperature": 0.0}
    texts = lm.generate(["ab", "def f"], **options)
    assert lm.generate(["ab", "def f"], draft=make_lm("gpt2"), **options) == texts
    with pytest.raises(UserError, match="draft: its tokenizer"):
        lm.generate(["ab"], draft=make_lm(bos=False), **options)


def test_texts_stop_at_strings_that_span_tokens(lm):
    whole = lm.generate(["ab", "c"], max_tokens=24, temperature=0.0)
    for first, last in ((3, 5), (6, 7), (0, 2)):
        stop = whole[0][first:last]
        expected = [text.split(stop)[0] for text in whole]
        options = {"max_tokens": 24, "temperature": 0.0, "stop": ["never", stop]}
        assert lm.generate(["ab", "c"], **options) == expected
        assert "".join(lm.stream("ab", **options)) == expected[0]
        assert lm.generate(["ab"], **{**options, "stop": stop}) == expected[:1]
    beams = {"max_tokens": 12, "num_beams": 2}
    (text,) = lm.generate(["ab"], **beams)
    assert lm.generate(["ab"], stop=text[4], **beams) == [text.split(text[4])[0]]
    with pytest.raises(UserError, match=r"write\.stop = .*: a text to sto"):
        lm.generate(["ab"], stop="")


@pytest.mark.slow
def test_settings_of_the_config_hold_where_a_caller_sets_none(lm):
    def with_write(**leaves):
        write = dataclasses.replace(lm.config.task.write, **leaves)
        task = dataclasses.replace(lm.config.task, write=write)
        config = dataclasses.replace(lm.config, task=task)
        return dataclasses.replace(lm, config=config)

    limit = {"max_tokens": 8}
    greedy = lm.generate(["ab"], temperature=0.0, **limit)
    assert with_write(temperature=0.0).generate(["ab"], **limit) == greedy
    assert with_write(temperature=0.0, max_tokens=8).generate(["ab"]) == greedy
    assert with_write(temperature=0.0, max_length=11).generate(["ab"]) == greedy
    assert with_write(num_beams=2).generate(["ab"], temperature=0.0, **limit) == greedy
    beams = lm.generate(["ab"], num_beams=2, length_penalty=0.5, **limit)
    searched = with_write(num_beams=2, length_penalty=0.5)
    assert searched.generate(["ab"], **limit) == beams
    banned = tuple((i,) for i in range(32, 256))
    other = with_write(temperature=0.0, bad_words=banned)
    assert all(character < " " for character in other.generate(["ab"], **limit)[0])
