"""Steps compiled for machines that are not there, against goldens."""

import importlib.util
from importlib import metadata

import pytest

from lmjax.config.experiment import parse
from lmjax.errors import UserError
from lmjax.plan.compile import compile_step
from lmjax.plan.plan import plan
from lmjax.plan.target import parse_target

SMALL = {
    "batch_size": 8,
    "model": {
        "vocab_size": 512,
        "dim": 128,
        "num_layers": 3,
        "num_heads": 2,
        "num_kv_heads": 2,
        "mlp_dim": 384,
        "max_length": 128,
        "tie_embeddings": False,
    },
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "none", "length": 128},
}
CASES = {
    "fsdp": {"mesh": {"data": 1, "fsdp": -1}, "remat": "full"},
    "tensor": {"mesh": {"data": 2, "tensor": 2}, "remat": "dots"},
}


# Another compiler sends, and keeps, other things.
MADE_WITH = {"jaxlib": "0.10.2", "libtpu": "0.0.52"}


def config_of(case):
    changes = dict(CASES[case])
    mesh = changes.pop("mesh")
    return parse({**SMALL, "model": {**SMALL["model"], **changes}, "mesh": mesh})


def summary(found):
    """Return what must not change unnoticed: what is sent, and the memory in KB."""
    sent = {
        f"{row['kind']} {row['dtype']} over {'+'.join(row['axes'])}": [
            row["count"],
            round(row["bytes"] / 1e3),
        ]
        for row in found["collectives"]
        if row["bytes"] > 1e4
    }
    return {
        "sent, KB": sent,
        "memory, KB": round(found["total_bytes"] / 1e3),
        "MFLOPs": {name: round(n / 1e6) for name, n in found["flops"].items()},
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_tpu(case, golden):
    pytest.importorskip("libtpu", reason="needs pip install 'lmjax[plan]'")
    found = compile_step(config_of(case), parse_target("tpu:v5e:2x2"))
    assert found["num_unknown_loops"] == 0
    assert sum(found["memory"].values()) == pytest.approx(found["total_bytes"])
    if {name: metadata.version(name) for name in MADE_WITH} != MADE_WITH:
        pytest.skip(f"the goldens are of {MADE_WITH}")
    golden(f"plan_v5e_{case}", summary(found))


def test_gpu(golden):
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        pytest.skip("needs pip install 'lmjax[cuda]'")
    config = config_of("fsdp")
    found = compile_step(config, parse_target("gpu:h100:1x1"))
    golden("plan_h100", summary(found))


@pytest.mark.slow
def test_a_mesh_that_does_not_divide_the_machine():
    config = parse({**SMALL, "mesh": {"data": 4}})
    with pytest.raises(UserError, match=r"config.mesh = .*there are 2; .* fit"):
        plan(config, parse_target("cpu:2"))


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        ("tpu:v5p:4x4x4", 64),
        ("tpu:v6e:4x4*2", 32),
        ("tpu:tpu7x:2x2x1", 8),
        ("gpu:h200:8x8", 64),
        ("cpu:8", 8),
        ("tpu:v5q:2x2", "'v5q'.*did you mean 'v5p'.*v4, v5e"),
        ("gpu:h100", "gpu:h100:NODESxGPUS"),
        ("gpu:l40:1x8", "one of a100, h100"),
        ("gpux:h100:1x8", "did you mean 'gpu'"),
        ("tpu:v5e:2x2x2", "tpu:v5e:XxY"),
        ("tpu:v5p:4x4x0", "XxYxZ"),
        ("tpu:v6e:4x4*x", "for two"),
        ("cpu:0", "cpu:N"),
        ("cpu:8x8", "cpu:N"),
        ("cpu:99999", "4096"),
        ("", "cpu:DEVICES"),
    ],
)
def test_names_of_machines(topology, expected):
    if isinstance(expected, int):
        assert parse_target(topology).num_devices == expected
        return
    with pytest.raises(UserError, match=expected) as error:
        parse_target(topology)
    assert f"--topology={topology}" in str(error.value)
