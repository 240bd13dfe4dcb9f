"""Addresses as paths, on fsspec's file system in memory: no server, no packages."""

import json
import logging
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from lmjax import fileio
from lmjax.config.data import SourceConfig
from lmjax.config.experiment import CheckpointConfig
from lmjax.data.sources.registry import open_splits
from lmjax.data.stores import token_store_builder
from lmjax.data.stores.run_stores import open_held_out_stores, write_run_stores
from lmjax.data.stores.token_store import TokenStore
from lmjax.data.tokenizers.plain import Bytes
from lmjax.data.tokenizers.tokenizer import load_tokenizer
from lmjax.errors import ConfigError, UserError
from lmjax.storage import cache, lease, uploads
from lmjax.storage.paths import open_path

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("LMJAX_CACHE_DIR", str(tmp_path / "cache"))
    yield open_path("memory://root")
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_an_address_is_a_path(root):
    file = root / "a" / "b.txt"
    assert str(file) == "memory://root/a/b.txt" == os.fspath(file)
    assert (file.name, file.suffix, file.parent) == ("b.txt", ".txt", root / "a")
    assert pickle.loads(pickle.dumps(file)) == file == open_path(file)
    assert file.absolute() == file.expanduser() == file
    assert open_path("file:///a/b") == open_path("/a/b")
    assert open_path("a:b/c").as_posix() == "a:b/c"
    assert not file.exists()
    assert not file.parent.is_dir()
    file.write_bytes(b"one\ntwo")
    assert file.is_file()
    assert file.parent.is_dir()
    assert file.stat().st_size == 7
    assert file.read_text() == "one\ntwo"
    with file.open(encoding="utf-8") as lines:
        assert [*lines] == ["one\n", "two"]
    assert [*file.parent.iterdir()] == [*root.glob("*/*.txt")] == [file]
    (root / "a").rename(root / "c")
    assert (root / "c" / "b.txt").exists()
    assert not file.exists()
    with pytest.raises(FileNotFoundError, match="No such file"):
        file.unlink()
    file.unlink(missing_ok=True)


def test_an_object_is_replaced_whole_or_stays(root):
    file = root / "a.json"
    fileio.write_json(file, {"a": 1})
    with pytest.raises(RuntimeError), fileio.open_atomic(file) as out:
        out.write(b"half")
        raise RuntimeError
    assert fileio.read_json(file) == {"a": 1}
    with pytest.raises(UserError, match="memory://root/b: cannot be read: No such"):
        fileio.read_json(root / "b")


def test_addresses_that_cannot_be_used():
    with pytest.raises(UserError, match=r"s4://b/a: no storage is known as s4:.*'s3'"):
        open_path("s4://b/a").read_bytes()
    file = open_path("memory://a/out.jsonl")
    with (
        pytest.raises(UserError, match=r"--output=memory://a/out\.jsonl: must"),
        fileio.open_locked(file, flag="--output"),
    ):
        pass


def test_a_file_system_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(known, "gs", raising=False)
    with pytest.raises(UserError, match=r"gs://b/x: needs .*pip install 'lmjax\[gcs"):
        open_path("gs://b/x").read_bytes()


def test_what_a_file_system_raises_names_the_address(root, monkeypatch):
    file = root / "a"
    system = type(file.file_system)

    class NoCredentialsError(Exception):
        """As botocore calls it."""

    for error, message in [
        (PermissionError("Forbidden"), "access is denied: Forbidden"),
        (NoCredentialsError("Unable to locate"), "no credentials were found"),
        (TimeoutError("took\n\ntoo long"), "took too long"),
        (ValueError(), "ValueError"),
    ]:

        def fail(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(system, "cat_file", fail)
        with pytest.raises(OSError, match=message) as raised:
            file.read_bytes()
        assert raised.value.filename == "memory://root/a"
        assert "\n" not in raised.value.strerror


def owner(**values):
    known = {"host": "other", "process": 1, "token": "t", "time": 0.0}
    return json.dumps(known | values).encode()


def test_a_lease_is_held_by_one(root, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    with fileio.try_lock(root, flag="--workdir"):
        with (
            pytest.raises(UserError, match=f"in use by process {os.getpid()} on "),
            fileio.try_lock(root, flag="--workdir"),
        ):
            pass
        assert (root / ".lock").exists()
    assert not (root / ".lock").exists()
    with fileio.lock(root):
        assert (root / ".lock").exists()


def test_the_lease_of_a_dead_owner_is_taken_over(root, monkeypatch):
    monkeypatch.setattr(lease, "LOST_SECONDS", 0.5)
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.01)
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = {"host": socket.gethostname()}
    for content in [
        owner(**here, process=gone.pid),
        owner(**here, process=os.getpid()),  # a container that was started again
        owner(),  # of another host, renewed no more
        b"not written by a lease",
    ]:
        (root / ".lock").write_bytes(content)
        start = time.monotonic()
        with fileio.try_lock(root, flag="--workdir"):
            taken = json.loads((root / ".lock").read_bytes())
            assert taken["process"] == os.getpid()
        assert time.monotonic() - start < 5


def test_files_that_grow_are_uploaded(root, monkeypatch, caplog):
    monkeypatch.setattr(uploads, "_INTERVAL_SECONDS", 0.02)
    (root / "log.txt").write_bytes(b"before\n")
    staged = uploads.Staged(root, continued=["log.txt", "missing"])
    with (staged.local / "log.txt").open("ab", buffering=0) as log:
        log.write(b"now\n")
        deadline = time.monotonic() + 5
        while b"now" not in (root / "log.txt").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        log.write(b"last\n")
    (staged.local / "a").mkdir()
    (staged.local / "a" / "b").write_bytes(b"x")
    staged.close()
    assert (root / "log.txt").read_bytes() == b"before\nnow\nlast\n"
    assert (root / "a" / "b").read_bytes() == b"x"
    assert not staged.local.exists()

    staged = uploads.Staged(root)
    (staged.local / "b").write_bytes(b"x")
    monkeypatch.setattr(type(root), "put", no_room)
    with caplog.at_level(logging.WARNING):
        staged.close()
    assert "memory://root/b: cannot be written: No space" in caplog.text


def no_room(*args):
    raise OSError(28, "No space left on device")


def test_copies_are_bounded_and_verified(root, tmp_path, monkeypatch):
    monkeypatch.setenv("LMJAX_CACHE_GB", "0.000000250")
    for name in "abc":
        (root / name).write_bytes(name.encode() * 100)
    copies = {name: cache.local_copy(root / name) for name in "ab"}
    assert copies["a"].read_bytes() == b"a" * 100
    os.utime(copies["b"], (1, 1))
    cache.local_copy(root / "c")  # there is room for two: the oldest goes
    assert copies["a"].exists()
    assert not copies["b"].exists()
    assert cache.local_copy(root / "b").read_bytes() == b"b" * 100
    (root / "a").write_bytes(b"changed")
    assert cache.local_copy(root / "a").read_bytes() == b"changed"
    with pytest.raises(UserError, match="memory://root/a: damaged"):
        cache.local_copy(root / "a", crc32=1)
    assert not [*(tmp_path / "cache").rglob("*.partial")]
    monkeypatch.setenv("LMJAX_CACHE_GB", "much")
    with pytest.raises(UserError, match="LMJAX_CACHE_GB=much: must be a number"):
        cache.warn_if_larger(1, name="x")


def build_store(directory, path, tokenizer):
    config = SourceConfig(source="text", path=path, document="line", holdout_every=5)
    documents = open_splits(config, splits=["train"])["train"]
    return token_store_builder.build_token_store(
        directory, documents=documents, tokenizer=tokenizer, num_workers=1
    )


def test_text_and_stores_are_the_same_on_storage(root, tmp_path):
    (tmp_path / "text").mkdir()
    for name in ("a", "b"):
        text = "".join(f"{name} line {i}\n" for i in range(50))
        (tmp_path / "text" / f"{name}.txt").write_text(text)
        (root / "text" / f"{name}.txt").write_bytes(text.encode())
    tokenizer = Bytes(bos=False)
    tokenizer.save(root / "tokenizer")
    tokenizer = load_tokenizer(root / "tokenizer")
    local = build_store(tmp_path / "store", str(tmp_path / "text/*.txt"), tokenizer)
    remote = build_store(root / "store" / "valid", f"{root}/text/*.txt", tokenizer)
    assert local.fingerprint == remote.fingerprint
    assert local.checksums == remote.checksums
    remote = pickle.loads(pickle.dumps(remote))
    everything = slice(0, local.num_tokens)
    np.testing.assert_array_equal(
        local.read(everything.start, everything.stop),
        remote.read(everything.start, everything.stop),
    )
    write_run_stores(root, {"valid": [remote]})
    assert open_held_out_stores(root)["valid"][0].fingerprint == local.fingerprint

    # What was removed from the cache is fetched again; what was damaged is told.
    shutil.rmtree(tmp_path / "cache")
    assert len(remote.read(0, 10)) == 10
    tokens = next(root.glob("store/valid/*.tokens"))
    tokens.write_bytes(b"\1" * tokens.stat().st_size)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match=r"\.tokens: damaged"):
        TokenStore(root / "store" / "valid").read(0, 10)


def test_text_that_is_not_there(root):
    (root / "a.txt").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"memory://root/\*\.jsonl'.* no file"):
        build_store("unused", f"{root}/*.jsonl", Bytes(bos=False))


def test_checkpoints_are_refused_where_orbax_cannot_write(root):
    from lmjax.run.checkpoint import Checkpoints, save_params

    message = "memory://root/checkpoints: .* gs://, s3://, not on memory://"
    with pytest.raises(UserError, match=message):
        Checkpoints(root, CheckpointConfig())
    with pytest.raises(UserError, match=message):
        save_params(root, {"a": types.SimpleNamespace(nbytes=1)})


def test_a_directory_is_uploaded_whole_or_not_at_all(root):
    from lmjax.run.staging import staged_directory

    with pytest.raises(RuntimeError), staged_directory(root / "a", flag="--to") as new:
        (new / "config.json").write_text("{}")
        raise RuntimeError
    assert not (root / "a").exists()
    with staged_directory(root / "a", flag="--to") as new:
        (new / "sub").mkdir()
        (new / "sub" / "b").write_text("b")
    assert (root / "a" / "sub" / "b").read_text() == "b"
    with (
        pytest.raises(UserError, match="--to=memory://root/a: exists already"),
        staged_directory(root / "a", flag="--to"),
    ):
        pass
