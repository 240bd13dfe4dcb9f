"""Vocabularies of words: splitting, choice of the words, saving and loading."""

import pickle

import pytest

from lmjax.config.tokenizer import TokenizerConfig
from lmjax.data.tokenizers.files import read_manifest
from lmjax.data.tokenizers.tokenizer import (
    load_tokenizer,
    make_tokenizer,
    recipe_fingerprint,
)
from lmjax.errors import UserError

pytest.importorskip("tokenizers")

TEXTS = ["The cat sat. The cat's mat", "the dog didn't sit, did it?", "a cat"]


@pytest.fixture
def make(texts):
    def build(documents=TEXTS, **leaves):
        config = TokenizerConfig(**{"kind": "words", "vocab_size": 99, **leaves})
        return make_tokenizer(config, documents=[texts(documents)], seed=0)

    return build


def words(tokenizer):
    return [tokenizer.id_to_piece(i) for i in range(tokenizer.vocab_size)]


def parts(tokenizer, text):
    return [tokenizer.id_to_piece(i) for i in tokenizer.encode(text)]


def test_the_most_frequent_words_come_first_after_the_special_ones(make):
    tokenizer = make(lowercase=True, mask=True, num_sentinels=1)
    special = ["<unk>", "<s>", "</s>", "<mask>", "<extra_id_0>"]
    assert words(tokenizer)[:7] == [*special, "cat", "the"]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id) == (1, 2, 3)
    assert tokenizer.sentinel_ids == (4,)
    assert (tokenizer.prefix_ids, tokenizer.suffix_ids, tokenizer.pair_ids) == (
        (1,),
        (2,),
        (2,),
    )
    assert words(make(bos=False))[:2] == ["<unk>", "</s>"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's well-tokenizer!", ["It", "'s", "well", "-", "tokenizer", "!"]),
        ("don't CAN'T we'll", ["do", "n't", "CA", "N'T", "we", "'ll"]),
        ("$3.50 or 1,000. 'tis", ["$", "3.50", "or", "1,000", ".", "'", "tis"]),
        ("naïve\u00a0e\u0301t\u0065\n日本", ["naïve", "e\u0301te", "日本"]),
    ],
)
def test_text_is_split_as_in_glove(make, text, expected):
    assert parts(make([text]), text) == expected


def test_white_space_split_keeps_each_word_whole(make):
    given = ["U.S.", "don't", "1996-08-22", "--", "''"]
    tokenizer = make([" ".join(given)], split="white_space")
    assert [len(ids) for ids in tokenizer.encode_batch(given)] == [1] * 5
    assert [parts(tokenizer, word) for word in given] == [[word] for word in given]


def test_lowercase_min_count_and_vocab_size(make):
    assert {"The", "the"} <= set(words(make()))
    assert "The" not in words(make(lowercase=True))
    assert parts(make(lowercase=True), "THE Cat") == ["the", "cat"]
    rare = make(lowercase=True, min_count=2)
    assert set(words(rare)[3:]) == {"cat", "the", "did"}
    assert parts(rare, "the dog") == ["the", "<unk>"]
    assert words(make(lowercase=True, vocab_size=5))[3:] == ["cat", "the"]


def test_stop_words_are_dropped(make, tmp_path):
    tokenizer = make(stop_words="english")
    assert parts(tokenizer, "The cat's mat isn't THE dog") == [
        "cat",
        "mat",
        "n't",
        "dog",
    ]
    assert not {"the", "The", "'s"} & set(words(tokenizer))
    own = tmp_path / "stop.txt"
    own.write_text("cat\n'S\n.\n")
    assert parts(make(stop_words=str(own)), "The Cat's mat.") == ["The", "mat"]


def test_words_of_a_vector_file_are_added(make, tmp_path):
    file = tmp_path / "vectors.txt"
    lines = ["the", "zebra", "Zebra", "well-tokenizer", "yak", "<unk>", "ox"]
    file.write_text("".join(f"{word} 1 2\n" for word in lines))
    small = make(lowercase=True)
    tokenizer = make(lowercase=True, path=str(file))
    assert words(tokenizer) == [*words(small), "zebra", "yak", "ox"]
    assert parts(tokenizer, "A Zebra well-tokenizer gnu")[1] == "zebra"
    capitals = make(path=str(file), split="white_space")
    assert words(capitals)[-5:] == ["zebra", "Zebra", "well-tokenizer", "yak", "ox"]
    size = small.vocab_size + 1
    assert words(make(lowercase=True, path=str(file), vocab_size=size))[-1] == "zebra"
    assert make(lowercase=True, vocab_size=size).vocab_size == size - 1


def test_the_order_of_the_documents_does_not_matter(make):
    tokenizer, again = make(), make(TEXTS[::-1])
    assert tokenizer.serialized == again.serialized
    assert (
        tokenizer.fingerprint()
        == again.fingerprint()
        != make(lowercase=True).fingerprint()
    )


def test_saved_and_loaded(make, tmp_path):
    tokenizer = make(lowercase=True, stop_words="english")
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    for other in (loaded, pickle.loads(pickle.dumps(tokenizer))):
        assert other.fingerprint() == tokenizer.fingerprint()
        assert other.special_ids() == tokenizer.special_ids()
        ids = tokenizer.encode("The cat didn't.")
        assert other.encode("The cat didn't.").tolist() == ids.tolist()
    assert loaded.recipe == tokenizer.recipe != ""
    assert read_manifest(tmp_path)["made_from"] == tokenizer.recipe
    assert (tmp_path / "tokenizer.json").exists()
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == "cat n't ."
    assert tokenizer.word_starts().all()


def test_the_recipe_covers_settings_and_files(texts, tmp_path):
    """Files count by their contents, not by their names."""
    vectors, stop = tmp_path / "vectors.txt", tmp_path / "stop.txt"
    vectors.write_text("a 1\n")
    stop.write_text("a")

    def recipe(**leaves):
        config = TokenizerConfig(
            kind="words", vocab_size=9, path=str(vectors), stop_words=str(stop)
        )
        config = TokenizerConfig(**{**vars(config), **leaves})
        return recipe_fingerprint(config, documents=[texts("a")], seed=0)

    seen = [recipe(), recipe(lowercase=True), recipe(min_count=2)]
    vectors.write_text("b 1\n")
    seen.append(recipe())
    stop.write_text("b")
    seen.append(recipe())
    assert len(set(seen)) == 5
    assert recipe() == recipe()


@pytest.mark.parametrize(
    ("leaves", "why"),
    [
        ({"min_count": 9}, r"vocab_size = 99: leaves no word .*min_count = 9\)"),
        ({"vocab_size": 2}, "vocab_size = 2: leaves no word of the text"),
        ({"stop_words": "englsh"}, r"stop_words = 'englsh': .*did you mean 'english'"),
        ({"path": "nowhere.txt"}, r"tokenizer\.path = 'nowhere.txt': cannot be read"),
    ],
)
def test_errors_name_the_leaf(make, leaves, why):
    with pytest.raises(UserError, match=why):
        make(**leaves)


@pytest.mark.parametrize(
    "text",
    ["这是一个简单的测试，用来检查分词。", "これは簡単なテストです。日本語の文。"]
    + ["ภาษาไทยไม่มีช่องว่างระหว่างคำ"],
)
def test_scripts_without_spaces_are_refused(make, text):
    for split in ("punctuation", "white_space"):
        with pytest.raises(UserError, match=r"tokenizer\.kind = 'words': .*segmenter"):
            make([text] * 3, split=split)


@pytest.mark.parametrize(
    "text",
    [
        "这 是 一个 简单 的 测试 ， 用来 检查 分词 。",
        "これ は 簡単 な テスト です 。",
        "ภาษา ไทย ไม่ มี ช่อง ว่าง",
        "The word 日本語テスト means a test.",
        "한국어 문장은 띄어쓰기가 있습니다.",
    ],
)
def test_separated_words_and_other_scripts_are_not(make, text):
    assert make([text] * 3).vocab_size > 5
