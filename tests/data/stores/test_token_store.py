import errno
import json
import logging
import multiprocessing
import os
import pickle
import signal

import numpy as np
import pytest

from lmjax.config.data import SourceConfig
from lmjax.data.sources.registry import open_splits
from lmjax.data.stores import token_store_builder
from lmjax.data.stores.store_manifest import MANIFEST
from lmjax.data.stores.token_store import TokenStore
from lmjax.data.stores.token_store_builder import (
    build_shards,
    build_token_store,
    plan_store,
)
from lmjax.data.tokenizers.plain import Bytes
from lmjax.errors import UserError

TOKENIZER = Bytes(bos=True)
EOS = TOKENIZER.eos_id


def stream_of(texts):
    return np.array([t for text in texts for t in [*text.encode(), EOS]], np.int32)


def times(directory):
    return {file.name: file.stat().st_mtime_ns for file in directory.iterdir()}


def open_corpus(corpus):
    config = SourceConfig(source="text", path=corpus, valid_path=corpus)
    return open_splits(config, splits=("train",))["train"]


def test_reads_cross_shards(make_store, random_texts):
    texts = random_texts(seed=0, count=23, longest=8)
    store = make_store(texts, num_shards=5)
    stream = stream_of(texts)
    begins = np.cumsum([0, *(len(text) + 1 for text in texts[:-1])])
    assert store.num_tokens == len(stream)
    for start in range(len(stream) + 1):
        for stop in range(start, len(stream) + 1, 5):
            tokens = store.read(start, stop)
            assert tokens.dtype == np.int32
            np.testing.assert_array_equal(tokens, stream[start:stop])
            inside = begins[(begins >= start) & (begins < stop)]
            np.testing.assert_array_equal(store.document_starts(start, stop), inside)


def test_counts(make_store):
    store = make_store(["", "a b\tc\n d", "é", " "], num_shards=2)
    assert store.num_documents == 4
    assert store.num_bytes == 8 + 2 + 1
    assert store.num_words == 5
    assert store.num_tokens == store.num_bytes + 4


def test_pickles_small(make_store):
    store = make_store(["x" * 100_000])
    data = pickle.dumps(store)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data).read(0, 9), store.read(0, 9))


def test_large_vocabularies_take_four_bytes(tmp_path, texts):
    class Wide(Bytes):
        def __init__(self):
            super().__init__(bos=False)
            self.vocab_size, self.eos_id = 70_000, 69_999

    store = build_token_store(tmp_path, documents=texts(["ab"]), tokenizer=Wide())
    assert store.read(0, 3).tolist() == [97, 98, 69_999]


def test_processes_write_what_one_process_writes(tmp_path, corpus, set_num_shards):
    documents = open_corpus(corpus)
    stores = []
    for num_workers, num_shards in [(1, 1), (3, 5)]:
        set_num_shards(num_shards)
        store = build_token_store(
            tmp_path / str(num_workers),
            documents=documents,
            tokenizer=TOKENIZER,
            num_workers=num_workers,
        )
        stores.append(store)
    assert stores[0].counts == stores[1].counts
    a, b = (store.read(0, store.num_tokens) for store in stores)
    np.testing.assert_array_equal(a, b)


def test_a_current_store_is_left_alone(make_store, tmp_path):
    make_store(["a", "b", "c"])
    before = times(tmp_path / "store")
    make_store(["a", "b", "c"])
    after = times(tmp_path / "store")
    assert {n for n in after if after[n] != before[n]} <= {".lock"}


def test_a_changed_source_is_built_again(make_store, tmp_path):
    make_store(["a", "b", "c"], num_shards=3)
    store = make_store(["a", "b", "d", "e"], num_shards=2)
    assert store.read(4, 8).tolist() == [100, EOS, 101, EOS]
    assert len(list((tmp_path / "store").glob("*.tokens"))) == 2


def test_another_tokenizer_builds_again(tmp_path, texts):
    for bos in (True, False):
        tokenizer = Bytes(bos=bos)
        build_token_store(tmp_path, documents=texts(["a"]), tokenizer=tokenizer)
        manifest = json.loads((tmp_path / MANIFEST).read_text())
        assert manifest["tokenizer"] == tokenizer.fingerprint()


def test_a_killed_build_resumes(tmp_path, texts, set_num_shards):
    set_num_shards(4)
    documents = texts(["one", "two", "three", "four"])
    options = {"documents": documents, "tokenizer": TOKENIZER}
    build_shards(plan_store(tmp_path, **options), [0, 2], num_workers=1)
    (tmp_path / "00001-of-00004.tokens.99.partial").write_bytes(b"half")
    (tmp_path / "00003-of-00004.tokens").write_bytes(b"there are no counts for this")
    with pytest.raises(FileNotFoundError):
        TokenStore(tmp_path)
    before = times(tmp_path)
    store = build_token_store(tmp_path, **options, num_workers=1)
    np.testing.assert_array_equal(store.read(0, 99), stream_of(documents))
    after = times(tmp_path)
    unchanged = [name for name in before if after.get(name) == before[name]]
    assert sorted(unchanged) == sorted(
        f"{shard:05d}-of-00004.{kind}"
        for shard in (0, 2)
        for kind in ("json", "offsets", "tokens")
    )
    assert not list(tmp_path.glob("*.partial"))


def test_jobs_share_a_build(tmp_path, texts, set_num_shards):
    set_num_shards(3)
    documents = texts(map(str, range(10)))
    options = {"documents": documents, "tokenizer": TOKENIZER}
    plan = plan_store(tmp_path, **options)
    build_shards(plan, [1], num_workers=1)
    assert not plan.is_complete
    build_shards(plan, [0, 2], num_workers=1)
    assert plan.is_complete
    before = {k: t for k, t in times(tmp_path).items() if not k.endswith(".hashes")}
    store = build_token_store(tmp_path, **options)
    assert times(tmp_path).items() >= before.items()
    np.testing.assert_array_equal(store.read(0, 99), stream_of(documents))


@pytest.mark.parametrize("kind", ["tokens", "offsets", "json", "manifest"])
def test_a_damaged_store_is_built_again(make_store, tmp_path, caplog, kind):
    texts = ["one", "two"]
    make_store(texts, num_shards=1)
    name = MANIFEST if kind == "manifest" else f"00000-of-00001.{kind}"
    file = tmp_path / "store" / name
    file.write_bytes(file.read_bytes()[:-3])
    with caplog.at_level(logging.WARNING):
        store = make_store(texts, num_shards=1)
    np.testing.assert_array_equal(store.read(0, 99), stream_of(texts))
    warnings = [r for r in caplog.records if "damaged" in r.message]
    assert len(warnings) == (kind != "json")  # the manifest repeats those counts


def test_a_full_disk_is_one_line(make_store, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(UserError, match=r"store: cannot be written: No space"):
            make_store(["a", "b"])
    assert not list((tmp_path / "store").glob("*.partial"))
    assert not (tmp_path / "store" / MANIFEST).exists()
    assert make_store(["a", "b"]).num_documents == 2


def test_errors_of_a_document_pass_through_processes(tmp_path, corpus, set_num_shards):
    set_num_shards(4)
    documents = open_corpus(corpus)
    (tmp_path / "corpus" / "07.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"07\.txt: not UTF-8 at byte 0"):
        build_token_store(
            tmp_path / "store",
            documents=documents,
            tokenizer=TOKENIZER,
            num_workers=2,
        )


def _build_and_report(directory, corpus, queue):
    build_token_store(directory, documents=open_corpus(corpus), tokenizer=TOKENIZER)
    queue.put(
        {name: time for name, time in times(directory).items() if name != ".lock"}
    )


def test_two_builders_do_not_collide(tmp_path, corpus):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    arguments = (tmp_path / "store", corpus, queue)
    builders = [
        context.Process(target=_build_and_report, args=arguments) for _ in range(2)
    ]
    for builder in builders:
        builder.start()
    first, second = (queue.get(timeout=30) for _ in builders)
    for builder in builders:
        builder.join()
    assert first == second and MANIFEST in first


def test_a_long_build_shows_progress(make_store, monkeypatch, capsys):
    monkeypatch.setattr(token_store_builder, "_PROGRESS_DELAY", 0.0)
    make_store(["a", "b", "c"])
    assert "tokenizing store" in capsys.readouterr().err


class KillsItsWorker(Bytes):
    def encode_batch(self, texts):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_line(tmp_path, texts, set_num_shards):
    """Linux kills one when memory runs out."""
    set_num_shards(2)
    with pytest.raises(UserError, match=r"was killed, .*num_store_workers \(now 2\)"):
        build_token_store(
            tmp_path,
            documents=texts(["a", "b"]),
            tokenizer=KillsItsWorker(bos=True),
            num_workers=2,
        )


@pytest.mark.parametrize("manifest", ["[]", "{}", "3", "null", '{"version": 2}', "\0"])
def test_an_invalid_manifest_is_replaced(make_store, tmp_path, manifest):
    make_store(["one", "two"])
    (tmp_path / "store" / MANIFEST).write_text(manifest)
    with pytest.raises(ValueError):
        TokenStore(tmp_path / "store")
    assert make_store(["one", "two"]).num_documents == 2


@pytest.mark.parametrize("counts", ["[]", "{}", '{"counts": {}}', '{"counts": 3}'])
def test_invalid_counts_are_replaced(tmp_path, texts, counts, set_num_shards):
    set_num_shards(2)
    options = {"documents": texts(["a", "b"]), "tokenizer": TOKENIZER}
    plan = plan_store(tmp_path, **options)
    build_shards(plan, [0, 1], num_workers=1)
    plan.files(0).counts.write_text(counts)
    assert [plan.read_counts(shard) is None for shard in (0, 1)] == [True, False]
    assert build_token_store(tmp_path, **options, num_workers=1).num_documents == 2
