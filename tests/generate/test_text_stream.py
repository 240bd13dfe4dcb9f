import itertools

import numpy as np
import pytest

from lmjax.config.tokenizer import TokenizerConfig
from lmjax.data.tokenizers.plain import Bytes
from lmjax.data.tokenizers.tokenizer import make_tokenizer
from lmjax.generate.text_stream import StoppedText, TextStream, cut_text

SAMPLE = "def f(x):\n    return x  # the sum, né à Åre\n\n"


class Texts(list):
    def size(self, index):
        return len(self[index].encode())

    def fingerprint(self):
        return "texts"


@pytest.fixture(
    scope="module",
    params=[
        {"kind": "bytes"},
        {"algorithm": "bpe"},
        {"algorithm": "unigram", "vocab_size": 280},
        {"algorithm": "bpe", "lossless": False, "vocab_size": 60},
    ],
    ids=str,
)
def tokenizer(request):
    leaves = dict(request.param)
    if leaves.get("kind") == "bytes":
        return Bytes(bos=True)
    config = TokenizerConfig(**{"vocab_size": 300, **leaves})
    return make_tokenizer(config, documents=[Texts([SAMPLE * 40])], seed=0)


def streamed(tokenizer, prompt, ids):
    stream = TextStream(tokenizer, prompt)
    pieces = [stream.add(int(i)) for i in ids]
    return [*pieces, stream.rest()]


def after(tokenizer, prompt, ids):
    return tokenizer.decode([*prompt, *ids])[len(tokenizer.decode(prompt)) :]


@pytest.mark.parametrize("prompt", ["", " ", "def", "x  ", "né", " " * 80, SAMPLE * 3])
def test_any_ids_give_the_text_of_all_at_once(tokenizer, prompt):
    rng = np.random.default_rng(0)
    before = [*tokenizer.prefix_ids, *tokenizer.encode(prompt)]
    spaces = tokenizer.encode("a          b").tolist() * 3
    texts = [tokenizer.encode(SAMPLE * 2 + "日本語😀 \u2581 " + " " * 40 + "x"), spaces]
    texts += [rng.integers(0, tokenizer.vocab_size, n) for n in (1, 5, 60, 60, 60)]
    for ids in texts:
        pieces = streamed(tokenizer, before, ids)
        assert "".join(pieces) == after(tokenizer, before, ids)


def test_the_time_is_linear():
    """Each token costs the decoding of a few, in garbage too."""

    class Counting(Bytes):
        decoded = 0

        def decode(self, ids):
            self.decoded += len(ids)
            return super().decode(ids)

    rng = np.random.default_rng(0)
    for ids in (b"some plain text " * 200, bytes(rng.integers(128, 256, 3000))):
        tokenizer = Counting(bos=True)
        prompt = list(b"p" * 10_000)
        pieces = streamed(tokenizer, prompt, ids)
        assert "".join(pieces) == bytes(ids).decode(errors="replace")
        assert tokenizer.decoded < 100 * len(ids)
        assert max(map(len, itertools.islice(pieces, len(ids)))) < 20


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("one two", (), "one two"),
        ("one two", ("x", "one two "), "one two"),
        ("abcabd", ("abd",), "abc"),
        ("aaab", ("aab",), "a"),
        ("xabc", ("b", "abc"), "x"),  # the one that begins first
        ("xabd", ("b", "abc"), "xa"),
        ("\n\nx", ("\n\n",), ""),
        ("né\u200d\n", ("\u200d",), "né"),
        ("stop", ("stop",), ""),
    ],
)
def test_texts_end_before_the_first_stop(text, stop, kept):
    assert cut_text(text, stop) == kept
    for size in range(1, len(text) + 1):  # in pieces of any size
        stopped = StoppedText(stop)
        shown = ""
        for start in range(0, len(text), size):
            shown += stopped.add(text[start : start + size])
            assert kept.startswith(shown)
        assert shown + stopped.rest() == kept


def test_a_stream_holds_back_what_may_be_a_stop():
    stopped = StoppedText(("END",))
    assert [stopped.add(piece) for piece in ("a E", "N", "x", "EN", "D", "z")] == [
        *("a ", "", "ENx", "", "", "")
    ]
    assert stopped.is_over and stopped.rest() == ""
