"""Workers of one search, on each target."""

import dataclasses
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from tools.launch import local
from tools.launch.command import main, make_sweep

TOOLS = Path(__file__).parents[1]
ROOT = TOOLS.parents[1]
CONFIG = {
    "num_steps": 8,
    "batch_size": 8,
    "model": {"dim": 16, "num_layers": 1, "num_heads": 2, "max_length": 32},
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "text", "path": "text.txt", "document": "line", "length": 32},
    "eval": {"every_steps": 2, "num_batches": 1},
    "log": {"tensorboard": False},
}
RANGE = "--search.optim.learning_rate=log:1e-4:1e-1"
# `tools/sweep.py` with a stand-in for `lmjax train`.
WORKER = f"""
import sys, types
sys.modules["tools.sweep.plot"] = types.SimpleNamespace(write_plot=lambda *_: None)
from tools.sweep import command
command.check_metric = lambda config, metric: None
trainer = [sys.executable, "-S", "-E", {str(TOOLS / "trainer.py")!r}]
sys.exit(command.main(sys.argv[1:], trainer=trainer))
"""


@pytest.fixture
def search(tmp_path):
    (tmp_path / "x.py").write_text(f"def get_config():\n    return {CONFIG!r}\n")
    flags = [f"--config={tmp_path / 'x.py'}", f"--workdir={tmp_path / 'a sweep'}"]
    return [*flags, "--metric=loss", "--mode=min", RANGE, "--config.seed=3"]


def shown(argv, search, capsys):
    assert main([*argv, "--dry_run", "--", "sweep", *search]) == 0
    return capsys.readouterr().out


def test_local_workers_do_not_join_each_other(search, capsys):
    lines = shown(["local", "--processes=2"], search, capsys).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert str(ROOT / "tools/sweep.py") in line and RANGE in line
        assert "JAX_PROCESS_ID" not in line and "--config.seed=3" in line


def test_slurm_has_a_job_of_one_node_for_each_worker(search, capsys):
    argv = ["slurm", "--time=60", "--nodes=3", "--gpus_per_node=8", "--requeue"]
    script = shown(argv, search, capsys)
    for line in ("array=1-3", "nodes=1", "ntasks-per-node=1", "gpus-per-node=8"):
        assert f"#SBATCH --{line}\n" in script
    assert str(ROOT / "tools/sweep.py") in script
    assert "--distributed" not in script


def test_kubernetes_has_a_pod_for_each_worker(search, tmp_path, capsys):
    argv = ["k8s", "--image=x", "--topology=gpu:h200:8x1", "--slices=3"]
    text = shown([*argv, f"--storage=claim:{tmp_path}"], search, capsys)
    _, job_set = yaml.safe_load_all(text)
    (slices,) = job_set["spec"]["replicatedJobs"]
    assert slices["replicas"] == 3
    (container,) = slices["template"]["spec"]["template"]["spec"]["containers"]
    assert {"name": "LMJAX_NUM_PROCESSES", "value": "1"} in container["env"]
    args = container["args"]
    assert args[:3] == ["python", "tools/sweep.py", "--config=/config/x.py"]
    assert RANGE in args


def test_every_tpu_vm_has_a_worker(search, capsys):
    argv = ["tpu-vm", "a,b", "--zone=us-east5-a"]
    lines = shown(argv, search, capsys).splitlines()
    assert [line.split()[5] for line in lines] == ["a", "b"]
    assert all("python3 tools/sweep.py --config=" in line for line in lines)


@pytest.mark.parametrize(
    ("argv", "change", "parts"),
    [
        (["local", "--processes=2"], {"sweep": "swep"}, ["-- swep", "-- sweep"]),
        (["local", "--processes=2"], {"--config=": "--confi="}, ["needs --config="]),
        (["local", "--processes=2"], {"--workdir=": "--w="}, ["needs --workdir="]),
        (["local", "--processes=2"], {"=3": "=x"}, ["config.seed", "x"]),
        (["local", "--processes=2"], {"--workdir=": "--workdir=gs:/"}, ["share"]),
        (["local"], {}, ["--processes"]),
        (["local", "--processes=2", "--config.seed=4"], {}, ["--config.seed"]),
        (["slurm", "--time=60", "--follow"], {}, ["--follow"]),
        (["tpu-vm", "a,", "--zone=us-east5-a"], {}, ["NAME="]),
        (["k8s", "--image=x", "--topology=gpu:h200:8x2"], {}, ["2 hosts", "--slices"]),
        (
            ["k8s", "--image=x", "--topology=gpu:h200:8x1", "--storage=gs://abc:/tmp"],
            {},
            ["--workdir", "--storage=CLAIM"],
        ),
    ],
)
def test_mistakes_are_one_line(argv, change, parts, search, tmp_path, capsys):
    rest = ["sweep", *search]
    for old, new in change.items():
        rest = [text.replace(old, new) for text in rest]
    assert main([*argv, "--dry_run", "--", *rest]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert all(part in error for part in parts), error


@pytest.mark.slow
def test_two_workers_lose_and_repeat_no_trial(search, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("GATE", str(tmp_path / "gate"))
    (tmp_path / "worker.py").write_text(WORKER)
    job = make_sweep([*search, "--num_trials=4", "--pruner=none"])

    class WorkerJob(type(job)):
        def train_command(self, program=(), *, distributed=False):
            _, _, *flags = super().train_command()
            return [sys.executable, str(tmp_path / "worker.py"), *flags]

    fields = {f.name: getattr(job, f.name) for f in dataclasses.fields(job)}
    flags = type("Flags", (), {"processes": 2, "devices_per_process": 1})
    flags.max_restarts = 0
    workdir = tmp_path / "a sweep"

    def open_gate():  # once each has a trial
        while not (workdir / "trials/1/starts").exists():
            time.sleep(0.05)
        (tmp_path / "gate").touch()

    threading.Thread(target=open_gate, daemon=True).start()
    assert local.launch(WorkerJob(**fields), flags, dry_run=False) == 0
    study = optuna.load_study(
        study_name="sweep", storage=f"sqlite:///{workdir / 'study.db'}"
    )
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 4
    starts = [
        (workdir / f"trials/{number}/starts").read_text().splitlines()
        for number in range(4)
    ]
    assert all(len(lines) == 1 and lines[0].split()[0] == "0" for lines in starts)
    assert len({lines[0].split()[1] for lines in starts}) == 2  # both took part
    assert len({t.params["optim.learning_rate"] for t in study.trials}) == 4
