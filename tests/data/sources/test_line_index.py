import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lmjax.config.data import SourceConfig
from lmjax.data.sources import line_index
from lmjax.data.sources.line_index import LineIndex, line_starts
from lmjax.data.sources.registry import open_splits
from lmjax.errors import UserError


def slow_starts(content):
    starts, position = [], 0
    for line in content.splitlines(keepends=True):
        if not line.isspace():
            starts.append(position)
        position += len(line)
    return starts


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
def test_lines_are_found_in_blocks_of_any_size(tmp_path, monkeypatch, block):
    monkeypatch.setattr(line_index, "_SCAN_BYTES", block)
    rng = np.random.default_rng(0)
    for i in range(60):
        content = rng.choice([*b"ab \t\n\n\v"], size=i).astype(np.uint8).tobytes()
        (tmp_path / "a").write_bytes(content)
        lines = content.replace(b"\v", b" ")  # a line end only to `splitlines`
        starts = line_starts(tmp_path / "a", path="config.data")
        assert starts.dtype == np.int64
        assert starts.tolist() == slow_starts(lines)


def test_an_index_is_pickled_as_a_temporary_file(tmp_path):
    files = []
    for name in "abc":
        files.append(tmp_path / name)
        files[-1].write_text(f"{name}\n\n" * 1000)
    index = LineIndex(files, path="config.data")
    assert len(pickle.dumps(index)) < 1000 and not index._saved, "not yet scanned"
    assert len(index) == 3000
    data = pickle.dumps(index)
    assert len(data) < 1000
    received = pickle.loads(data)
    assert isinstance(received._starts, np.memmap)
    for line in (0, 999, 1000, 2999):
        assert received.find(line) == index.find(line)
    saved = Path(index._saved)
    assert saved.exists()
    del index
    assert not saved.exists()
    assert pickle.loads(data).find(1000) == (1, 0), "scanned again"


def lines(path, **fields):
    return SourceConfig(source="text", path=str(path), document="line", **fields)


def test_splits_share_an_index_that_is_built_when_needed(tmp_path, monkeypatch):
    scanned = []
    scan = line_index.line_starts
    monkeypatch.setattr(
        line_index, "line_starts", lambda f, **k: (scanned.append(f), scan(f, **k))[1]
    )
    (tmp_path / "a.txt").write_text("x\n" * 100)
    opened = open_splits(lines(tmp_path / "a.txt"), splits=("train", "valid"))
    for documents in opened.values():
        documents.fingerprint()
    assert not scanned
    assert [len(documents) for documents in opened.values()] == [95, 5]
    assert len(scanned) == 1


def test_a_file_that_cannot_be_scanned_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.data: cannot read .*none: No such"):
        len(LineIndex([tmp_path / "none"], path="config.data"))


def test_many_lines_take_little_memory(tmp_path):
    """A million lines take 8 bytes each, and a block."""
    (tmp_path / "a.txt").write_bytes(b"a line\n" * 1_000_000)
    code = f"""
import resource, numpy
from pathlib import Path
from lmjax.data.sources import line_index
line_index._SCAN_BYTES = 1 << 16
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
index = line_index.LineIndex([Path({str(tmp_path / "a.txt")!r})], path="p")
assert len(index) == 1_000_000
print(peak() - before)
"""
    command = [sys.executable, "-c", code]
    used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(used) < 24_000  # KiB: the index, and its parts before they are joined
