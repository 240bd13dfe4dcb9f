"""A run that the devices have no memory for tells what it would have needed."""

import types

import jax
import pytest

from lmjax.cli import main, plans
from lmjax.plan.present import present_target
from lmjax.training import loop

QUICKSTART = "--config=experiments/lm/quickstart.py"


def test_the_plan_is_printed_and_the_error_is_one_line(monkeypatch, tmp_path, capsys):
    def fail(*args, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no 9 GB\nmore lines")

    planned = []
    monkeypatch.setattr(loop, "train", fail)
    monkeypatch.setattr(plans, "explain_out_of_memory", planned.append)
    assert main.main(["train", QUICKSTART, f"--workdir={tmp_path}"]) == 2
    assert [config.batch_size for config in planned] == [8]
    (line,) = capsys.readouterr().err.splitlines()
    assert "no 9 GB" in line and "--search" in line and "more" not in line


def device(kind, platform, **more):
    return types.SimpleNamespace(device_kind=kind, platform=platform, **more)


@pytest.mark.parametrize(
    ("devices", "name"),
    [
        ([device("cpu", "cpu")] * 8, "cpu:8"),
        (
            [device("NVIDIA H200", "gpu", process_index=i // 4) for i in range(8)],
            "gpu:h200:2x4",
        ),
        (
            [
                device("TPU v6 lite", "tpu", coords=(x, y, 0), slice_index=s)
                for x in range(2)
                for y in range(4)
                for s in range(2)
            ],
            "tpu:v6e:2x4*2",
        ),
        ([device("NVIDIA L40", "gpu", process_index=0)], None),
        ([device("TPU v9", "tpu", coords=(0, 0, 0))], None),
    ],
)
def test_the_machine_that_is_there(devices, name):
    found = present_target(devices)
    assert (None if found is None else found.name) == name
