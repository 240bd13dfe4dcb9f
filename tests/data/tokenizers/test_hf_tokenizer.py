"""Tokenizers of the `tokenizers` library: small ones trained here and two real ones."""

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
from lmjax.generate.text_stream import TextStream

tokenizers = pytest.importorskip("tokenizers", reason="needs lmjax[hf]")

DATA = Path("~/.cache/lmjax-data").expanduser()
MINILM, GPT2 = DATA / "minilm", DATA / "gpt2bpe"


def open_tokenizer(path, **options):
    config = TokenizerConfig(kind="tokenizers", path=str(path), **options)
    return make_tokenizer(config, documents=None, seed=0)


def encode_plain(core, text):
    return core.encode(text, add_special_tokens=False).ids


def write(directory, **files):
    """Write files; `vocab__txt` is vocab.txt, and all but strings is JSON."""
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


def test_wordpiece(bert):
    tok = open_tokenizer(bert)
    assert tok.vocab_size == vocab_size(find_tokenizer(bert)) == 17
    pieces = [tok.id_to_piece(i) for i in tok.encode("UNWANTED é fox, [MASK]x")]
    assert pieces == ["un", "##want", "##ed", "e", "fox", ",", "[MASK]", "[UNK]"]
    assert tok.decode([2, *tok.encode("unwanted, fox."), 3, 0]) == "unwanted, fox."
    assert (tok.bos_id, tok.eos_id, tok.pad_id, tok.mask_id) == (2, 3, 0, 4)
    assert (tok.prefix_ids, tok.suffix_ids, tok.pair_ids) == ((2,), (3,), (3,))
    assert tok.stop_ids == (3,) and tok.sentinel_ids == ()
    expected = [not piece.startswith("##") for piece in WORD_PIECES.split()]
    assert tok.word_starts().tolist() == expected


def test_settings_of_wordpiece(bert):
    write(bert, tokenizer_config__json={"do_lower_case": False})
    assert open_tokenizer(bert).encode("É é A").tolist() == [15, 14, 16]
    write(bert, tokenizer_config__json={"strip_accents": False})
    assert open_tokenizer(bert).encode("É é A").tolist() == [14, 14, 12]
    write(bert, tokenizer_config__json={"tokenize_chinese_chars": False})
    assert open_tokenizer(bert).encode("a的").tolist() == [1]
    write(bert, tokenizer_config__json={})
    assert open_tokenizer(bert).encode("a的").tolist() == [12, 1]


def test_unicode_line_separators_in_a_vocabulary(bert):
    pieces = [*WORD_PIECES.split(), "x\u2028", "\u0085y", "last"]
    write(bert, vocab__txt="\r\n".join(pieces))
    tok = open_tokenizer(bert)
    assert tok.vocab_size == len(pieces)
    assert tok.encode("last").tolist() == [len(pieces) - 1]


def test_byte_level_of_gpt2(gpt2, odd_texts):
    tok = open_tokenizer(gpt2)
    end = tok.encode("<|endoftext|>").tolist()
    assert (tok.bos_id, [tok.eos_id], tok.pad_id) == (None, end, 0)
    assert tok.prefix_ids == tok.suffix_ids == tok.pair_ids == ()
    for text, ids in zip(odd_texts, tok.encode_batch(odd_texts), strict=True):
        assert tok.decode(ids) == text.replace("<|endoftext|>", "").replace("<pad>", "")
        np.testing.assert_array_equal(tok.encode(text), ids)
    assert len(tok.encode(" the")) < len(tok.encode("Xthe"))
    starts = {tok.id_to_piece(i): s for i, s in enumerate(tok.word_starts())}
    assert starts["Ġthe"] and starts["Ċ"] and starts["<|endoftext|>"]
    assert not starts["he"] and not starts["x"]


def test_byte_level_of_roberta(tmp_path, byte_level):
    vocab, merges = byte_level
    pieces = sorted(vocab.keys() - {"<|endoftext|>"}, key=vocab.get)
    vocab = {piece: i for i, piece in enumerate(pieces)}
    roberta = write(
        tmp_path / "roberta", vocab__json=vocab, merges__txt="\n".join(merges)
    )
    tok = open_tokenizer(roberta)
    ids = (tok.bos_id, tok.eos_id, tok.pad_id, tok.mask_id)
    assert ids == (0, 2, 1, 4)
    assert (tok.prefix_ids, tok.suffix_ids, tok.pair_ids) == ((0,), (2,), (2, 2))
    # The mask token includes the space before it.
    assert tok.encode("fox <mask>").tolist() == [*tok.encode("fox"), 4]
    write(roberta, tokenizer_config__json={"add_prefix_space": True})
    assert open_tokenizer(roberta).encode("the").tolist() == tok.encode(" the").tolist()


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_against_transformers(kind, request, odd_texts):
    transformers = pytest.importorskip("transformers")
    directory = request.getfixturevalue(kind)
    name = {"bert": "BertTokenizer", "gpt2": "GPT2Tokenizer"}[kind]
    reference = getattr(transformers, name).from_pretrained(str(directory))
    tok = open_tokenizer(directory)
    for text in odd_texts:
        expected = reference.encode(text, add_special_tokens=False)
        assert tok.encode(text).tolist() == expected
    one, two = tok.encode("fox").tolist(), tok.encode("the").tolist()
    whole = [*tok.prefix_ids, *one, *tok.suffix_ids]
    pair = [*tok.prefix_ids, *one, *tok.pair_ids, *two, *tok.suffix_ids]
    assert reference.encode("fox") == whole and reference.encode("fox", "the") == pair


def write_llama(tmp_path, byte_level, **files):
    """Write a tokenizer.json with <s> before a text, truncation and padding."""
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


def test_tokenizer_json(tmp_path, byte_level):
    directory = write_llama(tmp_path, byte_level)
    tok = open_tokenizer(directory)
    assert len(tok.encode("x" * 50)) == 50 and len(tok.encode("x")) == 1
    assert (tok.bos_id, tok.eos_id, tok.pad_id) == (0, 2, 1)
    assert (tok.prefix_ids, tok.suffix_ids, tok.pair_ids) == ((0,), (), (0,))
    assert (
        open_tokenizer(directory / "tokenizer.json").special_ids() == tok.special_ids()
    )
    without = open_tokenizer(directory, bos=False)
    assert without.bos_id is None and without.prefix_ids == ()


@pytest.mark.parametrize("add", [True, False])
def test_the_ids_around_a_text_are_those_of_tokenizer_json(tmp_path, byte_level, add):
    """As in transformers 5, which drops both settings where there is such a file."""
    settings = {"bos_token": "<s>", "eos_token": "</s>"}
    settings |= {"add_bos_token": add, "add_eos_token": add}
    tok = open_tokenizer(
        write_llama(tmp_path, byte_level, tokenizer_config__json=settings)
    )
    assert (tok.prefix_ids, tok.suffix_ids, tok.bos_id) == ((0,), (), 0)


def test_padding_of_tokenizer_json(tmp_path, byte_level):
    directory = write_llama(tmp_path, byte_level)
    file = directory / "tokenizer.json"
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_type_id": 0}
    padding |= {"pad_to_multiple_of": None, "pad_id": 2, "pad_token": "</s>"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding": padding}))
    assert open_tokenizer(directory).pad_id == 2
    (directory / "tokenizer_config.json").write_text('{"pad_token": "<s>"}')
    assert open_tokenizer(directory).pad_id == 0


WORDS = ["[UNK]", "the", "fox", "'", "s", "n't", ".", ","]


def write_words(tmp_path, **settings):
    """Write a tokenizer of whole words, which are decoded with spaces between."""
    vocab = {word: i for i, word in enumerate(WORDS)}
    model = tokenizers.models.WordLevel(vocab, unk_token="[UNK]")
    core = tokenizers.Tokenizer(model)
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return write(
        tmp_path / "words",
        tokenizer__json=core.to_str(),
        tokenizer_config__json=settings,
    )


def test_spaces_are_cleaned_up_where_the_settings_say_so(tmp_path, gpt2):
    key = "clean_up_tokenization_spaces"
    spaced, clean = "the fox n't , ' s .", "the foxn't,'s."
    for setting, expected in ((None, spaced), (False, spaced), (True, clean)):
        directory = write_words(tmp_path, **{key: setting})
        tok = open_tokenizer(directory)
        assert tok.decode(tok.encode(spaced)) == expected
        tok.save(tmp_path / "saved")
        again = load_tokenizer(tmp_path / "saved")
        assert again.decode(tok.encode(spaced)) == expected
        assert again.fingerprint() == tok.fingerprint()
    stream = TextStream(tok, [])  # as the pieces come
    pieces = [stream.add(int(i)) for i in tok.encode("the fox ' s n't fox ' the '")]
    assert "".join([*pieces, stream.rest()]) == "the fox'sn't fox'the '"
    write(gpt2, tokenizer_config__json={key: True})  # BPE keeps its spaces
    tok = open_tokenizer(gpt2)
    assert tok.decode(tok.encode("a , b")) == "a , b"


def test_classes_that_are_not_heeded_are_told(tmp_path, caplog):
    code = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    for settings, told in (
        ({"auto_map": code}, "tokenization_own"),
        ({"tokenizer_class": "DebertaTokenizerFast"}, "'DebertaTokenizerFast'"),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, ""),
        ({"tokenizer_class": "TokenizersBackend", "auto_map": {}}, ""),
        ({}, ""),
    ):
        caplog.clear()
        open_tokenizer(write_words(tmp_path, **settings))
        assert told in caplog.text and bool(told) == bool(caplog.records)


def test_several_stop_ids(tmp_path, byte_level):
    directory = write_llama(
        tmp_path,
        byte_level,
        config__json={"eos_token_id": 2, "pad_token_id": 10**6},
        generation_config__json={"eos_token_id": [4, 2, 10**6]},
    )
    tok = open_tokenizer(directory)
    assert (tok.eos_id, tok.stop_ids) == (4, (4, 2))
    write(directory, special_tokens_map__json={"eos_token": "</s>"})
    tok = open_tokenizer(directory)
    assert (tok.eos_id, tok.stop_ids) == (2, (2, 4))
    assert tok.pad_id == 1
    assert tok.decode([0, *tok.encode("fox"), 4, 2, 1]) == "fox"


def test_sentinels_and_added_tokens(gpt2):
    size = open_tokenizer(gpt2).vocab_size
    added = {f"<extra_id_{i}>": size + 1 - i for i in range(2)}
    write(gpt2, added_tokens__json=added)
    tok = open_tokenizer(gpt2, num_sentinels=2)
    assert tok.vocab_size == size + 2
    assert tok.sentinel_ids == (size + 1, size)
    assert tok.encode("<extra_id_1>x")[0] == size
    write(gpt2, added_tokens__json={"x y": size + 5})
    with pytest.raises(UserError, match=rf"'x y' .*{size + 5}"):
        open_tokenizer(gpt2)
    write(gpt2, added_tokens__json=added)
    with pytest.raises(UserError, match=r"num_sentinels = 3: .*gpt2 has 2$"):
        open_tokenizer(gpt2, num_sentinels=3)
    with pytest.raises(UserError, match=r"mask = True: .*gpt2 has no mask token"):
        open_tokenizer(gpt2, mask=True)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_save_and_load(kind, request, tmp_path, corpus, odd_texts, set_num_shards):
    directory = request.getfixturevalue(kind)
    write(directory, tokenizer_config__json={"model_max_length": 7})
    tok = open_tokenizer(directory)
    tok.save(tmp_path / "saved")
    for file in directory.iterdir():
        assert (tmp_path / "saved" / file.name).read_bytes() == file.read_bytes()
    shutil.rmtree(directory)
    loaded = load_tokenizer(tmp_path / "saved")
    loaded.save(tmp_path / "again")
    again = open_tokenizer(
        tmp_path / "again"
    )  # a saved tokenizer can be used as a directory
    sent = pickle.loads(pickle.dumps(loaded))
    for other in (loaded, again, sent):
        assert other.fingerprint() == tok.fingerprint()
        assert other.special_ids() == tok.special_ids()
        assert other.vocab_size == tok.vocab_size
        for text in odd_texts[:10]:
            np.testing.assert_array_equal(other.encode(text), tok.encode(text))
    assert again.files == tok.files
    assert open_tokenizer(tmp_path / "again", bos=False).bos_id is None
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
        assert store.read(0, store.num_tokens)[-1] == tok.eos_id


def test_pickles_leave_out_original_files(gpt2):
    write(gpt2, chat_template__jinja="x" * 10**6)
    tok = open_tokenizer(gpt2)
    assert len(tok.files["chat_template.jinja"]) == 10**6
    assert len(pickle.dumps(tok)) < len(tok.serialized) + 2000


def test_fingerprints_depend_on_the_settings(bert, gpt2):
    first = open_tokenizer(bert).fingerprint()
    assert (
        first
        == open_tokenizer(bert).fingerprint()
        != open_tokenizer(gpt2).fingerprint()
    )
    write(bert, tokenizer_config__json={"do_lower_case": False})
    assert open_tokenizer(bert).fingerprint() != first
    before = open_tokenizer(gpt2).fingerprint()
    write(gpt2, tokenizer_config__json={"eos_token": "<pad>"})
    assert open_tokenizer(gpt2).fingerprint() != before


def test_fingerprints_depend_on_the_template(bert):
    tok = open_tokenizer(bert)
    assert open_tokenizer(bert, bos=False).fingerprint() != tok.fingerprint()
    tok.suffix_ids += tok.prefix_ids
    assert tok.fingerprint() != open_tokenizer(bert).fingerprint()


def test_a_wrong_vocab_size(bert):
    assert open_tokenizer(bert, vocab_size=17).vocab_size == 17
    with pytest.raises(UserError, match=r"vocab_size = 16: .*bert has 17$"):
        open_tokenizer(bert, vocab_size=16)


def test_missing_tokenizers(tmp_path):
    assert find_tokenizer(tmp_path) is None
    assert find_tokenizer(tmp_path / "none") is None
    with pytest.raises(
        UserError, match=r"config\.tokenizer\.path = .*: holds no tokenizer"
    ):
        open_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"vocab\.txt': .*No such"):
        open_tokenizer(tmp_path / "vocab.txt")
    with pytest.raises(UserError, match=r"config\.tokenizer\.path = .*none'"):
        open_tokenizer(tmp_path / "none")


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        ("bert", {"vocab__txt": "a\nb"}, r"vocab\.txt: .*: has no '\[UNK\]'"),
        ("bert", {"tokenizer_config__json": "{"}, r"_config\.json:1: not JSON"),
        ("bert", {"tokenizer_config__json": "[]"}, r"_config\.json: .*not a JSON obj"),
        ("bert", {"tokenizer__json": "{}"}, r"tokenizer\.json: not a tokenizer\.json"),
        ("bert", {"config__json": {"model_type": "mpnet"}}, r"vocab\.txt of 'mpnet'"),
        ("gpt2", {"vocab__json": {"a": "b"}}, r"vocab\.json: .*: not a vocabulary"),
        ("gpt2", {"vocab__json": {"a": 1}}, r"vocab\.json: .*: not a byte-level"),
        ("gpt2", {"merges__txt": "a b c"}, r"merges\.txt: .*'a b c'"),
        (
            "gpt2",
            {"tokenizer_config__json": {"tokenizer_class": "Qwen2TokenizerFast"}},
            r"vocab\.json of 'qwen2'",
        ),
        *(
            ("gpt2", {"tokenizer_config__json": settings}, rf"_config\.json: .*{text}")
            for settings, text in (
                ({"added_tokens_decoder": {"x": "<x>"}}, "added_tokens_decoder = "),
                ({"added_tokens_decoder": ["<x>"]}, "added_tokens_decoder = "),
                ({"added_tokens_decoder": {"5": {}}}, "added_tokens_decoder = "),
                ({"additional_special_tokens": "<x>"}, "additional_special_tok"),
                ({"add_bos_token": "false"}, "add_bos_token = 'false'"),
                ({"clean_up_tokenization_spaces": 1}, "spaces = 1: expected true"),
                ({"eos_token": 3}, "eos_token = 3: expected a text"),
                ({"extra_ids": "5"}, "extra_ids = '5': expected a whole number"),
                ({"tokenizer_class": 3}, "tokenizer_class = 3: expected a text"),
            )
        ),
        ("gpt2", {"added_tokens__json": {"<x>": "y"}}, r"added_tokens\.json: .*'<x>'"),
        (
            "gpt2",
            {"special_tokens_map__json": {"eos_token": []}},
            r"_map\.json: .*\[\]",
        ),
    ],
)
def test_damaged_files_are_one_line_errors(kind, files, message, request):
    directory = write(request.getfixturevalue(kind), **files)
    with pytest.raises(UserError, match=message) as error:
        open_tokenizer(directory)
    assert "\n" not in str(error.value)


def test_a_vocabulary_that_is_not_utf8(bert):
    (bert / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"vocab\.txt: .*: not UTF-8"):
        open_tokenizer(bert)


def test_a_damaged_workdir(bert, tmp_path):
    open_tokenizer(bert).save(tmp_path / "saved")
    (tmp_path / "saved" / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"vocab\.txt: .*No such"):
        load_tokenizer(tmp_path / "saved")
    (tmp_path / "saved" / MANIFEST).write_text('{"kind": "tokenizers"}')
    with pytest.raises(UserError, match=rf"{MANIFEST}: .*special"):
        load_tokenizer(tmp_path / "saved")


def test_without_the_library(bert, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'lmjax\[hf\]'"):
        open_tokenizer(bert)


@pytest.mark.skipif(not MINILM.exists(), reason="needs MiniLM's files")
def test_the_vocabulary_of_bert(odd_texts):
    """Compare the converted vocab.txt with the tokenizer.json of the same directory."""
    reference = tokenizers.Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    reference.no_truncation()
    reference.no_padding()
    whole, converted = open_tokenizer(MINILM), open_tokenizer(MINILM / "vocab.txt")
    assert whole.special_ids() == converted.special_ids()
    assert (whole.bos_id, whole.eos_id, whole.mask_id) == (101, 102, 103)
    assert whole.vocab_size == converted.vocab_size == 30_522
    np.testing.assert_array_equal(whole.word_starts(), converted.word_starts())
    for tok in (whole, converted):
        for text, ids in zip(odd_texts, tok.encode_batch(odd_texts), strict=True):
            assert ids.tolist() == encode_plain(reference, text)
            assert tok.decode(ids) == reference.decode(ids)


@pytest.mark.skipif(not GPT2.exists(), reason="needs GPT-2's vocabulary")
def test_the_vocabulary_of_gpt2(tmp_path, odd_texts):
    transformers = pytest.importorskip("transformers")
    shutil.copy(GPT2 / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(GPT2 / "vocab.bpe", tmp_path / "merges.txt")
    reference = transformers.GPT2Tokenizer.from_pretrained(str(tmp_path))
    tok = open_tokenizer(GPT2)
    assert tok.fingerprint() == open_tokenizer(tmp_path).fingerprint()
    assert (tok.vocab_size, tok.bos_id, tok.eos_id) == (50_257, None, 50_256)
    assert tok.encode("Hello world").tolist() == [15496, 995]
    for text in odd_texts:
        ids = tok.encode(text)
        assert ids.tolist() == reference.encode(text)
        assert tok.decode(ids) == text.replace("<|endoftext|>", "")
