"""metrics.jsonl: damaged, lost, and on a full disk."""

import errno
import json
import logging
import math
import sys

import pytest

from lmjax.config.experiment import LogConfig
from lmjax.errors import UserError
from lmjax.run import trackers
from lmjax.run.metric_log import MetricLog, read_metrics

CONFIG = LogConfig(tensorboard=False)


def write(workdir, steps=range(1, 5), start_step=0, **options):
    """Log a loss at some steps, and return how much was logged."""
    log = MetricLog(workdir, CONFIG, start_step=start_step, **options)
    for step in steps:
        log.write(step, "valid", {"loss": float(step)})
    log.close()
    return log.mark


@pytest.mark.parametrize(
    "damaged",
    [
        '{"step": 3, "split": "valid", "loss": ' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"step": ' + "9" * 300 + ', "split": "valid"}',
        '{"step": 3, "split": "valid", "loss": "low"}',
        '{"step": 3, "split": "valid", "loss": [3.0]}',
        '{"step": 3, "split": 7}',
        "null",
        "\0\ufffd",
        "",
    ],
)
def test_a_damaged_line_stops_no_run_and_is_told(tmp_path, caplog, damaged):
    mark = write(tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = damaged
    path.write_text("\n".join(lines) + "\n")
    assert all(isinstance(line["step"], int) for line in read_metrics(tmp_path))
    with caplog.at_level(logging.WARNING):
        log = MetricLog(tmp_path, CONFIG, start_step=4, expected=mark)
    losses = log.history("valid", "loss")
    assert [x for x in losses if math.isfinite(x)] == [1.0, 2.0, 4.0]
    assert "metrics.jsonl: of the log up to step 4" in caplog.text


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_lost_lines_are_counted(tmp_path, caplog, kept):
    mark = write(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    write(tmp_path, (5,), start_step=4, expected=mark)
    assert f"{4 - kept} of 4 lines are lost" in caplog.text


def test_an_intact_log_is_not_warned_of(tmp_path, caplog):
    mark = write(tmp_path)
    write(tmp_path, (5, 6), start_step=4, expected=mark)
    write(tmp_path, (5, 6), start_step=4, expected=mark)  # redone after a kill
    assert not caplog.records
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_loses_no_line(tmp_path, caplog, monkeypatch):
    """Lines wait until there is room, also in the middle of one; it is told once."""
    log = MetricLog(tmp_path, CONFIG, start_step=0)
    file, room = log.file.file, [7]

    class Disk:
        close = file.close

        def write(self, content):
            count = min(room[0], len(content))
            room[0] -= count
            if not count:
                raise OSError(errno.ENOSPC, "No space left on device")
            return file.write(content[:count])

    log.file.file = Disk()
    for step in range(1, 5):
        log.write(step, "train", {"loss": 1.0})
        room[0] += 10**6 * (step == 3)
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert len(caplog.records) == 1 and "No space left" in caplog.text


def test_a_full_disk_ends_tensorboard_alone(tmp_path, caplog, monkeypatch):
    log = MetricLog(tmp_path, LogConfig(), start_step=0)

    def full(event):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log.writers[0].writer, "write_event", full)
    for step in range(1, 4):
        log.write(step, "train", {"loss": 1.0})
    log.close()
    assert len(read_metrics(tmp_path)) == 3
    assert len(caplog.records) == 1 and "goes on without it" in caplog.text
    (tmp_path / "file").write_text("")
    board = trackers.TensorBoard(tmp_path / "file" / "tensorboard", purge_step=1)
    board.write(1, {"loss": 1.0})
    board.close()


def test_tensorboard_has_texts(tmp_path):
    log = MetricLog(tmp_path, LogConfig(), start_step=0)
    log.write_text(3, "samples/0", "a <b>\n* c")
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"samples/0" in content and b"    a <b>\n    * c\n" in content


class FakeTracker:
    """Both of the libraries, as far as they are used."""

    def __init__(self):
        self.calls, self.id, self.config, self.info = [], "new", self, self

    @property
    def run_id(self):
        return self.id

    def __getattr__(self, name):
        def call(*args, **options):
            self.calls.append((name, args, options))
            return self

        return call


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_trackers_have_the_metrics_and_go_on_in_their_run(
    name, tmp_path, monkeypatch, caplog
):
    config = LogConfig(trackers=(name,), tensorboard=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"{name}' is not installed: pip install"):
        MetricLog(tmp_path, config, start_step=0)
    fake = FakeTracker()
    monkeypatch.setitem(sys.modules, name, fake)
    log = MetricLog(tmp_path, config, start_step=0)
    log.write_text(0, "config", "config.seed = 1")
    log.write_text(1, "samples/0", "a < b")
    log.write(1, "train", {"loss": 2.0, "note": "text"})
    values = [(args, o) for _, args, o in fake.calls if o.get("step") == 1]
    assert (({"train/loss": 2.0},), {"step": 1}) in values
    log.close()
    assert fake.calls[-1][0] in ("finish", "end_run")
    fake.calls.clear()
    MetricLog(tmp_path, config, start_step=1)
    _, _, begun = fake.calls[0]
    assert "new" in (begun.get("id"), begun.get("run_id"))

    def fail(*args, **options):
        raise ConnectionError("no network")

    method = {"wandb": "log", "mlflow": "log_metrics"}[name]
    log = MetricLog(tmp_path, config, start_step=1)
    fake.__dict__[method] = fail
    for step in (2, 3):
        log.write(step, "train", {"loss": 1.0})
    log.close()
    assert caplog.text.count("no network; training goes on without it") == 1
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    fake.__dict__["init"] = fake.__dict__["start_run"] = fail
    with pytest.raises(UserError, match=r"config\.log\.trackers.*no network"):
        MetricLog(tmp_path, config, start_step=3)
