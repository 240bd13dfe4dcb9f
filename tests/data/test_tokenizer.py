import random
from pathlib import Path

import numpy as np
import pytest

from lmjax.config import ConfigError, SourceConfig, TokenizerConfig
from lmjax.data.sources import open_source
from lmjax.data.tokenizer import (
    MANIFEST,
    MODEL,
    load_tokenizer,
    make_tokenizer,
    training_text,
    vocab_size,
)

PTB = Path("~/.cache/lmjax-data/ptb").expanduser()

SAMPLE = [
    "def f(x):\n        return x\n\nclass A:\n    pass\r\n\tprint('hello world')\n",
    "the quick brown fox jumps over the lazy dog; déjà vu\n",
] * 20

ODD = [
    "",
    " ",
    "\n",
    "  leading and trailing  ",
    "\t\x00\x01\x7f\x80\ufeff\u200b\u202e",
    "\r\nCRLF\r\n\r",
    "▁",
    " ▁ a▁▁b ▁",
    "▁▁ déjà ▁\n▁",
    "<s></s><unk><0x41> ⁇ \ufffd",
    "日本語 हिन्दी العربية \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "e\u0301 é ﬁ Ａ ①",
    "\U0010ffff\u2028\u2029\u0085",
]


def random_text(rng):
    ranges = [(32, 127), (0, 32), (0x80, 0x2FF), (0x2500, 0x2600), (0x1F300, 0x1F600)]
    low_high = rng.choices(ranges, k=rng.randrange(40))
    return "".join(chr(rng.randrange(*pair)) for pair in low_high)


@pytest.fixture(scope="module")
def lossless(texts):
    config = TokenizerConfig(vocab_size=400)
    return make_tokenizer(config, documents=[texts(SAMPLE)], seed=0)


def test_every_text_comes_back(lossless):
    rng = random.Random(0)
    samples = ODD + SAMPLE[:2] + [random_text(rng) for _ in range(500)]
    bytes_tokenizer = make_tokenizer(
        TokenizerConfig(kind="bytes"), documents=None, seed=0
    )
    for tokenizer in (lossless, bytes_tokenizer):
        batch = tokenizer.encode_batch(samples)
        for text, ids in zip(samples, batch, strict=True):
            assert tokenizer.decode(ids) == text
            assert ids.dtype == np.int32
            np.testing.assert_array_equal(tokenizer.encode(text), ids)


def test_pieces_hold_line_ends_and_indentation(texts):
    code = "".join(f"if {i}:\n        x = {i * i}\n" for i in range(300))
    config = TokenizerConfig(vocab_size=300)
    made = make_tokenizer(config, documents=[texts([code])], seed=0)
    pieces = [made.id_to_piece(i) for i in range(made.vocab_size)]
    assert any("\n▁▁▁▁▁▁▁▁" in piece for piece in pieces)
    assert made.decode(made.encode(code)) == code


def test_special_ids(texts):
    for bos in (True, False):
        config = TokenizerConfig(vocab_size=380, bos=bos)
        made = make_tokenizer(config, documents=[texts(SAMPLE)], seed=0)
        assert made.vocab_size == vocab_size(config) == 380
        assert (made.bos_id, made.eos_id) == ((1, 2) if bos else (None, 1))
        ids = made.encode("the fox")
        framed = [made.eos_id, *ids, made.eos_id]
        assert made.decode(framed) == "the fox"
        config = TokenizerConfig(kind="bytes", bos=bos)
        made = make_tokenizer(config, documents=None, seed=0)
        assert made.vocab_size == vocab_size(config) == 257 + bos
        assert (made.bos_id, made.eos_id) == (257 if bos else None, 256)
        assert made.decode([*b"hi", 256]) == "hi"
        assert made.id_to_piece(65) == "<0x41>"


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "char"])
def test_training_is_deterministic(algorithm, texts):
    size = {"bpe": 350, "unigram": 350, "char": 300}[algorithm]
    config = TokenizerConfig(vocab_size=size, algorithm=algorithm)
    try:
        first, again = (
            make_tokenizer(config, documents=[texts(SAMPLE)], seed=3) for _ in range(2)
        )
    except ConfigError as error:  # char has as many pieces as characters
        size = int(str(error).split("at most ")[1])
        config = TokenizerConfig(vocab_size=size, algorithm=algorithm)
        first, again = (
            make_tokenizer(config, documents=[texts(SAMPLE)], seed=3) for _ in range(2)
        )
    assert first.fingerprint() == again.fingerprint()
    assert first.decode(first.encode(SAMPLE[0])) == SAMPLE[0]


def test_saved_and_loaded(tmp_path, lossless):
    lossless.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint() == lossless.fingerprint()
    assert loaded.decode(loaded.encode("a▁b")) == "a▁b"
    made = make_tokenizer(
        TokenizerConfig(kind="bytes", bos=False), documents=None, seed=0
    )
    made.save(tmp_path)
    assert load_tokenizer(tmp_path).vocab_size == 257


def test_loading_what_is_not_there(tmp_path, lossless):
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    lossless.save(tmp_path)
    (tmp_path / MODEL).write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ConfigError, match=f"{MANIFEST}: cannot be read"):
        load_tokenizer(tmp_path)


def test_a_given_model(tmp_path, lossless):
    lossless.save(tmp_path)
    path = str(tmp_path / MODEL)
    made = make_tokenizer(TokenizerConfig(path=path), documents=None, seed=0)
    assert made.vocab_size == vocab_size(TokenizerConfig(path=path)) == 400
    assert made.bos_id == 1
    with pytest.raises(ConfigError, match=r"vocab_size = 500: .*model has 400"):
        vocab_size(TokenizerConfig(path=path, vocab_size=500))
    with pytest.raises(ConfigError, match=r"path = .*none\.model': cannot be read: No"):
        vocab_size(TokenizerConfig(path=str(tmp_path / "none.model")))
    (tmp_path / "bad.model").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=r"bad\.model': not a SentencePiece model"):
        vocab_size(TokenizerConfig(path=str(tmp_path / "bad.model")))


def test_a_given_model_without_bos(tmp_path, texts):
    config = TokenizerConfig(vocab_size=350, bos=False)
    make_tokenizer(config, documents=[texts(SAMPLE)], seed=0).save(tmp_path)
    path = str(tmp_path / MODEL)
    assert vocab_size(TokenizerConfig(path=path, bos=False)) == 350
    with pytest.raises(ConfigError, match=r"config\.tokenizer\.bos = True"):
        vocab_size(TokenizerConfig(path=path))


def test_bytes_with_another_size():
    config = TokenizerConfig(kind="bytes", vocab_size=1000)
    with pytest.raises(ConfigError, match=r"= 1000: the bytes .* has 258"):
        vocab_size(config)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "char"])
def test_too_large_a_vocabulary_names_the_largest(algorithm, capfd, texts):
    documents = [texts(["some words and some more words"] * 9)]
    config = TokenizerConfig(vocab_size=5000, algorithm=algorithm)
    with pytest.raises(ConfigError, match=r"= 5000: .* at most \d+$") as error:
        make_tokenizer(config, documents=documents, seed=0)
    largest = int(str(error.value).split()[-1])
    config = TokenizerConfig(vocab_size=largest, algorithm=algorithm)
    assert make_tokenizer(config, documents=documents, seed=0).vocab_size == largest
    assert capfd.readouterr().err == ""


def test_too_small_a_vocabulary(texts):
    config = TokenizerConfig(vocab_size=20)
    with pytest.raises(ConfigError, match=r"vocab_size = 20: .* at least \d+"):
        make_tokenizer(config, documents=[texts(SAMPLE)], seed=0)


def test_training_text_is_spread_evenly(texts):
    documents = texts(f"{i:04}" * 2500 + "\n" for i in range(300))
    kept = list(training_text([documents], num_bytes=300_000, seed=0))
    assert 0.8 < sum(map(len, kept)) / 300_000 < 1.2
    seen = {
        int(chunk[-5:-1]) if chunk[-1] == "\n" else int(chunk[:4]) for chunk in kept
    }
    assert min(seen) < 30 and max(seen) > 270
    whole = list(training_text([documents, texts(["x"])], num_bytes=10**8, seed=0))
    assert "".join(whole) == "".join(documents) + "x"
    assert kept == list(training_text([documents], num_bytes=300_000, seed=0))


def test_words_split_at_white_space_alone(texts):
    sentences = texts(["a <unk> N don't <unk> <unk> Ünder_score", "A a $ &c. <unk>"])
    words = {word for line in sentences for word in line.split()}
    config = TokenizerConfig(
        algorithm="word", lossless=False, bos=False, vocab_size=len(words) + 2
    )
    made = make_tokenizer(config, documents=[sentences], seed=0)
    for line in sentences:
        ids = made.encode(line)
        assert len(ids) == len(line.split()) and 0 not in ids
        assert made.decode(ids) == line


@pytest.mark.skipif(not PTB.exists(), reason="needs the Penn Treebank")
def test_penn_treebank():
    config = SourceConfig(
        source="text",
        document="line",
        path=str(PTB / "train.txt"),
        valid_path=str(PTB / "valid.txt"),
        test_path=str(PTB / "test.txt"),
    )
    tokenizer_config = TokenizerConfig(
        algorithm="word",
        lossless=False,
        bos=False,
        vocab_size=10_001,
        num_training_bytes=10_000_000,
    )
    splits = {s: open_source(config, split=s) for s in ("train", "valid", "test")}
    made = make_tokenizer(tokenizer_config, documents=[splits["train"]], seed=0)
    for split, expected in (("valid", 73_760), ("test", 82_430)):
        lines = [splits[split][i] for i in range(len(splits[split]))]
        ids = made.encode_batch(lines)
        assert sum(len(line) + 1 for line in ids) == expected
        assert not any((line == 0).any() for line in ids)
