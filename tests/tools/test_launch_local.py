"""Processes of one machine end together, in bounded time, and the reason is told."""

import argparse
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from lmjax.errors import UserError
from tools.launch import group, local
from tools.launch.job import Job

ROOT = Path(__file__).parents[2]
PREAMBLE = """
import os, signal, sys, time
rank = int(os.environ["JAX_PROCESS_ID"])
mark = os.environ["MARK"]
def stop(*_):
    sys.exit(75)
def ready():
    open(mark + str(rank), "w").close()
def wait_for(*ranks):
    while not all(os.path.exists(mark + str(rank)) for rank in ranks):
        time.sleep(0.02)
"""
STOPPABLE = """
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
ready()
time.sleep(60)
"""


class Script(Job):
    """A job whose processes run some Python in place of a training."""

    def train_command(self, *args, **kwargs):
        return [sys.executable, "-S", "-E", "-c", self.config]


@pytest.fixture
def run(tmp_path, capfd):
    """Return a function that runs code in processes: exit code, output, seconds."""

    def start(code, *, processes=2, max_restarts=0):
        job = Script(
            config=PREAMBLE + textwrap.dedent(code), workdir=str(tmp_path / "run")
        )
        flags = argparse.Namespace(
            processes=processes, devices_per_process=1, max_restarts=max_restarts
        )
        begin = time.monotonic()
        exit_code = local.launch(job, flags, dry_run=False)
        said = capfd.readouterr()
        return exit_code, said.out, said.err, time.monotonic() - begin

    return start


@pytest.fixture(autouse=True)
def no_gpus_and_no_waiting(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.setattr(local, "RESTART_SECONDS", 0.0)
    monkeypatch.setattr(group, "FAILED_SECONDS", 0.5)


def test_lines_have_the_number_of_their_process_and_are_kept(run, tmp_path):
    code, out, err, _ = run(
        r"""
        print("hello", os.environ["JAX_NUM_PROCESSES"], flush=True)
        sys.stderr.write("step 1\rstep 2\r\x1b[1mstep 3\x1b[0m\nno end")
        sys.stdout.write("x" * 200000)
        """
    )
    assert code == 0
    for rank in (0, 1):
        assert f"[{rank}] hello 2\n" in out
        assert f"[{rank}] step 3\n" in err and f"[{rank}] no end\n" in err
        log = (tmp_path / "run" / "logs" / "1" / f"process-{rank}.log").read_text()
        assert "hello 2\n" in log and "step 3\n" in log
        assert log.count("x") == out.count("x") // 2 == 200000
    assert "step 1" not in err and "\r" not in err and "\x1b" not in err


@pytest.mark.parametrize(
    ("fault", "exit_code", "parts"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, ["was ended by SIGKILL"]),
        ("os.abort()", 134, ["was ended by SIGABRT"]),
        ("sys.exit('error: bad')", 1, ["ended with exit code 1", "error: bad"]),
        ("sys.exit(2)", 2, ["ended with exit code 2", "about to"]),
    ],
)
def test_the_process_that_failed_ends_all_and_is_named(run, fault, exit_code, parts):
    code, _, err, seconds = run(
        f"""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if rank == 1:
            print("about to", file=sys.stderr, flush=True)
            {fault}
        time.sleep(60)
        """
    )
    *_, last = err.splitlines()
    assert last.startswith("error: ")
    assert code == exit_code and seconds < 10.0
    assert "process 1 of 2" in last and "logs/1" in last
    assert all(part in last for part in parts), last
    assert "process 0 still ran" in err


def test_the_first_that_failed_counts(run):
    """The runtime aborts the others when one of them has gone."""
    code, _, err, _ = run(
        """
        if rank != 2:
            wait_for(2)
            time.sleep(0.3)
            os.abort()
        ready()
        sys.exit(7)
        """,
        processes=3,
    )
    assert code == 7 and "process 2 of 3" in err.splitlines()[-1]


def test_a_command_that_cannot_start_is_told(run, monkeypatch):
    monkeypatch.setattr(
        Script, "train_command", lambda self: ["/nowhere/python", "train"]
    )
    code, _, err, _ = run("")
    assert code == 1 and "error: /nowhere/python: No such file" in err
    assert "Traceback" not in err


def test_all_that_stopped_is_to_be_run_again(run, monkeypatch):
    """One was told to stop by somebody else; the others are told by the launcher."""
    monkeypatch.setattr(group, "TELL_SECONDS", 0.3)
    code, _, err, seconds = run("if rank == 1: wait_for(0); stop()" + STOPPABLE)
    assert code == 75 and "run it again" in err and seconds < 5.0
    monkeypatch.setattr(group, "STOPPED_SECONDS", 0.5)
    hangs = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nready()\ntime.sleep(60)"
    code, *_ = run("if rank: wait_for(0); stop()\n" + hangs)
    assert code == 75


@pytest.mark.parametrize(
    ("code", "number", "exit_code"),
    [
        (STOPPABLE, signal.SIGINT, 75),
        (STOPPABLE, signal.SIGTERM, 75),
        ("ready()\ntime.sleep(60)", signal.SIGTERM, 143),
    ],
)
def test_a_signal_reaches_all_and_is_waited_for(run, tmp_path, code, number, exit_code):
    with interrupted(tmp_path, number):
        found, _, err, seconds = run(code, max_restarts=3)
    assert found == exit_code and seconds < 10.0
    assert "restart" not in err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_signal_kills(run, tmp_path):
    code = "signal.signal(signal.SIGINT, signal.SIG_IGN)\nready()\ntime.sleep(60)"
    with interrupted(tmp_path, signal.SIGINT, signal.SIGINT):
        found, _, err, seconds = run(code)
    assert found == 130 and "again" in err and seconds < 10.0


class interrupted:
    """Sends this process signals while it waits for two others."""

    def __init__(self, directory, *numbers):
        self.marks = [directory / f"mark{rank}" for rank in (0, 1)]
        self.thread = threading.Thread(target=self.send, args=numbers)

    def send(self, *numbers):
        while not all(mark.exists() for mark in self.marks):
            time.sleep(0.02)
        for number in numbers:
            time.sleep(0.3)
            os.kill(os.getpid(), number)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *exception):
        self.thread.join()


def test_restarts_are_bounded_and_said(run, tmp_path):
    code, _, err, _ = run(
        """
        if rank == 0 and not os.path.exists(mark + "0"):
            ready()
            sys.exit(5)
        """,
        max_restarts=2,
    )
    assert code == 0 and "restart 1 of 2" in err and "restart 2" not in err
    code, _, err, _ = run("sys.exit(75 if rank else 0)", max_restarts=1)
    assert code == 75 and "restart 1 of 1" in err
    logs = sorted(path.name for path in (tmp_path / "run" / "logs").iterdir())
    assert logs == ["1", "2", "3", "4"]
    code, _, err, _ = run("sys.exit(2)", max_restarts=9)
    assert code == 2 and "restart 1" not in err  # the user's mistake would be repeated


def test_processes_end_with_a_launcher_that_is_killed(tmp_path):
    code = f"""
import argparse, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.tools.test_launch_local import Script, PREAMBLE, STOPPABLE
from tools.launch import local
flags = argparse.Namespace(processes=1, devices_per_process=1, max_restarts=0)
more = "print(os.getpid(), flush=True)" + chr(10)
job = Script(config=PREAMBLE + more + STOPPABLE, workdir={str(tmp_path)!r})
local.launch(job, flags, dry_run=False)
"""
    launcher = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    pid = int(launcher.stdout.readline().split()[1])
    while not (tmp_path / "mark0").exists():
        time.sleep(0.02)
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    deadline = time.monotonic() + 10.0
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}/exe").exists()


def test_devices(monkeypatch):
    cpu = local.device_variables(
        {"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=8"},
        num_processes=2,
        each=3,
    )
    assert [v["XLA_FLAGS"].split() for v in cpu] == [
        ["--a=1", "--xla_force_host_platform_device_count=3"]
    ] * 2
    monkeypatch.setattr(local.importlib.util, "find_spec", lambda name: name)
    seen = {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    gpus = local.device_variables(seen, num_processes=2, each=2)
    assert gpus == [{"CUDA_VISIBLE_DEVICES": "4,5"}, {"CUDA_VISIBLE_DEVICES": "6,7"}]
    with pytest.raises(UserError, match=r"--processes=3: .* <= 2, .* 4 GPUs"):
        local.device_variables(seen, num_processes=3, each=2)
    with pytest.raises(UserError, match="JAX_PLATFORMS=tpu"):
        local.device_variables({"JAX_PLATFORMS": "tpu"}, num_processes=2, each=1)
    on_cpu = {**seen, "JAX_PLATFORMS": "cpu"}
    assert "XLA_FLAGS" in local.device_variables(on_cpu, num_processes=9, each=1)[0]
