"""The script for sbatch says what the command line says; a real Slurm runs it."""

import argparse
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lmjax.errors import UserError
from tools.launch import slurm
from tools.launch.job import Job

HOSTILE = (
    "data.path=/data/two words",
    """data.prefix='single' "double" `id` $HOME $(id) \\ # * ; @COMMAND@ && ~""",
    "data.suffix=first\n#SBATCH --nodes=9\n",
)


def parse(*argv):
    parser = argparse.ArgumentParser()
    for flag in slurm.FLAGS:
        parser.add_argument(flag.name, **flag.options)
    return parser.parse_args(["--time=1:00:00", *argv])


def make_job(**changes):
    fields = {"config": "x.py", "workdir": "/runs/first", "overrides": HOSTILE}
    return Job(**fields | changes)


def directives(script):
    """Return the options that sbatch reads: those before the first command."""
    found = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            (option,) = shlex.split(line.removeprefix("#SBATCH "))
            name, _, value = option.removeprefix("--").partition("=")
            found[name] = value
        elif line and not line.startswith("#"):
            break
    return found


def test_options_of_sbatch():
    flags = parse(
        *("--nodes=4", "--gpus_per_node=h100:8", "--partition=gpu", "--account=me"),
        *("--requeue", "--cpus_per_task=12", "--sbatch=qos=high", "--sbatch=exclusive"),
    )
    found = directives(slurm.render(make_job(), flags))
    assert found == {
        "job-name": "first",
        "nodes": "4",
        "ntasks-per-node": "8",
        "gpus-per-node": "h100:8",
        "cpus-per-task": "12",
        "time": "1:00:00",
        "partition": "gpu",
        "account": "me",
        "signal": "B:TERM@120",
        "output": "/runs/first/logs/slurm-%j.log",
        "open-mode": "append",
        "requeue": "",
        "qos": "high",
        "exclusive": "",
    }
    found = directives(slurm.render(make_job(workdir="gs://b/x"), parse()))
    assert found["ntasks-per-node"] == "1"
    assert "gpus-per-node" not in found
    assert "no-requeue" in found
    assert found["output"] == f"{Path.cwd()}/slurm-%j.log"


SRUN = """\
#!/bin/bash
printf '%s\\0' "$@" > args
trap 'touch stopped; exit 75' TERM
for ((i = 0; i < ${WAIT:-0} && 1; i++)); do sleep 0.05; done
exit $CODE
"""
SCANCEL = """\
#!/bin/bash
echo "$@" > scancel
kill -TERM "$(cat srun.pid)"
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Stand-ins for the programs of Slurm that a script calls."""
    texts = {
        "srun": SRUN.replace("printf", "echo $$ > srun.pid\nprintf", 1),
        "scancel": SCANCEL,
        "squeue": "#!/bin/bash\necho $STATE\n",
        "scontrol": '#!/bin/bash\necho "$@" > scontrol\n',
    }
    directory = tmp_path / "bin"
    directory.mkdir()
    for name, text in texts.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "a,b")
    return tmp_path


def run(script, *, code=0, requeues=0, state="RUNNING", **options):
    environ = {
        **os.environ,
        "CODE": str(code),
        "SLURM_RESTART_COUNT": str(requeues),
        "STATE": state,
    }
    return subprocess.run(["bash", "-c", script], env=environ, **options)


def test_every_task_runs_the_command(programs):
    script = slurm.render(make_job(), parse("--cpus_per_task=3"))
    assert run(script).returncode == 0
    args = (programs / "args").read_text().split("\0")[:-1]
    assert args == [
        *("--label", "--wait=120", "--mpi=none", "--cpus-per-task=3"),
        *make_job().train_command(distributed=True),
    ]
    assert args[-len(HOSTILE) - 1 : -1] == [f"--config.{text}" for text in HOSTILE]


@pytest.mark.parametrize(
    ("flag", "end", "requeued"),
    [
        ("--requeue", {"code": 0}, False),
        ("--requeue", {"code": 75}, True),
        ("--requeue", {"code": 69}, True),  # another process was lost
        ("--requeue", {"code": 134}, True),  # aborted by the runtime
        ("--requeue", {"code": 137, "requeues": 2}, True),
        ("--requeue", {"code": 75, "requeues": 3}, False),
        ("--requeue", {"code": 2}, False),
        ("--requeue", {"code": 1}, False),
        ("--requeue", {"code": 75, "state": "COMPLETING"}, False),  # cancelled
        ("--requeue", {"code": 75, "state": ""}, False),
        ("--follow", {"code": 75}, False),
    ],
)
def test_a_stopped_job_is_requeued(flag, end, requeued, programs):
    script = slurm.render(make_job(), parse(flag, "--max_requeues=3"))
    assert run(script, **end).returncode == end["code"]
    assert (programs / "scontrol").exists() == requeued
    if requeued:
        assert (programs / "scontrol").read_text() == "requeue 17\n"


def test_a_job_that_slurm_requeues_too_often_does_not_start(programs):
    script = slurm.render(make_job(), parse("--requeue", "--max_requeues=3"))
    assert run(script, requeues=4).returncode == 75
    assert not (programs / "args").exists()


def test_a_signal_reaches_the_tasks_and_the_code_is_theirs(programs):
    script = slurm.render(make_job(), parse("--requeue"))
    environ = {**os.environ, "CODE": "0", "WAIT": "200", "STATE": "RUNNING"}
    process = subprocess.Popen(["bash", "-c", script], env=environ)
    while not (programs / "srun.pid").exists() or not (programs / "args").exists():
        time.sleep(0.02)
    time.sleep(0.1)  # until it traps the signal
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 75
    assert (programs / "scancel").read_text() == "--signal=TERM 17\n"
    assert (programs / "scontrol").read_text() == "requeue 17\n"


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:30", 90.5),
        ("1:30:00", 90),
        ("2-0", 2880),
        ("1-2:30", 1590),
        ("1-02:30:30", 1590.5),
        ("UNLIMITED", float("inf")),
    ],
)
def test_time_limits(text, minutes):
    assert slurm.parse_minutes(text) == minutes


@pytest.mark.parametrize(
    ("argv", "changes", "pattern"),
    [
        (["--nodes=0"], {}, "--nodes=0: must be >= 1"),
        (["--gpus_per_node=x"], {}, "--gpus_per_node=x: "),
        (["--gpus_per_node=-1"], {}, "--gpus_per_node=-1: "),
        (["--time=4"], {}, "--time=4: must be at least 5 minutes"),
        (["--time=1h"], {}, "--time=1h: must be MINUTES"),
        (["--time=-5"], {}, "--time=-5: must be"),
        (["--time=1:2:3:4"], {}, "--time=1:2:3:4: must be"),
        (["--partition=a b"], {}, "--partition=a b: "),
        (["--account=a\nb"], {}, "--account=a"),
        (["--cpus_per_task=0"], {}, "--cpus_per_task=0: "),
        (["--max_requeues=-1"], {}, "--max_requeues=-1: "),
        (["--sbatch=--nodes=4"], {}, "--sbatch=--nodes=4: .*use --nodes"),
        (["--sbatch=signal=USR1"], {}, "signal is set by the launcher"),
        (["--sbatch=qos high"], {}, "--sbatch=qos high: must be NAME"),
        (["--sbatch=qos="], {}, "--sbatch=qos=: must be NAME"),
        (["--sbatch=comment=a\nb"], {}, "--comment='a.nb': has a control"),
        ([], {"workdir": "/runs/a\nb"}, "has a control character"),
        ([], {"workdir": "/runs/a\\b"}, r"--workdir=/runs/a.b: "),
    ],
)
def test_mistakes_are_named(argv, changes, pattern):
    with pytest.raises(UserError, match=pattern):
        slurm.render(make_job(**changes), parse(*argv))


def test_a_missing_program_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="sbatch: no such program"):
        slurm.launch(make_job(workdir=str(tmp_path)), parse(), dry_run=False)
    assert not any(tmp_path.iterdir())
