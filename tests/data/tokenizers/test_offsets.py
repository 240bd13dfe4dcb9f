"""For every kind of tokenizer: the characters that its tokens cover."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from lmjax.config.tokenizer import TokenizerConfig
from lmjax.data.tokenizers import sentencepiece as spm
from lmjax.data.tokenizers.offsets import (
    byte_offsets,
    concatenate_encodings,
    include_combining_marks,
    make_encoding,
    widen_byte_offsets,
)
from lmjax.data.tokenizers.plain import Bytes, Ids
from lmjax.data.tokenizers.sentencepiece import SentencePiece
from lmjax.data.tokenizers.tokenizer import make_tokenizer

LINES = ["the quick brown fox, été naïve 日本語 can't ﬁ Ａ ①\n"] * 40
MINILM = Path("~/.cache/lmjax-data/minilm").expanduser()


def trained(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=3,
        **{"vocab_size": 60, **options},
    )
    return model.getvalue()


def lossless():
    options = spm._LOSSLESS | spm._ACROSS_WORDS
    model = trained(model_type="bpe", vocab_size=330, **options)
    return SentencePiece(model, bos=True, lossless=True)


def of_directory(directory, files):
    directory.mkdir()
    for name, value in files.items():
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        (directory / name).write_bytes(raw)
    config = TokenizerConfig(kind="tokenizers", path=str(directory))
    return make_tokenizer(config, documents=None, seed=0)


def word_pieces(directory):
    pytest.importorskip("tokenizers", reason="needs lmjax[hf]")
    letters = [c for c in map(chr, range(0x21, 0x180)) if c.islower() or c.isdigit()]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, "日", "本", "語"]
    vocab += [f"##{letter}" for letter in letters]
    return of_directory(directory, {"vocab.txt": "\n".join(vocab).encode()})


def byte_level(directory):
    tokenizers = pytest.importorskip("tokenizers", reason="needs lmjax[hf]")
    core = tokenizers.ByteLevelBPETokenizer()
    core.train_from_iterator(LINES, vocab_size=300, show_progress=False)
    return of_directory(directory, {"tokenizer.json": core.to_str().encode()})


def t5(directory):
    model = trained(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    return of_directory(
        directory, {"spiece.model": model, "config.json": {"model_type": "t5"}}
    )


def llama(directory):
    model = trained(model_type="bpe", byte_fallback=True, vocab_size=330)
    return of_directory(
        directory, {"tokenizer.model": model, "config.json": {"model_type": "llama"}}
    )


def minilm(_):
    pytest.importorskip("tokenizers", reason="needs lmjax[hf]")
    if not MINILM.exists():
        pytest.skip("no MiniLM here")
    config = TokenizerConfig(kind="tokenizers", path=str(MINILM))
    return make_tokenizer(config, documents=None, seed=0)


KINDS = {
    "bytes": lambda _: Bytes(bos=True),
    "lossless": lambda _: lossless(),
    "unigram": lambda _: SentencePiece(trained(), bos=True),
    "word_pieces": word_pieces,
    "byte_level": byte_level,
    "t5": t5,
    "llama": llama,
    "minilm": minilm,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory):
    return KINDS[request.param](tmp_path_factory.mktemp("tokenizer") / "files")


def test_the_ids_are_those_of_encode(tokenizer, odd_texts):
    texts = [*odd_texts, "a <extra_id_3> b▁c [MASK]</s>d"]
    for text, (ids, offsets) in zip(
        texts, tokenizer.encode_with_offsets(texts), strict=True
    ):
        assert ids.tolist() == tokenizer.encode(text).tolist(), text
        assert offsets.shape == (len(ids), 2)
        assert ids.dtype == offsets.dtype == np.int32
        begin, end = offsets.T
        assert (begin >= 0).all() and (begin <= end).all()
        assert (end <= len(text)).all()
        assert (np.diff(begin) >= 0).all() and (np.diff(end) >= 0).all()


FAMILY, HEART = "👨\u200d👩\u200d👧", "❤\ufe0f"
ACCENTS = "e\u0301te\u0301\u0323"
TEXT = f"Été {ACCENTS} 日本語, can't {FAMILY} {HEART} ﬁn ①½ naïve\u00a0İx ▁ मस्ते a"
WORDS = ["Été", ACCENTS, "日本語", "can't", FAMILY, HEART]
WORDS += ["ﬁn", "①½", "naïve", "İx", "मस्ते", "a"]


@pytest.mark.parametrize("word", WORDS)
def test_the_tokens_of_a_word_cover_the_word(tokenizer, word):
    begin = TEXT.rindex(word)
    (_, offsets), *_ = tokenizer.encode_with_offsets([TEXT])
    inside = (offsets[:, 1] > begin) & (offsets[:, 0] < begin + len(word))
    here = offsets[inside]
    assert TEXT[here[0, 0] : here[-1, 1]].strip() == word


def test_each_byte_covers_its_character():
    for tokenizer in (Bytes(bos=True), lossless()):
        (ids, offsets), *_ = tokenizer.encode_with_offsets(["aé👩"])
        assert offsets.tolist() in (
            [[0, 1], [1, 2], [1, 2], [2, 3], [2, 3], [2, 3], [2, 3]],
            [[0, 1], [1, 2], [2, 3], [2, 3], [2, 3], [2, 3]],  # é is a piece
        )
        assert len(ids) == len(offsets)


def test_ids_cover_the_words_that_spell_them():
    (ids, offsets), *_ = Ids(100).encode_with_offsets([" 12\u20033\n45 "])
    assert ids.tolist() == [12, 3, 45]
    assert offsets.tolist() == [[1, 3], [4, 5], [6, 8]]


def test_concatenated_encodings():
    one, two = make_encoding([1, 2], [(0, 1), (1, 3)]), make_encoding([3], [(0, 2)])
    ids, offsets = concatenate_encodings(
        [(0, one), (3, make_encoding([], [])), (5, two)]
    )
    assert ids.tolist() == [1, 2, 3]
    assert offsets.tolist() == [[0, 1], [1, 3], [5, 7]]
    assert concatenate_encodings([]).offsets.shape == (0, 2)
    assert byte_offsets("").shape == (0, 2)


def test_combining_marks_and_bytes_of_a_character():
    text = "e\u0301\u0323 \u0301a\u0301"
    assert include_combining_marks(text, np.array([[0, 1], [5, 6]])).tolist() == [
        [0, 3],
        [5, 7],
    ]
    given = np.array([[0, 0], [0, 0], [0, 0], [0, 1], [1, 2]])
    is_byte = np.array([False, True, True, True, False])
    expected = [[0, 0], [0, 1], [0, 1], [0, 1], [1, 2]]
    assert widen_byte_offsets(given, is_byte).tolist() == expected
