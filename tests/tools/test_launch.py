"""The launcher says what is wrong, or would be started, before it starts anything."""

import pytest

from lmjax.parallel.identity import LAUNCHER
from tools.launch.command import TARGETS, main

CONFIG = {
    "model": {"dim": 16, "num_layers": 1, "num_heads": 2},
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "python_stdlib", "length": 32},
}


@pytest.fixture
def argv(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(f"def get_config():\n    return {CONFIG!r}\n")
    return [f"--config={path}", f"--workdir={tmp_path / 'run'}"]


@pytest.mark.parametrize(
    ("target", "more", "parts"),
    [
        ([], [], ["expected a target", "local"]),
        (["lokal"], ["--processes=2"], ["lokal", "'local'"]),
        (["local"], [], ["--processes"]),
        (["local"], ["--processes=0"], ["--processes=0", ">= 1"]),
        (["local"], ["--processes=two"], ["--processes=two", "integer"]),
        (["local"], ["--procesess=2"], ["--process"]),
        (["local"], ["--processes=2", "--devices_per_process=0"], [">= 1"]),
        (["local"], ["--processes=2", "--max_restarts=-1"], ["=-1", ">= 0"]),
        (["local"], ["--processes=2", "--profile=3"], ["--profile=3", "FIRST:COUNT"]),
        (["local"], ["--processes=2", "--config.num_step=3"], ["'num_steps'"]),
        (["local"], ["--processes=2", "--config.batch_size"], ["--config.batch_size="]),
        (["local"], ["--processes=2", "extra"], ["extra"]),
        (["slrum"], [], ["slrum", "'slurm'"]),
        (["slurm"], [], ["--time"]),
        (["slurm"], ["--time=1h"], ["--time=1h", "MINUTES"]),
        (["slurm"], ["--time=60", "--knodes=2"], ["--knodes=2", "--nodes"]),
        (["k8s"], ["--image=x"], ["--topology"]),
        (["k8s"], ["--topology=gpu:h200:8x2"], ["--image"]),
        (["k8s"], ["--image=x", "--topology=gpu:h200"], ["--topology=gpu:h200"]),
        (["k8s"], ["--image=x", "--topology=gpu:l4:1x1"], ["--workdir=", "--storage"]),
        (["tpu-vm"], ["--zone=us-east5-a"], ["NAME"]),
        (["tpu-vm", "x"], ["--zone=us"], ["--zone=us"]),
    ],
)
def test_a_mistake_is_one_line_and_nothing_starts(
    argv, tmp_path, capsys, target, more, parts
):
    assert main([*target, *argv, *more]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert all(part in said for part in parts), said
    assert not (tmp_path / "run").exists()


def test_dry_run_prints_the_command_of_each_process(argv, tmp_path, capsys):
    more = ["--processes=2", "--devices_per_process=3", "--profile=20:5"]
    assert main(["local", *argv, *more, "--config.num_steps=7", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for rank, line in enumerate(lines):
        assert f"{LAUNCHER[2]}={rank}" in line and f"{LAUNCHER[1]}=2" in line
        assert "device_count=3" in line and "--config.num_steps=7" in line
        assert "--profile=20:5" in line
    assert len(lines) == 2 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("target", "part"),
    [
        (["slurm", "--time=60"], "#SBATCH --time=60\n"),
        (
            ["k8s", "--image=x", "--topology=gpu:l4:1x1", "--storage=a:/"],
            "kind: JobSet",
        ),
        (["tpu-vm", "x", "--zone=us-east5-a"], "gcloud compute tpus tpu-vm ssh x "),
    ],
)
def test_dry_run_prints_what_would_be_submitted(target, part, argv, tmp_path, capsys):
    target = [text.replace("a:/", f"a:{tmp_path}") for text in target]
    assert main([*target, *argv, "--config.num_steps=7", "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert part in shown and "--config.num_steps=7" in shown
    assert not (tmp_path / "run").exists()


def test_every_target_has_flags_and_a_summary():
    for name, target in TARGETS.items():
        assert target.launch.__doc__ and target.FLAGS is not None, name
