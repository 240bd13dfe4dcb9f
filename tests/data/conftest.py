import hashlib
import random

import numpy as np
import pytest

from lmjax.data.stores import token_store_builder
from lmjax.data.stores.token_store_builder import build_token_store
from lmjax.data.tokenizers.plain import Bytes


class Texts(list):
    """Documents in memory."""

    def size(self, index):
        return len(self[index].encode())

    def fingerprint(self):
        return hashlib.sha256(repr(list(self)).encode()).hexdigest()


@pytest.fixture(scope="session")
def texts():
    return Texts


@pytest.fixture
def random_texts():
    def make(*, seed, count, longest):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(0, longest, count)
        return Texts("".join(map(chr, rng.integers(97, 123, n))) for n in lengths)

    return make


@pytest.fixture
def set_num_shards(monkeypatch):
    """Have small stores of more than one shard."""

    def set_number(number):
        choose = lambda documents: min(number, len(documents))
        monkeypatch.setattr(token_store_builder, "choose_num_shards", choose)

    return set_number


@pytest.fixture
def make_store(tmp_path, set_num_shards):
    def make(documents, *, num_shards=3, name="store"):
        set_num_shards(num_shards)
        return build_token_store(
            tmp_path / name,
            documents=Texts(documents),
            tokenizer=Bytes(bos=True),
            num_workers=1,
        )

    return make


@pytest.fixture
def corpus(tmp_path):
    """A glob of 40 small files."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    for i in range(40):
        (directory / f"{i:02}.txt").write_text(f"document {i}\n" + f"  line {i}\n" * i)
    return str(directory / "*.txt")


ODD = [
    "",
    " ",
    "\n\t  two  spaces\r\n",
    "\x00\x01\x7f\x80\ufeff\u200b\u202e\u2028\u0085",
    "e\u0301 é ﬁ Ａ ① İ ß ǅ",
    "日本語 हिन्दी العربية 한국어 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "don't we'll I'M  ##ing ## a-b_c 3.14",
    "[CLS] a [MASK]b [SEP] [mask] <s> <mask> </s><|endoftext|> x",
    "\U0010ffff\ufffd\ue000\U0001d54f",
    "a" * 150,
]


@pytest.fixture(scope="session")
def odd_texts():
    """Ten difficult texts, and 300 of random characters."""
    rng = random.Random(0)
    ranges = [(32, 127), (97, 123), (0, 32), (0x80, 0x300), (0x300, 0x370)]
    ranges += [(0x600, 0x700), (0x2000, 0x2070), (0x4E00, 0x4F00), (0xAC00, 0xAD00)]
    ranges += [(0xE000, 0xE100), (0xFFF0, 0x10000), (0x1F300, 0x1F600)]
    drawn = [rng.choices(ranges, k=rng.randrange(40)) for _ in range(300)]
    return ODD + ["".join(chr(rng.randrange(*r)) for r in text) for text in drawn]


@pytest.fixture(autouse=True)
def copies(tmp_path_factory, monkeypatch):
    """Copies of compressed and rewritten files are of one test."""
    directory = tmp_path_factory.mktemp("copies")
    monkeypatch.setenv("LMJAX_CACHE_DIR", str(directory))
    return directory
