"""Files of word vectors: three formats, and one-line errors."""

import gzip

import numpy as np
import pytest

from lmjax.data.tokenizers.word_vectors import WordVectors
from lmjax.errors import UserError

WORDS = ["the", ",", "naïve", "\x85", "2.5", "x"]
LEAF = "config.init_embedding_from"


def vectors(dim=4):
    rng = np.random.default_rng(0)
    return rng.standard_normal((len(WORDS), dim)).astype(np.float32)


def glove(table):
    rows = zip(WORDS, table.tolist(), strict=True)
    return "".join(f"{w} {' '.join(map(str, row))}\n" for w, row in rows).encode()


def word2vec(table, *, end=" \n"):
    head = f"{len(table)} {table.shape[1]}\n".encode()
    return head + glove(table).replace(b"\n", end.encode())


def binary(table, *, end=b"\n"):
    head = f"{len(table)} {table.shape[1]}\n".encode()
    rows = zip(WORDS, table, strict=True)
    return head + b"".join(w.encode() + b" " + row.tobytes() + end for w, row in rows)


FORMATS = {
    "gzip": lambda v: gzip.compress(glove(v)),
    "glove": glove,
    "tabs": lambda table: glove(table).replace(b" ", b"\t"),
    "crlf": lambda table: glove(table).replace(b"\n", b"\r\n"),
    "word2vec": word2vec,
    "word2vec_crlf": lambda table: word2vec(table, end="\r\n"),
    "binary": binary,
    "binary_without_line_ends": lambda table: binary(table, end=b""),
}


@pytest.fixture
def opened(tmp_path):
    def make(content):
        path = tmp_path / "vectors"
        path.write_bytes(content)
        return WordVectors(str(path), leaf=LEAF)

    return make


@pytest.mark.parametrize("dim", [1, 4, 50])
@pytest.mark.parametrize("form", FORMATS)
def test_each_format_gives_the_same(opened, form, dim):
    file, table = opened(FORMATS[form](vectors(dim))), vectors(dim)
    assert file.dim == dim
    assert list(file.words()) == WORDS
    found = dict(file.select(lambda word: word != ","))
    assert list(found) == [word for word in WORDS if word != ","]
    for word, vector in found.items():
        assert vector.dtype == np.float32
        np.testing.assert_array_equal(vector, table[WORDS.index(word)])


def test_only_wanted_vectors_are_parsed(opened):
    file = opened(b"a 1 2\nb x y\nc 3 4\n")
    assert [word for word, _ in file.select(lambda word: word != "b")] == ["a", "c"]
    with pytest.raises(UserError, match=r"vectors:2: 'b' is followed by .*number"):
        list(file.select(lambda word: True))


def test_a_word_may_contain_spaces(opened):
    file = opened(b"a 1 2\n. . . 3 4\nat x@y.z 5 6\n")
    assert [*file.words()] == ["a", ". . .", "at x@y.z"]
    assert dict(file.select(". . .".__eq__))[". . ."].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"a 1 2\nb 1\n", "vectors:2: 1 numbers, where others have 2"),
        (b"a 1 2\nb 1 2 3\n", "vectors:2: 3 numbers, where others have 2"),
        (b"a 1 2\n\nb 1 2\n", "vectors:2: 0 numbers, where others have 2"),
        (b"a 1 2\nb 1 nan\n", "vectors:2: 'b' has a number that is not finite"),
        (b"3 2\na 1 2\nb 1\n", "vectors:3: 1 numbers, where others have 2"),
        (b"3 2\na 1 2\nb 1 2\n", "vectors:3: the file ends after 2 of 3 words"),
        (binary(vectors())[:-2], "vectors: word 6: the file ends within this word"),
        (binary(vectors())[:-40], "vectors: word 5: the file ends within this word"),
    ],
)
def test_errors_name_the_line(opened, content, why):
    """When it is read, and when the whole file is checked."""
    file = opened(content)
    for read in (lambda: list(file.select(lambda word: True)), file.check):
        with pytest.raises(UserError) as error:
            read()
        assert str(error.value).startswith(LEAF)
        assert why in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", FORMATS)
def test_a_valid_file_passes_the_check(opened, form):
    opened(FORMATS[form](vectors(50))).check()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"a\nb\n",
        b"3 4\n",
        binary(vectors(0))[:4],
        b'{"text": "a good film"}\n',
        b"the,1,2\na,1,2\n",
        b"A text of words .\n",
        b"PK\x03\x04\n" + bytes(30),
        b"\x00" * 100,
        b"\x80\x02}q\x00 (X\x05 \n",
    ],
)
def test_other_kinds_of_files_are_refused(opened, content):
    why = rf"{LEAF} = '.*vectors': must begin with a word and numbers"
    with pytest.raises(UserError, match=why):
        opened(content)


def test_a_wrong_dim_and_a_missing_file(opened, tmp_path):
    file = opened(word2vec(vectors()))
    file.check_dim(4)
    with pytest.raises(UserError, match=r"vectors:1: vectors of 4 .*model\.dim = 8"):
        file.check_dim(8)
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=rf"{LEAF} = .*cannot be read: "):
            WordVectors(str(path), leaf=LEAF)
