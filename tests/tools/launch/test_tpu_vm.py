"""The command line for the hosts of a TPU VM survives two shells."""

import argparse
import os
import shlex
import subprocess

import pytest

from lmjax.errors import UserError
from tools.launch import tpu_vm
from tools.launch.job import Job

HOSTILE = (
    "data.path=/data/two words",
    """data.prefix='single' "double" `id` $HOME $(id) \\ # * ; && ~""",
    "data.suffix=first\nsecond\n",
)
GCLOUD = """\
#!/bin/bash
printf '%s\\0' "$@" > gcloud
exit 7
"""
PYTHON = """\
#!/bin/bash
printf '%s\\0' "$PWD" "$@" > "$SHOWN"
"""


def parse(*argv):
    parser = argparse.ArgumentParser()
    for flag in tpu_vm.FLAGS:
        parser.add_argument(flag.name, **flag.options)
    return parser.parse_args(argv)


def make_job(**changes):
    fields = {"config": "x.py", "workdir": "gs://bucket/x", "overrides": HOSTILE}
    return Job(**fields | changes)


def test_every_host_runs_the_command(tmp_path, monkeypatch):
    for name, text in (("gcloud", GCLOUD), ("python3", PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    there = tmp_path / "my checkout"
    there.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SHOWN", str(tmp_path / "shown"))
    flags = parse("v5p", "--zone=us-east5-a", "--project=me-1", f"--directory={there}")
    assert tpu_vm.launch(make_job(), flags, dry_run=False) == 7
    *given, command = (tmp_path / "gcloud").read_text().split("\0")[:-1]
    assert given == [
        *("compute", "tpus", "tpu-vm", "ssh", "v5p"),
        *("--zone=us-east5-a", "--project=me-1", "--worker=all"),
    ]
    remote = command.removeprefix("--command=")
    subprocess.run(["bash", "-c", remote], check=True)  # as sshd does
    directory, *args = (tmp_path / "shown").read_text().split("\0")[:-1]
    assert directory == str(there)
    assert args == [
        *("-m", "lmjax.cli", "train", "--config=x.py", "--workdir=gs://bucket/x"),
        *(f"--config.{override}" for override in HOSTILE),
        "--distributed",
    ]


def test_what_is_shown_can_be_pasted(capsys):
    flags = parse("v5p", "--zone=us-east5-a")
    assert tpu_vm.launch(make_job(), flags, dry_run=True) == 0
    assert shlex.split(capsys.readouterr().out) == tpu_vm.ssh_command(
        make_job(), flags, name="v5p"
    )


@pytest.mark.parametrize(
    ("argv", "pattern"),
    [
        (["V5p", "--zone=us-east5-a"], "NAME=V5p: "),
        (["v5p;id", "--zone=us-east5-a"], "NAME=v5p;id: "),
        (["v5p", "--zone=us east"], "--zone=us east: "),
        (["v5p", "--zone="], "--zone=: "),
        (["v5p", "--zone=us-east5-a", "--project=A b"], "--project=A b: "),
    ],
)
def test_mistakes_are_one_line(argv, pattern):
    with pytest.raises(UserError, match=pattern):
        tpu_vm.launch(make_job(), parse(*argv), dry_run=True)


def test_a_missing_program_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="gcloud: no such program"):
        tpu_vm.launch(make_job(), parse("a", "--zone=us-east5-a"), dry_run=False)
