"""A run on a real server of S3: as on disk, whatever the server does."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lmjax
from lmjax.errors import UserError
from lmjax.run import checkpoint_format, workdir
from lmjax.run.metric_log import read_metrics
from lmjax.storage.paths import open_path

pytest.importorskip("moto", reason="pip install 'moto[s3]' flask flask-cors")
pytest.importorskip("flask", reason="pip install 'moto[s3]' flask flask-cors")
s3fs = pytest.importorskip("s3fs", reason="pip install -e '.[s3]'")

CONFIG = {
    "num_steps": 30,
    "batch_size": 8,
    "model": {
        "kind": "decoder",
        "dim": 16,
        "num_layers": 1,
        "num_heads": 2,
        "max_length": 32,
    },
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "text", "document": "line", "length": 32},
    "optim": {"learning_rate": 1e-3, "schedule": "constant"},
    "checkpoint": {"every_steps": 10, "keep": 2},
    "eval": {"every_steps": 15, "num_batches": 1},
    "log": {"every_steps": 1},
}
TEXT = "".join(f"line {i} of some text, {i * i} squared\n" for i in range(300))


class Server:
    """The server in a process of its own."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "s3_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self.process.stdout.readline().strip()

    def misbehave(self, share=0.0, broken=""):
        """Set what fails from now on; return how many requests did by now."""
        self.process.stdin.write(f"{share} {broken}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


@pytest.fixture(scope="module")
def server():
    server = Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.address)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        open_path("s3://bucket/x").file_system.mkdir("bucket")
        yield server
    server.process.stdin.close()
    server.process.wait()


@pytest.fixture(autouse=True)
def quiet_server(server, tmp_path, monkeypatch):
    monkeypatch.setenv("LMJAX_CACHE_DIR", str(tmp_path / "cache"))
    yield
    server.misbehave()


def losses(directory):
    lines = read_metrics(open_path(directory))
    return [(line["step"], line["loss"]) for line in lines if line["split"] == "train"]


def with_data(path):
    return CONFIG | {"data": CONFIG["data"] | {"path": path}}


@pytest.mark.slow
def test_a_run_on_s3_is_the_run_on_disk(server, tmp_path):
    """Resumed after a kill, evaluated and read while some of the requests fail."""
    (tmp_path / "a.txt").write_text(TEXT)
    open_path("s3://bucket/data/a.txt").write_bytes(TEXT.encode())
    lmjax.train(with_data(str(tmp_path / "a.txt")), tmp_path / "run")
    remote, config = "s3://bucket/runs/a", with_data("s3://bucket/data/*.txt")

    server.misbehave(share=0.03)
    lmjax.train(config, remote, overrides=["num_steps=20"])
    leave_as_if_killed(open_path(remote))
    assert lmjax.train(config, remote).finished
    assert losses(remote) == losses(tmp_path / "run")
    assert lmjax.evaluate(remote) == lmjax.evaluate(tmp_path / "run")
    assert len(lmjax.load(remote).generate(["line 7"], max_tokens=4)) == 1
    assert [*open_path(remote).glob("tensorboard/events.*")]
    counts = server.misbehave()
    assert all(f"'{kind}': 0" not in counts for kind in ("500", "slow", "torn"))


def leave_as_if_killed(run):
    """Add to a run at step 20 what a process leaves that is killed while it saves."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    owner = {"host": socket.gethostname(), "process": gone.pid, "token": "", "time": 0}
    (run / ".lock").write_bytes(json.dumps(owner).encode())
    (run / "checkpoints" / "25" / "params" / "_METADATA").write_bytes(b"{}")
    cut = b'{"step": 21, "split": "train", "loss": 1.0}\n{"step": 22, "spl'
    log = run / "metrics.jsonl"
    log.write_bytes(log.read_bytes() + cut)


def test_a_save_that_fails_ends_training(server, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(TEXT)
    remote = "s3://bucket/runs/b"
    server.misbehave(broken=r"/runs/b/checkpoints/10/params/")
    monkeypatch.setitem(checkpoint_format._RETRIES, "max_retries", 1)
    config = with_data(str(tmp_path / "a.txt")) | {"num_steps": 100_000}
    start = time.monotonic()
    with pytest.raises(UserError, match=r"s3://bucket/runs/b/checkpoints") as raised:
        lmjax.train(config, remote)
    print(raised.value)
    assert "500" in str(raised.value)
    assert "damaged" not in str(raised.value)
    assert time.monotonic() - start < 90
    assert not (open_path(remote) / "checkpoints" / "10" / workdir.COMMITTED).exists()


@pytest.mark.parametrize(
    ("leaf", "address", "message"),
    [
        ("workdir", "s3://missing/a", "s3://missing/a.*there is no such bucket"),
        ("workdir", "s3://forbidden/a", "s3://forbidden/a.*access is denied"),
        ("data.path", "s3://missing/*.txt", "config.data.path.*s3://missing"),
        ("data.path", "s3://forbidden/*.txt", "config.data.path.*access is denied"),
        ("data.path", "s3://bucket/none/*", "config.data.path.*matches no file"),
        ("data.store", "s3://missing/store", "s3://missing/store.*no such bucket"),
        ("init_from", "s3://missing/a", "config.init_from.*s3://missing/a"),
    ],
)
def test_buckets_that_cannot_be_used(tmp_path, leaf, address, message):
    (tmp_path / "a.txt").write_text(TEXT)
    start = time.monotonic()
    overrides = [] if leaf == "workdir" else [f"{leaf}={address}"]
    target = address if leaf == "workdir" else tmp_path / "run"
    with pytest.raises((UserError, OSError)) as raised:
        lmjax.train(with_data(str(tmp_path / "a.txt")), target, overrides=overrides)
    text = f"{getattr(raised.value, 'filename', '')} {raised.value}"
    assert re.search(message, text)
    assert "\n" not in text
    assert time.monotonic() - start < 30


def test_without_credentials_or_a_server(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(PermissionError, match="no credentials were found"):
        open_path("s3://bucket/a").read_bytes()
    monkeypatch.undo()
    s3fs.S3FileSystem.clear_instance_cache()
