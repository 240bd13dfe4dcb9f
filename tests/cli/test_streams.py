"""What libraries print goes to log.txt; and signals before and after the work."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmjax.training.stop_signal import StopSignal

ROOT = Path(__file__).parents[2]

NOISE = """
import ctypes, logging, os, sys, threading, warnings
from pathlib import Path
from lmjax.cli import streams

class Fails:
    def __del__(self):
        raise RuntimeError("noise of a destructor")

def fail():
    raise RuntimeError("noise of a thread")

streams.configure_logging(debug=False)
with streams.log_file(Path(sys.argv[1]) / "log.txt"):
    logging.getLogger("lmjax.run").warning("a line for the user")
    try:
        fail()
    except RuntimeError:
        logging.getLogger("absl").exception("noise of a library")
    warnings.warn("noise of a warning")
    os.write(2, b"noise of a descriptor\\n")
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    x = Fails()
    del x
    print("another line", file=sys.stderr)
os.write(2, b"the end\\n")
"""


def test_what_libraries_print_goes_to_the_log_file(tmp_path):
    command = [sys.executable, "-c", NOISE, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines() == [
        "a line for the user",
        "another line",
        "the end",
    ]
    log = (tmp_path / "run" / "log.txt").read_text()
    for source in ("library", "warning", "descriptor", "thread", "destructor"):
        assert f"noise of a {source}" in log
    assert "a line for the user" in log


def test_a_log_file_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-c", NOISE, str(tmp_path / "file")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "a line for the user" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_run_has_begun_is_silent(tmp_path, number):
    """The exit code says to run it again."""
    script, here = tmp_path / "x.py", tmp_path / "here"
    script.write_text(f"import time\nopen({str(here)!r}, 'w')\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "lmjax.cli", "train"]
    command += [f"--config={script}", f"--workdir={tmp_path}/run"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # also under nohup
    ) as process:
        while not here.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        errors = process.communicate()[1].decode()
    assert (process.returncode, errors) == (75, "")
    assert not (tmp_path / "run").exists()


def test_nohup_stays_in_force(tmp_path):
    """A signal that was ignored when the process began is ignored."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            stop.defer(0)
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_requested(1)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopSignal() as stop:
            stop.defer(0)
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.is_requested(1)
    finally:
        signal.signal(signal.SIGHUP, previous)
