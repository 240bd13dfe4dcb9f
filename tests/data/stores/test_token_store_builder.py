import subprocess
import sys

import numpy as np
import pytest

from lmjax.config.tokenizer import TokenizerConfig
from lmjax.data.sources.documents import split_into_chunks
from lmjax.data.stores import token_store_builder
from lmjax.data.stores.token_store_builder import (
    batch_chunks,
    build_token_store,
    encode_chunks,
    split_document,
)
from lmjax.data.tokenizers.plain import Bytes
from lmjax.data.tokenizers.tokenizer import make_tokenizer


@pytest.mark.parametrize(
    "text", ["", "a", "\n", "ab\ncd ef\n" * 9, "x" * 99, "a b " * 30]
)
@pytest.mark.parametrize("size", [1, 5, 20])
def test_chunks_are_the_text(text, size):
    chunks = list(split_into_chunks(text, size=size))
    assert "".join(chunks) == text
    assert all(0 < len(chunk) <= 2 * size for chunk in chunks) or chunks == [""]


def test_chunks_end_at_line_ends_then_at_spaces():
    assert next(iter(split_into_chunks("aaaaaa\nb\nc", size=4))) == "aaaaaa\n"
    assert next(iter(split_into_chunks("aaaaa bbb ccc", size=4))) == "aaaaa "
    assert list(split_into_chunks("a" * 20, size=4)) == ["a" * 8, "a" * 8, "a" * 4]


def test_splitting_a_document_changes_no_count(
    monkeypatch, set_num_shards, tmp_path, texts, random_texts
):
    documents = texts(
        [
            "",
            "one two\nthree  four" * 5,
            "x" * 50,
            " ",
            *random_texts(seed=0, count=9, longest=90),
        ]
    )
    set_num_shards(2)
    stores = []
    for size in (7, 1 << 20):
        monkeypatch.setattr(token_store_builder, "CHUNK", size)
        stores.append(
            build_token_store(
                tmp_path / str(size),
                documents=documents,
                tokenizer=Bytes(bos=True),
                num_workers=1,
            )
        )
    small, whole = stores
    assert small.counts == whole.counts
    end = whole.num_tokens
    np.testing.assert_array_equal(small.read(0, end), whole.read(0, end))
    starts = [store.document_starts(0, end) for store in stores]
    np.testing.assert_array_equal(*starts)


@pytest.fixture(scope="module")
def trained(texts):
    documents = texts(["def f(x):\n    return x + 1\n\n" * 30, "a few words " * 40])
    config = TokenizerConfig(vocab_size=300)
    return make_tokenizer(config, documents=[documents], seed=0)


def test_ids_do_not_depend_on_batches_or_workers(monkeypatch, trained, tmp_path, texts):
    documents = texts([f"def f{i}(x):\n    return x\n" * 20 for i in range(9)])
    monkeypatch.setattr(token_store_builder, "CHUNK", 64)
    ids = np.concatenate(
        [
            encode_chunks(batch, tokenizer=trained)[0]
            for batch in batch_chunks(documents, range(9))
        ]
    )
    alone = np.concatenate(
        [
            encode_chunks([chunk], tokenizer=trained)[0]
            for text in documents
            for chunk in split_document(text)
        ]
    )
    np.testing.assert_array_equal(ids, alone)
    assert trained.decode(ids) == "".join(documents)


@pytest.mark.slow
def test_a_huge_document_is_encoded_in_little_memory(trained, tmp_path):
    """SentencePiece would take 100 bytes for each of these 28 million."""
    trained.save(tmp_path)
    code = f"""
import resource
from lmjax.data.stores.token_store_builder import batch_chunks, encode_chunks
from lmjax.data.tokenizers.tokenizer import load_tokenizer
tokenizer = load_tokenizer({str(tmp_path)!r})
text = "def f(x):\\n    return x + 1\\n\\n" * 1_000_000
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
for batch in batch_chunks([text], range(1)):
    encode_chunks(batch, tokenizer=tokenizer)
print(peak() - before)
"""
    command = [sys.executable, "-c", code]
    used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(used) < 300_000  # KiB
