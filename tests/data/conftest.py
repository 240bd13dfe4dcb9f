import hashlib

import numpy as np
import pytest

from lmjax.data import store_builder
from lmjax.data.tokenizer import Bytes


class Texts(list):
    """Documents in memory."""

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
def make_store(tmp_path):
    def make(documents, *, num_shards=3, name="store"):
        return store_builder.build_store(
            tmp_path / name,
            documents=Texts(documents),
            tokenizer=Bytes(bos=True),
            num_workers=1,
            num_shards=num_shards,
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
