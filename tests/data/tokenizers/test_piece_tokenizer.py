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
    # Letters that combine with a space are left out: for them SentencePiece, which is
    # used here, differs from the conversions of transformers.
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


def open_tokenizer(path, **options):
    config = TokenizerConfig(kind="tokenizers", path=str(path), **options)
    return make_tokenizer(config, documents=None, seed=0)


def list_pieces(model):
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(processor.vocab_size())]


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
    known = {*list_pieces(model), *list_pieces(target)} - {"<s>", "</s>", "<unk>", "▁q"}
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
    tok = open_tokenizer(t5, num_sentinels=100)
    size = len(list_pieces(t5_model))
    assert tok.vocab_size == size + 100
    assert tok.sentinel_ids == tuple(range(size + 99, size - 1, -1))
    assert tok.id_to_piece(size + 99) == "<extra_id_0>"
    assert (tok.bos_id, tok.eos_id, tok.pad_id, tok.mask_id) == (None, 1, 0, None)
    assert (tok.prefix_ids, tok.suffix_ids, tok.pair_ids) == ((), (1,), (1,))
    processor = sentencepiece.SentencePieceProcessor(model_proto=t5_model)
    for text in LINES[:9]:
        assert tok.encode(text).tolist() == processor.encode(text)
        assert tok.decode([*tok.encode(text), 1]) == processor.decode(
            processor.encode(text)
        )
    ids = tok.encode("the <extra_id_0> fox").tolist()
    assert ids == [*processor.encode("the"), size + 99, *processor.encode("fox")]
    starts = {tok.id_to_piece(i): s for i, s in enumerate(tok.word_starts())}
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
                    "additional_special_tokens": ["<extra_id_0>", "<extra_id_1>"]
                }
            },
            2,
        ),
        ({"config.json": {"model_type": "mt5"}}, 0),
        ({"config.json": {}, "tokenizer_config.json": {}}, 0),
    ],
)
def test_number_of_sentinels_of_t5(t5, t5_model, files, count):
    tok = open_tokenizer(write(t5, files))
    assert tok.vocab_size == len(list_pieces(t5_model)) + count
    assert len(tok.sentinel_ids) == count


def test_xlmr_and_camembert_shift_ids(xlmr, camembert, model):
    tok, size = open_tokenizer(xlmr), len(list_pieces(model))
    assert tok.vocab_size == size + 2
    ids = (tok.bos_id, tok.pad_id, tok.eos_id, tok.mask_id)
    assert ids == (0, 1, 2, size + 1)
    assert (tok.prefix_ids, tok.suffix_ids, tok.pair_ids) == ((0,), (2,), (2, 2))
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert tok.encode(LINES[0]).tolist() == [i + 1 for i in processor.encode(LINES[0])]
    assert tok.decode(tok.encode(LINES[3])) == LINES[3]
    assert open_tokenizer(camembert).encode(LINES[0]).tolist() == [
        i + 4 for i in processor.encode(LINES[0])
    ]


def test_settings_of_llama_add_bos(tmp_path, model):
    for settings, prefix in (
        ({"tokenizer_class": "LlamaTokenizer"}, (1,)),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, ()),
        ({"add_bos_token": True}, (1,)),
        ({}, ()),
    ):
        config = settings | {"bos_token": "<s>", "eos_token": "</s>"}
        files = {"tokenizer.model": model, "tokenizer_config.json": config}
        tok = open_tokenizer(write(tmp_path / "llama", files))
        assert (tok.prefix_ids, tok.suffix_ids) == (prefix, ())
        assert (tok.bos_id, tok.eos_id) == ((prefix or (None,))[0], 2)
        assert open_tokenizer(tmp_path / "llama", bos=False).prefix_ids == ()


def test_added_tokens(tmp_path, model):
    size = len(list_pieces(model))
    files = {"tokenizer.model": model, "added_tokens.json": {"<pad>": size + 1}}
    tok = open_tokenizer(write(tmp_path / "llama", files))
    assert (tok.vocab_size, tok.pad_id) == (size + 2, size + 1)
    assert tok.id_to_piece(size) == ""
    assert tok.encode("the<pad>").tolist()[-1] == size + 1


def test_special_tokens_without_an_id_follow_the_pieces(tmp_path, model):
    size = len(list_pieces(model))
    settings = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<x>"]}
    files = {"tokenizer.model": model, "tokenizer_config.json": settings}
    tok = open_tokenizer(write(tmp_path / "llama", files))
    assert (tok.vocab_size, tok.eos_id) == (size + 2, size)
    assert tok.encode("the<x>").tolist()[-1] == size + 1


def test_marian(marian, model):
    tok = open_tokenizer(marian)
    assert (tok.bos_id, tok.eos_id, tok.stop_ids) == (None, 0, (0,))
    assert tok.pad_id == tok.vocab_size - 1
    assert (tok.prefix_ids, tok.suffix_ids, tok.pair_ids) == ((), (0,), ())
    source = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [tok.id_to_piece(i) for i in tok.encode(LINES[0])]
    assert pieces == source.encode(LINES[0], out_type=str)
    assert tok.encode(">>fra<< the")[0] == tok.pad_id - 1
    target = sentencepiece.SentencePieceProcessor(
        model_proto=(marian / "target.spm").read_bytes()
    )
    ids = json.loads((marian / "vocab.json").read_text())
    target_ids = [ids[piece] for piece in target.encode(LINES[0], out_type=str)]
    assert target_ids != tok.encode(LINES[0]).tolist()
    assert tok.decode([*target_ids, 0, tok.pad_id]) == LINES[0]


@pytest.mark.parametrize("kind", ["t5", "xlmr", "camembert", "marian"])
def test_against_transformers(kind, request):
    transformers = pytest.importorskip("transformers")
    directory = request.getfixturevalue(kind)
    classes = {"t5": "T5", "xlmr": "XLMRoberta", "camembert": "Camembert"}
    name = f"{classes.get(kind, 'Marian')}Tokenizer"
    reference = getattr(transformers, name).from_pretrained(str(directory))
    tok = open_tokenizer(directory)
    for text, ids in zip(TEXTS, tok.encode_batch(TEXTS), strict=True):
        assert ids.tolist() == reference.encode(text, add_special_tokens=False), text
    one, two = tok.encode("fox").tolist(), tok.encode("the").tolist()
    whole = [*tok.prefix_ids, *one, *tok.suffix_ids]
    pair = [*tok.prefix_ids, *one, *tok.pair_ids, *two, *tok.suffix_ids]
    assert reference.encode("fox") == whole and reference.encode("fox", "the") == pair


@pytest.mark.parametrize("kind", ["t5", "marian"])
def test_save_and_load(kind, request, tmp_path):
    directory = request.getfixturevalue(kind)
    tok = open_tokenizer(directory)
    tok.save(tmp_path / "saved")
    for file in directory.iterdir():
        if file.name != "config.json":
            assert (tmp_path / "saved" / file.name).read_bytes() == file.read_bytes()
    shutil.rmtree(directory)
    loaded = load_tokenizer(tmp_path / "saved")
    given = open_tokenizer(tmp_path / "saved")
    sent = pickle.loads(pickle.dumps(loaded))
    for other in (loaded, given, sent):
        assert other.fingerprint() == tok.fingerprint()
        assert other.special_ids() == tok.special_ids()
        other.suffix_ids += (1,)
        assert other.fingerprint() != tok.fingerprint()
        for text in ODD:
            ids = other.encode(text)
            np.testing.assert_array_equal(ids, tok.encode(text))
            assert other.decode(ids) == tok.decode(ids)


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        ("t5", {"spiece.model": b"nonsense"}, r"spiece\.model: .*not a SentencePiece"),
        (
            "t5",
            {"config.json": {"model_type": "albert"}},
            r"spiece\.model of 'albert'",
        ),
        ("marian", {"target.spm": b"x"}, r"target\.spm: .*not a SentencePiece"),
        ("marian", {"vocab.json": {"a": 0}}, r"vocab\.json: .*has no '<unk>'"),
        ("marian", {"vocab.json": {"a": "b"}}, r"vocab\.json: .*not a vocabulary"),
        (
            "marian",
            {"tokenizer_config.json": {"separate_vocabs": True}},
            "separate_vocabs",
        ),
    ],
)
def test_damaged_files_are_one_line_errors(kind, files, message, request):
    directory = write(request.getfixturevalue(kind), files)
    with pytest.raises(UserError, match=message) as error:
        open_tokenizer(directory)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("source.model", "saved: not a SentencePiece"),
        ("pieces.json", r"pieces\.json: not JSON"),
    ],
)
def test_a_damaged_workdir(t5, name, message, tmp_path):
    open_tokenizer(t5).save(tmp_path / "saved")
    (tmp_path / "saved" / name).write_bytes(b"nonsense")
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path / "saved")


def test_a_model_file_is_used_with_its_settings(t5):
    assert (
        open_tokenizer(t5 / "spiece.model").special_ids()
        == open_tokenizer(t5).special_ids()
    )
    assert find_tokenizer(t5).kind == "tokenizers"
