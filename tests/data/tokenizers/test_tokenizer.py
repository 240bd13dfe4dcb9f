import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest

from lmjax.config.data import SourceConfig
from lmjax.config.experiment import parse
from lmjax.config.tokenizer import TokenizerConfig
from lmjax.data.lm.packing import cut_windows
from lmjax.data.lm.windows import independent_windows
from lmjax.data.sources.registry import open_splits
from lmjax.data.stores.token_store_builder import build_token_store
from lmjax.data.tokenizers.files import MANIFEST
from lmjax.data.tokenizers.sentencepiece import (
    MODEL,
    SentencePiece,
    sample_training_text,
)
from lmjax.data.tokenizers.tokenizer import (
    load_tokenizer,
    make_tokenizer,
    recipe_fingerprint,
    vocab_size,
)
from lmjax.errors import UserError

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


def test_every_text_is_decoded_as_it_was(lossless):
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
    tokenizer = make_tokenizer(config, documents=[texts([code])], seed=0)
    pieces = [tokenizer.id_to_piece(i) for i in range(tokenizer.vocab_size)]
    assert any("\n▁▁▁▁▁▁▁▁" in piece for piece in pieces)
    assert tokenizer.decode(tokenizer.encode(code)) == code


def test_special_ids(texts):
    for bos in (True, False):
        config = TokenizerConfig(vocab_size=380, bos=bos)
        tokenizer = make_tokenizer(config, documents=[texts(SAMPLE)], seed=0)
        assert tokenizer.vocab_size == vocab_size(config) == 380
        assert (tokenizer.bos_id, tokenizer.eos_id) == ((1, 2) if bos else (None, 1))
        ids = tokenizer.encode("the fox")
        framed = [tokenizer.eos_id, *ids, tokenizer.eos_id]
        assert tokenizer.decode(framed) == "the fox"
        config = TokenizerConfig(kind="bytes", bos=bos)
        tokenizer = make_tokenizer(config, documents=None, seed=0)
        assert tokenizer.vocab_size == vocab_size(config) == 257 + bos
        assert (tokenizer.bos_id, tokenizer.eos_id) == (257 if bos else None, 256)
        assert tokenizer.decode([*b"hi", 256]) == "hi"
        assert tokenizer.id_to_piece(65) == "<0x41>"


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "char"])
def test_training_is_deterministic(algorithm, texts):
    size = {"bpe": 350, "unigram": 350, "char": 300}[algorithm]
    config = TokenizerConfig(vocab_size=size, algorithm=algorithm)
    try:
        first, again = (
            make_tokenizer(config, documents=[texts(SAMPLE)], seed=3) for _ in range(2)
        )
    except UserError as error:  # char has as many pieces as characters
        size = int(str(error).split("at most ")[1])
        config = TokenizerConfig(vocab_size=size, algorithm=algorithm)
        first, again = (
            make_tokenizer(config, documents=[texts(SAMPLE)], seed=3) for _ in range(2)
        )
    assert first.fingerprint() == again.fingerprint()
    assert first.decode(first.encode(SAMPLE[0])) == SAMPLE[0]


def test_the_fingerprint_depends_on_bos(lossless):
    with_bos, without = (SentencePiece(lossless.model, bos=b) for b in (True, False))
    assert with_bos.prefix_ids != without.prefix_ids
    assert with_bos.fingerprint() != without.fingerprint()


def test_saved_and_loaded(tmp_path, lossless):
    lossless.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint() == lossless.fingerprint()
    assert loaded.decode(loaded.encode("a▁b")) == "a▁b"
    tokenizer = make_tokenizer(
        TokenizerConfig(kind="bytes", bos=False), documents=None, seed=0
    )
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).vocab_size == 257


def test_loading_missing_or_damaged_files(tmp_path, lossless):
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    lossless.save(tmp_path)
    (tmp_path / MODEL).write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(UserError, match=f"{MANIFEST}:1: not JSON"):
        load_tokenizer(tmp_path)


def test_a_given_model(tmp_path, lossless):
    lossless.save(tmp_path)
    path = str(tmp_path / MODEL)
    tokenizer = make_tokenizer(TokenizerConfig(path=path), documents=None, seed=0)
    assert tokenizer.vocab_size == vocab_size(TokenizerConfig(path=path)) == 400
    assert tokenizer.bos_id == 1
    with pytest.raises(UserError, match=r"vocab_size = 500: .*model has 400"):
        vocab_size(TokenizerConfig(path=path, vocab_size=500))
    with pytest.raises(UserError, match=r"path = .*none\.model': cannot be read: No"):
        vocab_size(TokenizerConfig(path=str(tmp_path / "none.model")))
    (tmp_path / "bad.model").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"bad\.model': not a SentencePiece model"):
        vocab_size(TokenizerConfig(path=str(tmp_path / "bad.model")))


def test_a_given_model_without_bos(tmp_path, texts):
    config = TokenizerConfig(vocab_size=350, bos=False)
    make_tokenizer(config, documents=[texts(SAMPLE)], seed=0).save(tmp_path)
    path = str(tmp_path / MODEL)
    assert vocab_size(TokenizerConfig(path=path, bos=False)) == 350
    with pytest.raises(UserError, match=r"config\.tokenizer\.bos = True"):
        vocab_size(TokenizerConfig(path=path))


def test_bytes_with_another_size():
    config = TokenizerConfig(kind="bytes", vocab_size=1000)
    with pytest.raises(UserError, match=r"= 1000: the bytes .* has 258"):
        vocab_size(config)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "char"])
def test_a_vocabulary_that_is_too_large(algorithm, capfd, texts):
    documents = [texts(["some words and some more words"] * 9)]
    config = TokenizerConfig(vocab_size=5000, algorithm=algorithm)
    with pytest.raises(UserError, match=r"= 5000: .* at most \d+$") as error:
        make_tokenizer(config, documents=documents, seed=0)
    largest = int(str(error.value).split()[-1])
    config = TokenizerConfig(vocab_size=largest, algorithm=algorithm)
    assert make_tokenizer(config, documents=documents, seed=0).vocab_size == largest
    assert capfd.readouterr().err == ""


def test_a_vocabulary_that_is_too_small(texts):
    config = TokenizerConfig(vocab_size=20)
    with pytest.raises(UserError, match=r"vocab_size = 20: .* at least \d+"):
        make_tokenizer(config, documents=[texts(SAMPLE)], seed=0)


def test_training_text_is_spread_evenly(texts):
    documents = texts(f"{i:04}" * 2500 + "\n" for i in range(300))
    kept = list(sample_training_text([documents], num_bytes=300_000, seed=0))
    assert 0.8 < sum(map(len, kept)) / 300_000 < 1.2
    seen = {
        int(chunk[-5:-1]) if chunk[-1] == "\n" else int(chunk[:4]) for chunk in kept
    }
    assert min(seen) < 30 and max(seen) > 270
    whole = list(
        sample_training_text([documents, texts(["x"])], num_bytes=10**8, seed=0)
    )
    assert "".join(whole) == "".join(documents) + "x"
    assert kept == list(sample_training_text([documents], num_bytes=300_000, seed=0))


def test_words_split_at_white_space_alone(texts):
    sentences = texts(["a <unk> N don't <unk> <unk> Ünder_score", "A a $ &c. <unk>"])
    words = {word for line in sentences for word in line.split()}
    config = TokenizerConfig(
        algorithm="word", lossless=False, bos=False, vocab_size=len(words) + 2
    )
    tokenizer = make_tokenizer(config, documents=[sentences], seed=0)
    for line in sentences:
        ids = tokenizer.encode(line)
        assert len(ids) == len(line.split()) and 0 not in ids
        assert tokenizer.decode(ids) == line


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
    splits = open_splits(config, splits=("train", "valid", "test"))
    tokenizer = make_tokenizer(tokenizer_config, documents=[splits["train"]], seed=0)
    for split, expected in (("valid", 73_760), ("test", 82_430)):
        lines = [splits[split][i] for i in range(len(splits[split]))]
        ids = tokenizer.encode_batch(lines)
        assert sum(len(line) + 1 for line in ids) == expected
        assert not any((line == 0).any() for line in ids)


SPELLED = "<mask> a <extra_id_0><extra_id_1>"


@pytest.mark.parametrize("kind", ["sentencepiece", "bytes"])
def test_a_mask_and_sentinels(kind, texts, tmp_path):
    size = {"sentencepiece": 400, "bytes": 262}[kind]
    config = TokenizerConfig(kind=kind, vocab_size=size, mask=True, num_sentinels=3)
    tokenizer = make_tokenizer(config, documents=[texts([*SAMPLE, SPELLED])], seed=0)
    assert tokenizer.vocab_size == vocab_size(config) == size
    special = [
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.mask_id,
        *tokenizer.sentinel_ids,
    ]
    first = {"sentencepiece": [1, 2], "bytes": [257, 256]}[kind]
    last = {"sentencepiece": 3, "bytes": 258}[kind]
    assert special == [*first, last, last + 1, last + 2, last + 3]
    pieces = [tokenizer.id_to_piece(i) for i in special[2:]]
    assert pieces == ["<mask>", "<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]
    assert tokenizer.pad_id is None and tokenizer.stop_ids == (tokenizer.eos_id,)
    assert (tokenizer.prefix_ids, tokenizer.suffix_ids) == (
        (tokenizer.bos_id,),
        (tokenizer.eos_id,),
    )
    assert tokenizer.pair_ids == (tokenizer.eos_id,)
    ids = tokenizer.encode(SPELLED)  # what a text spells stays text
    assert not set(special) & set(ids.tolist()) and tokenizer.decode(ids) == SPELLED
    assert tokenizer.decode([*special, *ids]) == SPELLED
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.special_ids() == tokenizer.special_ids()
    assert loaded.fingerprint() == tokenizer.fingerprint()


def test_a_given_model_without_mask_or_sentinels(tmp_path, lossless):
    lossless.save(tmp_path)
    path = str(tmp_path / MODEL)
    assert lossless.mask_id is None and lossless.sentinel_ids == ()
    with pytest.raises(UserError, match=r"mask = True: .*model has no mask token"):
        vocab_size(TokenizerConfig(path=path, mask=True))
    with pytest.raises(UserError, match=r"num_sentinels = 2: .*model has 0$"):
        vocab_size(TokenizerConfig(path=path, num_sentinels=2))
    with pytest.raises(UserError, match=r"mask = True: the ids tokenizer has no"):
        vocab_size(TokenizerConfig(kind="ids", vocab_size=9, mask=True))


def test_word_starts(texts):
    config = TokenizerConfig(vocab_size=400, mask=True)
    tokenizer = make_tokenizer(config, documents=[texts(SAMPLE)], seed=0)
    starts = tokenizer.word_starts()
    assert starts.shape == (400,) and starts.dtype == bool
    assert starts[[tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id]].all()
    pieces = [tokenizer.id_to_piece(i) for i in range(4, 400)]
    assert starts[4:].tolist() == [piece[0] in "▁\n\t\r" for piece in pieces]
    assert 10 < starts.sum() < 390
    bytes_tokenizer = make_tokenizer(
        TokenizerConfig(kind="bytes"), documents=None, seed=0
    )
    assert bytes_tokenizer.word_starts().tolist() == [True] * 258


def test_texts_that_are_ids(tmp_path):
    config = TokenizerConfig(kind="ids", vocab_size=100)
    tokenizer = make_tokenizer(config, documents=None, seed=0)
    assert tokenizer.vocab_size == vocab_size(config) == 100
    assert tokenizer.encode(" 12 55\n7 ").tolist() == [12, 55, 7]
    assert tokenizer.encode("12").dtype == tokenizer.encode("").dtype == np.int32
    assert tokenizer.decode(tokenizer.encode_batch(["1", "12 55 7"])[1]) == "12 55 7"
    assert tokenizer.id_to_piece(5) == "5" and tokenizer.word_starts().all()
    assert (
        tokenizer.bos_id is None
        and tokenizer.eos_id is None
        and tokenizer.stop_ids == ()
    )
    for word in ("100", "-1", "x", "1.0", "٣", "9" * 5000):
        with pytest.raises(UserError, match=f"'{word}' is not .* from 0 to 99$"):
            tokenizer.encode(f"1 {word} 2")
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint() == tokenizer.fingerprint()


def test_a_store_of_ids_has_nothing_between_documents(tmp_path, texts):
    tokenizer = make_tokenizer(
        TokenizerConfig(kind="ids", vocab_size=100), documents=None, seed=0
    )
    store = build_token_store(
        tmp_path, documents=texts(["1 2", "3", "4 5 6"]), tokenizer=tokenizer
    )
    assert store.read(0, store.num_tokens).tolist() == [1, 2, 3, 4, 5, 6]
    batch = cut_windows(
        [store],
        independent_windows(np.array([0, 4]), length=4),
        length=4,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        isolate=True,
        circular=False,
    )
    assert batch["targets"].tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
    assert batch["segments"].tolist() == [[1, 1, 2, 3], [1, 1, 0, 0]]
    assert batch["weights"].tolist() == [[0, 1, 0, 0], [1, 1, 0, 0]]


def test_recipes_from_before_masks_are_unchanged(texts):
    """A config without a mask has the recipe that it had before there were masks."""
    documents = texts(SAMPLE)
    config = TokenizerConfig(vocab_size=400)
    text = (
        "TokenizerConfig(kind='sentencepiece', path='', algorithm='bpe', "
        "vocab_size=400, bos=True, lossless=True, num_training_bytes=4000000)"
    )
    recipe = json.dumps([text, [documents.fingerprint()], 3]).encode()
    found = recipe_fingerprint(config, documents=[documents], seed=3)
    assert found == hashlib.sha256(recipe).hexdigest()
    changed = TokenizerConfig(vocab_size=400, num_sentinels=1)
    assert recipe_fingerprint(changed, documents=[documents], seed=3) != found


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({"kind": "ids"}, r"vocab_size = 0: .*'ids'"),
        ({"kind": "ids", "vocab_size": 9, "path": "x"}, r"path = 'x': .*'ids'"),
        ({"kind": "tokenizers"}, r"path = '': .*'tokenizers'"),
        ({"mask": True}, r"vocab_size = 0"),
    ],
)
def test_config_errors(leaves, message):
    with pytest.raises(UserError, match=message):
        parse({"tokenizer": leaves, "data": {"source": "python_stdlib"}})


def test_lossless_keeps_full_width_punctuation(texts):
    text = "你好，世界！（全角）「かぎ」：Ａ１"
    for lossless in (True, False):
        config = TokenizerConfig(
            algorithm="char", vocab_size=276 if lossless else 20, lossless=lossless
        )
        tok = make_tokenizer(config, documents=[texts([text] * 50)], seed=0)
        assert (tok.decode(tok.encode(text)) == text) == lossless
