"""SentencePiece in Hugging Face directories: T5, XLM-R, CamemBERT, Llama, Marian."""

import io
import json
import pickle
import random
import shutil

import numpy as np
import pytest
import sentencepiece

from lmjax.config.tokenizer import TokenizerConfig
from lmjax.data.tokenizers.tokenizer import (
    find_tokenizer,
    load_tokenizer,
    make_tokenizer,
)
from lmjax.errors import UserError

LINES = [
    f"the quick brown fox number {i} jumps over lazy dogs; déjà vu, 日本語 {i * i}"
    for i in range(200)
]
ODD = [
    "",
    "  a   b ",
    "\n a\tb",
    "ﬁ Ａ ① fox",
    "Thank <extra_id_0> the <extra_id_1>.",
    "x<extra_id_0>y",
    "the</s> fox<pad>",
    "the <mask> fox",
    ">>fra<< the fox",
    ">>xyz<<fox",
    "the >>fra<< fox",
    "\u2581 fox \U0001f468\u200d\U0001f469",
]


def random_text(rng):
    # Letters that combine with a space are left out: there SentencePiece and the
    # conversions of transformers differ, and we are SentencePiece.
    ranges = [(32, 127), (97, 123), (0x80, 0x2B0), (0x4E00, 0x4F00), (0x1F300, 0x1F3F0)]
    low_high = rng.choices(ranges, k=rng.randrange(30))
    return "".join(chr(rng.randrange(*pair)) for pair in low_high)


RNG = random.Random(0)
TEXTS = ODD + [random_text(RNG) for _ in range(200)]


@pytest.fixture(scope="module")
def train():
    def train(**options):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES),
            model_writer=model,
            vocab_size=140,
            hard_vocab_limit=False,
            minloglevel=3,
            **options,
        )
        return model.getvalue()

    return train


@pytest.fixture(scope="module")
def t5_model(train):
    return train(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


@pytest.fixture(scope="module")
def model(train):
    return train()


def write(directory, files):
    directory.mkdir(exist_ok=True)
    for name, value in files.items():
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        (directory / name).write_bytes(content)
    return directory


def make(path, **options):
    config = TokenizerConfig(kind="tokenizers", path=str(path), **options)
    return make_tokenizer(config, documents=None, seed=0)


def pieces_of(model):
    opened = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [opened.id_to_piece(i) for i in range(opened.vocab_size())]


@pytest.fixture
def t5(tmp_path, t5_model):
    files = {"spiece.model": t5_model, "config.json": {"model_type": "t5"}}
    return write(tmp_path / "t5", files)


@pytest.fixture
def xlmr(tmp_path, model):
    settings = {"model_type": "xlm-roberta"}
    files = {"sentencepiece.bpe.model": model, "config.json": settings}
    return write(tmp_path / "xlmr", files)


@pytest.fixture
def camembert(tmp_path, model):
    settings = {"model_type": "camembert"}
    files = {"sentencepiece.bpe.model": model, "config.json": settings}
    return write(tmp_path / "camembert", files)


@pytest.fixture
def marian(tmp_path, model, train):
    target = train(model_type="bpe")
    known = {*pieces_of(model), *pieces_of(target)} - {"<s>", "</s>", "<unk>", "▁q"}
    pieces = ["</s>", "<unk>", *sorted(known), ">>fra<<", "<pad>"]
    files = {
        "source.spm": model,
        "target.spm": target,
        "vocab.json": {piece: i for i, piece in enumerate(pieces)},
        "config.json": {"model_type": "marian", "eos_token_id": 0, "bos_token_id": 0},
        "tokenizer_config.json": {"source_lang": "en", "target_lang": "fr"},
    }
    return write(tmp_path / "marian", files)


def test_t5(t5, t5_model):
    made = make(t5, num_sentinels=100)
    size = len(pieces_of(t5_model))
    assert made.vocab_size == size + 100
    assert made.sentinel_ids == tuple(range(size + 99, size - 1, -1))
    assert made.id_to_piece(size + 99) == "<extra_id_0>"
    assert (made.bos_id, made.eos_id, made.pad_id, made.mask_id) == (None, 1, 0, None)
    assert (made.prefix_ids, made.suffix_ids, made.pair_ids) == ((), (1,), (1,))
    opened = sentencepiece.SentencePieceProcessor(model_proto=t5_model)
    for text in LINES[:9]:
        assert made.encode(text).tolist() == opened.encode(text)
        assert made.decode([*made.encode(text), 1]) == opened.decode(
            opened.encode(text)
        )
    ids = made.encode("the <extra_id_0> fox").tolist()
    assert ids == [*opened.encode("the"), size + 99, *opened.encode("fox")]
    starts = {made.id_to_piece(i): s for i, s in enumerate(made.word_starts())}
    assert starts["▁"] and starts["</s>"] and starts["<extra_id_7>"]
    assert not starts["e"]


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"tokenizer_config.json": {"extra_ids": 3}}, 3),
        ({"tokenizer_config.json": {"extra_ids": 0}}, 0),
        (
            {
                "special_tokens_map.json": {
                    "additional_special_tokens": ["<extra_id_0>", "<extra_id_1>", "<x>"]
                }
            },
            2,
        ),
        ({"config.json": {"model_type": "mt5"}}, 0),
        ({"config.json": {}, "tokenizer_config.json": {}}, 0),
    ],
)
def test_how_many_sentinels_t5_has(t5, t5_model, files, count):
    made = make(write(t5, files))
    assert made.vocab_size == len(pieces_of(t5_model)) + count
    assert len(made.sentinel_ids) == count


def test_xlmr_and_camembert_move_pieces(xlmr, camembert, model):
    made, size = make(xlmr), len(pieces_of(model))
    assert made.vocab_size == size + 2
    ids = (made.bos_id, made.pad_id, made.eos_id, made.mask_id)
    assert ids == (0, 1, 2, size + 1)
    assert (made.prefix_ids, made.suffix_ids, made.pair_ids) == ((0,), (2,), (2, 2))
    opened = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert made.encode(LINES[0]).tolist() == [i + 1 for i in opened.encode(LINES[0])]
    assert made.decode(made.encode(LINES[3])) == LINES[3]
    assert make(camembert).encode(LINES[0]).tolist() == [
        i + 4 for i in opened.encode(LINES[0])
    ]


def test_llama_begins_with_bos_where_it_says_so(tmp_path, model):
    for settings, prefix in (
        ({"tokenizer_class": "LlamaTokenizer"}, (1,)),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, ()),
        ({"add_bos_token": True}, (1,)),
        ({}, ()),
    ):
        named = settings | {"bos_token": "<s>", "eos_token": "</s>"}
        files = {"tokenizer.model": model, "tokenizer_config.json": named}
        made = make(write(tmp_path / "llama", files))
        assert (made.prefix_ids, made.suffix_ids) == (prefix, ())
        assert (made.bos_id, made.eos_id) == ((prefix or (None,))[0], 2)
        assert make(tmp_path / "llama", bos=False).prefix_ids == ()


def test_tokens_added_to_a_model(tmp_path, model):
    size = len(pieces_of(model))
    files = {"tokenizer.model": model, "added_tokens.json": {"<pad>": size + 1}}
    made = make(write(tmp_path / "llama", files))
    assert (made.vocab_size, made.pad_id) == (size + 2, size + 1)
    assert made.id_to_piece(size) == ""
    assert made.encode("the<pad>").tolist()[-1] == size + 1


def test_marian(marian, model):
    made = make(marian)
    assert (made.bos_id, made.eos_id, made.stop_ids) == (None, 0, (0,))
    assert made.pad_id == made.vocab_size - 1
    assert (made.prefix_ids, made.suffix_ids, made.pair_ids) == ((), (0,), ())
    source = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [made.id_to_piece(i) for i in made.encode(LINES[0])]
    assert pieces == source.encode(LINES[0], out_type=str)
    assert made.encode(">>fra<< the")[0] == made.pad_id - 1
    targets = made.for_targets()
    assert targets.encode(LINES[0]).tolist() != made.encode(LINES[0]).tolist()
    assert made.decode([*targets.encode(LINES[0]), 0, made.pad_id]) == LINES[0]


@pytest.mark.parametrize("kind", ["t5", "xlmr", "camembert", "marian"])
def test_as_transformers_has_it(kind, request):
    transformers = pytest.importorskip("transformers")
    directory = request.getfixturevalue(kind)
    classes = {"t5": "T5", "xlmr": "XLMRoberta", "camembert": "Camembert"}
    name = f"{classes.get(kind, 'Marian')}Tokenizer"
    theirs = getattr(transformers, name).from_pretrained(str(directory))
    made = make(directory)
    for text, ids in zip(TEXTS, made.encode_batch(TEXTS), strict=True):
        assert ids.tolist() == theirs.encode(text, add_special_tokens=False), text
    one, two = made.encode("fox").tolist(), made.encode("the").tolist()
    whole = [*made.prefix_ids, *one, *made.suffix_ids]
    pair = [*made.prefix_ids, *one, *made.pair_ids, *two, *made.suffix_ids]
    assert theirs.encode("fox") == whole and theirs.encode("fox", "the") == pair


@pytest.mark.parametrize("kind", ["t5", "marian"])
def test_saved_and_loaded(kind, request, tmp_path):
    directory = request.getfixturevalue(kind)
    made = make(directory)
    made.save(tmp_path / "kept")
    for file in directory.iterdir():
        if file.name != "config.json":
            assert (tmp_path / "kept" / file.name).read_bytes() == file.read_bytes()
    shutil.rmtree(directory)
    loaded = load_tokenizer(tmp_path / "kept")
    given = make(tmp_path / "kept")
    sent = pickle.loads(pickle.dumps(loaded))
    for other in (loaded, given, sent):
        assert other.fingerprint() == made.fingerprint()
        assert other.special_ids() == made.special_ids()
        other.suffix_ids += (1,)
        assert other.fingerprint() != made.fingerprint()
        for text in ODD:
            ids = other.encode(text)
            np.testing.assert_array_equal(ids, made.encode(text))
            assert other.decode(ids) == made.decode(ids)


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        ("t5", {"spiece.model": b"nonsense"}, r"spiece\.model: .*not a SentencePiece"),
        (
            "t5",
            {"config.json": {"model_type": "albert"}},
            "'albert' reads spiece",
        ),
        ("marian", {"target.spm": b"x"}, r"target\.spm: .*not a SentencePiece"),
        ("marian", {"vocab.json": {"a": 0}}, r"vocab\.json: .*has no '<unk>'"),
        ("marian", {"vocab.json": {"a": "b"}}, r"vocab\.json: .*not a vocabulary"),
        (
            "marian",
            {"tokenizer_config.json": {"separate_vocabs": True}},
            "two vocabularies",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(kind, files, message, request):
    directory = write(request.getfixturevalue(kind), files)
    with pytest.raises(UserError, match=message) as error:
        make(directory)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("source.model", "not a SentencePiece model"), ("pieces.json", "not JSON")],
)
def test_a_damaged_workdir(t5, name, message, tmp_path):
    make(t5).save(tmp_path / "kept")
    (tmp_path / "kept" / name).write_bytes(b"nonsense")
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path / "kept")


def test_a_model_file_is_found_beside_its_settings(t5):
    assert make(t5 / "spiece.model").special_ids() == make(t5).special_ids()
    assert find_tokenizer(t5).kind == "tokenizers"
