"""Tokenizers of the `tokenizers` library, small ones built here and two real ones."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from lmjax.config.data import SourceConfig
from lmjax.config.tokenizer import TokenizerConfig
from lmjax.data.sources.registry import open_splits
from lmjax.data.stores.token_store_builder import build_token_store
from lmjax.data.tokenizers.files import MANIFEST
from lmjax.data.tokenizers.tokenizer import (
    find_tokenizer,
    load_tokenizer,
    make_tokenizer,
    vocab_size,
)
from lmjax.errors import UserError

tokenizers = pytest.importorskip("tokenizers", reason="needs lmjax[hf]")

DATA = Path("~/.cache/lmjax-data").expanduser()
MINILM, GPT2 = DATA / "minilm", DATA / "gpt2bpe"


def make(path, **options):
    config = TokenizerConfig(kind="tokenizers", path=str(path), **options)
    return make_tokenizer(config, documents=None, seed=0)


def encode_plain(core, text):
    return core.encode(text, add_special_tokens=False).ids


def write(directory, **files):
    """Write files; `vocab__txt` stands for vocab.txt, and what is not text is JSON."""
    directory.mkdir(exist_ok=True)
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (directory / name.replace("__", ".")).write_text(text, newline="")
    return directory


WORD_PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] un ##want ##ed the fox , . a e é É A"


@pytest.fixture
def bert(tmp_path):
    vocab = "\n".join(WORD_PIECES.split()) + "\n"
    return write(tmp_path / "bert", vocab__txt=vocab)


@pytest.fixture(scope="module")
def byte_level():
    """Return a trained byte-level vocabulary and its merges."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=alphabet,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>", "<mask>"],
        show_progress=False,
    )
    core.train_from_iterator(["the quick brown fox, the lazy dogs\n"] * 50, trainer)
    model = json.loads(core.to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return model["vocab"], merges


@pytest.fixture
def gpt2(tmp_path, byte_level):
    vocab, merges = byte_level
    pieces = sorted(vocab.keys() - {"<s>", "</s>", "<mask>", "<unk>"}, key=vocab.get)
    vocab = {piece: i for i, piece in enumerate(pieces)}
    text = "\n".join(["#version: 0.2", *merges]) + "\n"
    return write(tmp_path / "gpt2", vocab__json=vocab, merges__txt=text)


def test_word_pieces(bert):
    made = make(bert)
    assert made.vocab_size == vocab_size(find_tokenizer(bert)) == 17
    pieces = [made.id_to_piece(i) for i in made.encode("UNWANTED é fox, [MASK]x")]
    assert pieces == ["un", "##want", "##ed", "e", "fox", ",", "[MASK]", "[UNK]"]
    assert made.decode([2, *made.encode("unwanted, fox."), 3, 0]) == "unwanted, fox."
    assert (made.bos_id, made.eos_id, made.pad_id, made.mask_id) == (2, 3, 0, 4)
    assert (made.prefix_ids, made.suffix_ids, made.pair_ids) == ((2,), (3,), (3,))
    assert made.stop_ids == (3,) and made.sentinel_ids == ()
    expected = [not piece.startswith("##") for piece in WORD_PIECES.split()]
    assert made.word_starts().tolist() == expected


def test_settings_of_word_pieces(bert):
    write(bert, tokenizer_config__json={"do_lower_case": False})
    assert make(bert).encode("É é A").tolist() == [15, 14, 16]
    write(bert, tokenizer_config__json={"strip_accents": False})
    assert make(bert).encode("É é A").tolist() == [14, 14, 12]
    write(bert, tokenizer_config__json={"tokenize_chinese_chars": False})
    assert make(bert).encode("a的").tolist() == [1]
    write(bert, tokenizer_config__json={})
    assert make(bert).encode("a的").tolist() == [12, 1]


def test_lines_of_a_vocabulary_end_only_at_line_ends(bert):
    pieces = [*WORD_PIECES.split(), "x\u2028", "\u0085y", "last"]
    write(bert, vocab__txt="\r\n".join(pieces))
    made = make(bert)
    assert made.vocab_size == len(pieces)
    assert made.encode("last").tolist() == [len(pieces) - 1]


def test_byte_level_as_gpt2(gpt2, odd_texts):
    made = make(gpt2)
    end = made.encode("<|endoftext|>").tolist()
    assert (made.bos_id, [made.eos_id], made.pad_id) == (None, end, 0)
    assert made.prefix_ids == made.suffix_ids == made.pair_ids == ()
    for text, ids in zip(odd_texts, made.encode_batch(odd_texts), strict=True):
        assert made.decode(ids) == text.replace("<|endoftext|>", "").replace(
            "<pad>", ""
        )
        np.testing.assert_array_equal(made.encode(text), ids)
    assert len(made.encode(" the")) < len(made.encode("Xthe"))
    starts = {made.id_to_piece(i): s for i, s in enumerate(made.word_starts())}
    assert starts["Ġthe"] and starts["Ċ"] and starts["<|endoftext|>"]
    assert not starts["he"] and not starts["x"]


def test_byte_level_as_roberta(tmp_path, byte_level):
    vocab, merges = byte_level
    pieces = sorted(vocab.keys() - {"<|endoftext|>"}, key=vocab.get)
    vocab = {piece: i for i, piece in enumerate(pieces)}
    roberta = write(
        tmp_path / "roberta", vocab__json=vocab, merges__txt="\n".join(merges)
    )
    made = make(roberta)
    ids = (made.bos_id, made.eos_id, made.pad_id, made.mask_id)
    assert ids == (0, 2, 1, 4)
    assert (made.prefix_ids, made.suffix_ids, made.pair_ids) == ((0,), (2,), (2, 2))
    # The mask takes the space before it, as a word would.
    assert made.encode("fox <mask>").tolist() == [*made.encode("fox"), 4]
    write(roberta, tokenizer_config__json={"add_prefix_space": True})
    assert make(roberta).encode("the").tolist() == made.encode(" the").tolist()


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_as_transformers_has_it(kind, request, odd_texts):
    transformers = pytest.importorskip("transformers")
    directory = request.getfixturevalue(kind)
    name = {"bert": "BertTokenizer", "gpt2": "GPT2Tokenizer"}[kind]
    theirs = getattr(transformers, name).from_pretrained(str(directory))
    made = make(directory)
    for text in odd_texts:
        expected = theirs.encode(text, add_special_tokens=False)
        assert made.encode(text).tolist() == expected
    one, two = made.encode("fox").tolist(), made.encode("the").tolist()
    whole = [*made.prefix_ids, *one, *made.suffix_ids]
    pair = [*made.prefix_ids, *one, *made.pair_ids, *two, *made.suffix_ids]
    assert theirs.encode("fox") == whole and theirs.encode("fox", "the") == pair


def llama_like(tmp_path, byte_level, **files):
    """Write a tokenizer.json that puts <s> before a text, cuts it short and pads."""
    vocab, merges = byte_level
    merges = [tuple(merge.split(" ")) for merge in merges]
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    core.add_special_tokens(["<s>", "<pad>", "</s>", "<|endoftext|>"])
    core.enable_truncation(4)
    core.enable_padding(length=4)
    return write(tmp_path / "llama", tokenizer__json=core.to_str(), **files)


def test_a_tokenizer_json(tmp_path, byte_level):
    directory = llama_like(tmp_path, byte_level)
    made = make(directory)
    assert len(made.encode("x" * 50)) == 50 and len(made.encode("x")) == 1
    assert (made.bos_id, made.eos_id, made.pad_id) == (0, 2, 1)
    assert (made.prefix_ids, made.suffix_ids, made.pair_ids) == ((0,), (), (0,))
    assert make(directory / "tokenizer.json").special_ids() == made.special_ids()
    without = make(directory, bos=False)
    assert without.bos_id is None and without.prefix_ids == ()


def test_what_begins_a_text_is_as_the_settings_say(tmp_path, byte_level):
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    for bos, eos in ((True, True), (False, False), (None, True)):
        asked = {"add_bos_token": bos, "add_eos_token": eos}
        asked = {key: value for key, value in asked.items() if value is not None}
        directory = llama_like(
            tmp_path, byte_level, tokenizer_config__json=settings | asked
        )
        made = make(directory)
        assert made.prefix_ids == (() if bos is False else (0,))
        assert made.bos_id == (None if bos is False else 0)
        assert made.suffix_ids == ((2,) if eos else ())


def test_several_ids_may_end_a_generation(tmp_path, byte_level):
    directory = llama_like(
        tmp_path,
        byte_level,
        config__json={"eos_token_id": 2, "pad_token_id": 10**6},
        generation_config__json={"eos_token_id": [4, 2, 10**6]},
    )
    made = make(directory)
    assert (made.eos_id, made.stop_ids) == (4, (4, 2))
    write(directory, special_tokens_map__json={"eos_token": "</s>"})
    made = make(directory)
    assert (made.eos_id, made.stop_ids) == (2, (2, 4))
    assert made.pad_id == 1
    assert made.decode([0, *made.encode("fox"), 4, 2, 1]) == "fox"


def test_sentinels_and_added_tokens(gpt2):
    size = make(gpt2).vocab_size
    added = {f"<extra_id_{i}>": size + 1 - i for i in range(2)}
    write(gpt2, added_tokens__json=added)
    made = make(gpt2, num_sentinels=2)
    assert made.vocab_size == size + 2
    assert made.sentinel_ids == (size + 1, size)
    assert made.encode("<extra_id_1>x")[0] == size
    write(gpt2, added_tokens__json={"x y": size + 5})
    with pytest.raises(UserError, match=rf"'x y' has id {size + 5}, but would get"):
        make(gpt2)
    write(gpt2, added_tokens__json=added)
    with pytest.raises(UserError, match=r"num_sentinels = 3: .*gpt2 has 2$"):
        make(gpt2, num_sentinels=3)
    with pytest.raises(UserError, match=r"mask = True: .*gpt2 has no mask token"):
        make(gpt2, mask=True)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_saved_and_loaded(kind, request, tmp_path, corpus, odd_texts, set_num_shards):
    directory = request.getfixturevalue(kind)
    write(directory, tokenizer_config__json={"model_max_length": 7})
    made = make(directory)
    made.save(tmp_path / "kept")
    for file in directory.iterdir():
        assert (tmp_path / "kept" / file.name).read_bytes() == file.read_bytes()
    shutil.rmtree(directory)
    loaded = load_tokenizer(tmp_path / "kept")
    loaded.save(tmp_path / "again")
    again = make(tmp_path / "again")  # a saved one may be given
    sent = pickle.loads(pickle.dumps(loaded))
    for other in (loaded, again, sent):
        assert other.fingerprint() == made.fingerprint()
        assert other.special_ids() == made.special_ids()
        assert other.vocab_size == made.vocab_size
        for text in odd_texts[:10]:
            np.testing.assert_array_equal(other.encode(text), made.encode(text))
    assert again.files == made.files
    assert make(tmp_path / "again", bos=False).bos_id is None
    source = SourceConfig(source="text", path=corpus)
    documents = open_splits(source, splits=("train",))["train"]
    set_num_shards(2)
    for workers in (1, 2):
        store = build_token_store(
            tmp_path / f"store-{workers}",
            documents=documents,
            tokenizer=loaded,
            num_workers=workers,
        )
        assert store.read(0, store.num_tokens)[-1] == made.eos_id


def test_a_pickle_is_small(gpt2):
    write(gpt2, chat_template__jinja="x" * 10**6)
    made = make(gpt2)
    assert len(made.files["chat_template.jinja"]) == 10**6
    assert len(pickle.dumps(made)) < len(made.serialized) + 2000


def test_fingerprints_tell_tokenizers_apart(bert, gpt2):
    first = make(bert).fingerprint()
    assert first == make(bert).fingerprint() != make(gpt2).fingerprint()
    write(bert, tokenizer_config__json={"do_lower_case": False})
    assert make(bert).fingerprint() != first
    before = make(gpt2).fingerprint()
    write(gpt2, tokenizer_config__json={"eos_token": "<pad>"})
    assert make(gpt2).fingerprint() != before


def test_fingerprints_tell_what_stands_around_a_text(bert):
    made = make(bert)
    assert make(bert, bos=False).fingerprint() != made.fingerprint()
    made.suffix_ids += made.prefix_ids
    assert made.fingerprint() != make(bert).fingerprint()


def test_a_size_that_is_not_the_tokenizer_s(bert):
    assert make(bert, vocab_size=17).vocab_size == 17
    with pytest.raises(UserError, match=r"vocab_size = 16: .*bert has 17$"):
        make(bert, vocab_size=16)


def test_nothing_there(tmp_path):
    assert find_tokenizer(tmp_path) is None
    assert find_tokenizer(tmp_path / "none") is None
    with pytest.raises(UserError, match=r"path = .*: holds no tokenizer; looked for"):
        make(tmp_path)
    with pytest.raises(UserError, match=r"vocab\.txt': cannot be read: No such"):
        make(tmp_path / "vocab.txt")
    with pytest.raises(UserError, match=r"must be a directory, or a tokenizer\.json"):
        make(tmp_path / "none")


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        ("bert", {"vocab__txt": "a\nb"}, r"vocab\.txt: .*: has no '\[UNK\]'"),
        ("bert", {"tokenizer_config__json": "{"}, r"_config\.json:1: not JSON"),
        ("bert", {"tokenizer_config__json": "[]"}, r"_config\.json: .*not a JSON obj"),
        ("bert", {"tokenizer__json": "{}"}, r"tokenizer\.json: not a tokenizer"),
        ("bert", {"config__json": {"model_type": "mpnet"}}, r"'mpnet' reads vocab"),
        ("gpt2", {"vocab__json": {"a": "b"}}, r"vocab\.json: .*: not a vocabulary"),
        ("gpt2", {"vocab__json": {"a": 1}}, r"vocab\.json: .*: not a byte-level"),
        ("gpt2", {"merges__txt": "a b c"}, r"merges\.txt: .*two pieces: 'a b c'"),
        (
            "gpt2",
            {"tokenizer_config__json": {"tokenizer_class": "Qwen2TokenizerFast"}},
            r"no tokenizer\.json, and how 'qwen2' reads",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(kind, files, message, request):
    directory = write(request.getfixturevalue(kind), **files)
    with pytest.raises(UserError, match=message) as error:
        make(directory)
    assert "\n" not in str(error.value)


def test_a_vocabulary_that_is_not_text(bert):
    (bert / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"vocab\.txt: .*: not UTF-8"):
        make(bert)


def test_a_damaged_workdir(bert, tmp_path):
    make(bert).save(tmp_path / "kept")
    (tmp_path / "kept" / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"vocab\.txt: cannot be read: No such"):
        load_tokenizer(tmp_path / "kept")
    (tmp_path / "kept" / MANIFEST).write_text('{"kind": "tokenizers"}')
    with pytest.raises(UserError, match=rf"{MANIFEST}: cannot be used.*special"):
        load_tokenizer(tmp_path / "kept")


def test_without_the_library(bert, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'lmjax\[hf\]'"):
        make(bert)


@pytest.mark.skipif(not MINILM.exists(), reason="needs MiniLM's files")
def test_the_vocabulary_of_bert(odd_texts):
    """vocab.txt, read here, is the tokenizer.json that comes with it."""
    theirs = tokenizers.Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    whole, converted = make(MINILM), make(MINILM / "vocab.txt")
    assert whole.special_ids() == converted.special_ids()
    assert (whole.bos_id, whole.eos_id, whole.mask_id) == (101, 102, 103)
    assert whole.vocab_size == converted.vocab_size == 30_522
    np.testing.assert_array_equal(whole.word_starts(), converted.word_starts())
    for made in (whole, converted):
        for text, ids in zip(odd_texts, made.encode_batch(odd_texts), strict=True):
            assert ids.tolist() == encode_plain(theirs, text)
            assert made.decode(ids) == theirs.decode(ids)


@pytest.mark.skipif(not GPT2.exists(), reason="needs GPT-2's vocabulary")
def test_the_vocabulary_of_gpt2(tmp_path, odd_texts):
    transformers = pytest.importorskip("transformers")
    shutil.copy(GPT2 / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(GPT2 / "vocab.bpe", tmp_path / "merges.txt")
    theirs = transformers.GPT2Tokenizer.from_pretrained(str(tmp_path))
    made = make(GPT2)
    assert made.fingerprint() == make(tmp_path).fingerprint()
    assert (made.vocab_size, made.bos_id, made.eos_id) == (50_257, None, 50_256)
    assert made.encode("Hello world").tolist() == [15496, 995]
    for text in odd_texts:
        ids = made.encode(text)
        assert ids.tolist() == theirs.encode(text)
        assert made.decode(ids) == text.replace("<|endoftext|>", "")
