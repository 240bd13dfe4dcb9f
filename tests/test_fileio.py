"""Files: whole or not at all, JSON with its errors, and locks."""

import errno
import resource
import subprocess
import sys

import pytest

from lmjax import fileio
from lmjax.errors import UserError


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "a.bin"
    fileio.write_bytes(path, b"old")
    with pytest.raises(RuntimeError), fileio.open_atomic(path) as out:
        out.write(b"new, but")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    fileio.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert [*tmp_path.iterdir()] == [path]


def test_json_that_is_there_already_is_not_written_again(tmp_path):
    path = tmp_path / "a.json"
    fileio.write_json(path, {"a": 1, "b": [2]})
    assert path.read_text() == '{\n  "a": 1,\n  "b": [\n    2\n  ]\n}\n'
    before = path.stat().st_mtime_ns
    fileio.write_json(path, {"a": 1, "b": [2]})
    assert path.stat().st_mtime_ns == before
    fileio.write_json(path, {"a": 1}, indent=1)
    assert fileio.read_json(path) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a":\n1,}', r"a\.json:2: not JSON"),
        (b"[1]", r"a\.json: not a JSON object"),
        (b"\xff", r"a\.json: cannot be read"),
        (b"[" * 99_999, r"a\.json: cannot be read"),
    ],
)
def test_what_is_no_json_object(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        fileio.read_json(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"a\.json: cannot be read: No such file"):
        fileio.read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"b/a\.json: cannot be written: No such file"):
        fileio.write_json(tmp_path / "b" / "a.json", {})


def test_a_line_names_its_place(tmp_path):
    with pytest.raises(UserError, match="x:7: not JSON"):
        fileio.parse_json_line("{", where=lambda: "x:7")


def test_a_full_disk_is_one_line(tmp_path):
    path = tmp_path / "a.bin"
    fileio.write_bytes(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        with pytest.raises(UserError, match=r"a\.bin: cannot be written: .*free some"):
            fileio.write_bytes(path, bytes(99))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


HOLD = """
import pathlib, sys
from lmjax import fileio
with fileio.{lock}:
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("lock", "attempt", "message"),
    [
        (
            "try_lock(path, flag='--workdir')",
            lambda path: fileio.try_lock(path, flag="--workdir"),
            "--workdir={path}: in use by process {pid}",
        ),
        (
            "open_locked(path / 'out', flag='--output')",
            lambda path: fileio.open_locked(path / "out", flag="--output"),
            "--output={path}/out: another process",
        ),
    ],
)
def test_a_lock_has_one_holder_until_its_process_ends(tmp_path, lock, attempt, message):
    code = HOLD.format(lock=lock.replace("path", f"pathlib.Path({str(tmp_path)!r})"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        expected = message.format(path=tmp_path, pid=holder.pid)
        with pytest.raises(UserError, match=expected), attempt(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with attempt(tmp_path):
        pass


def test_a_file_system_without_rename_or_locks_is_told(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(type(tmp_path), "replace", refuse)
    with pytest.raises(UserError, match=r"a\.bin: .* cannot rename files"):
        fileio.write_bytes(tmp_path / "a.bin", b"x")
    assert not [*tmp_path.iterdir()]
    monkeypatch.setattr(fileio.fcntl, "flock", refuse)
    with (
        pytest.raises(UserError, match=r"--workdir=.* the file system has no lock"),
        fileio.try_lock(tmp_path, flag="--workdir"),
    ):
        pass
