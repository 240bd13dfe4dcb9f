"""Which layouts a search looks at, and how it finds the largest batch."""

import pytest

from lmjax.config.experiment import load
from lmjax.data.pipeline import resolve_vocabulary
from lmjax.errors import UserError
from lmjax.plan import search
from lmjax.plan.estimate import available_bytes, judge
from lmjax.plan.plot import write_plot
from lmjax.plan.report import print_overrides, print_plan
from lmjax.plan.target import parse_target


@pytest.fixture(scope="module")
def config():
    return resolve_vocabulary(
        load("experiments/lm/llama_8b.py", ["batch_size=16", "eval.batch_size=16"])
    )


@pytest.mark.slow
def test_layouts_multiply_to_the_machine_and_split_what_divides(config):
    target = parse_target("tpu:v5e:4x4")
    found = search.list_candidates(config, target)
    for candidate in found:
        mesh = candidate.config.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor == 16
        assert 8 % mesh.tensor == 0  # its kv heads
        assert 16 % (mesh.data * mesh.fsdp * candidate.config.num_microbatches) == 0
    by = {c.overrides: c for c in found}
    assert len(by) == len(found)
    same = lambda c, remat: tuple(
        f"model.remat={remat}" if o.startswith("model.remat") else o
        for o in c.overrides
    )
    for candidate in found:
        full = by[same(candidate, "full")]
        assert full.bytes <= candidate.bytes
        assert by[same(candidate, "none")].seconds <= candidate.seconds


@pytest.mark.slow
def test_arithmetic_is_near_what_was_compiled(config):
    """Llama 8B on 64 x v5p with remat full, a row of 8192 a device: 10 to 20 GB."""
    target = parse_target("tpu:v5p:4x4x4")
    big = load("experiments/lm/llama_8b.py", ["batch_size=64", "eval.batch_size=64"])
    found = [
        c
        for c in search.list_candidates(resolve_vocabulary(big), target)
        if c.config.mesh.fsdp == 64
        and c.config.model.remat == "full"
        and c.config.model.attention == "chunked"
    ]
    assert found and all(7e9 < c.bytes < 20e9 for c in found)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 8, 100, 1000])
def test_the_largest_is_found(limit):
    asked = []

    def holds(number):
        asked.append(number)
        return number <= limit

    found = search.largest_that(holds, most=1 << 14)
    if not limit:
        assert found is None
    else:
        assert limit * 7 / 8 - 1 <= found <= limit
        assert len(asked) < 16


@pytest.mark.parametrize("way", [search.search, search.fit])
def test_a_machine_without_known_memory(config, way):
    with pytest.raises(UserError, match=r"--(search|fit): .*cpu:8"):
        way(config, parse_target("cpu:8"), tokens=None, price=None)


MEASURED = {
    "mesh": {"data": 2, "fsdp": 4, "tensor": 1},
    "num_params": 1000,
    "tokens": 1e6,
    "formula_flops": 4e14,
    "attention_flops": 1e12,
    "least": {"data": 1e9, "fsdp": 3e9, "tensor": 0.0},
    "dtype": "bfloat16",
    "remat": "full",
    "attention": "cudnn",
    "batch_size": 8,
    "num_microbatches": 1,
    "length": 1024,
    "total_bytes": 40e9,
    "memory": {"parameters": 30e9, "workspace": 10e9},
    "collectives": [
        {"kind": "all-gather", "axes": ["fsdp"], "dtype": "bf16", "count": 3,
         "bytes": 4.5e9, "whole": 9e9, "asynchronous": 1.0},
        {"kind": "all-reduce", "axes": ["data"], "dtype": "bf16", "count": 3,
         "bytes": 1e9, "whole": 1e9, "asynchronous": 0.0},
    ],
    "flops": {"bf16": 4.945e14},
    "kernels": {"forward": 2, "backward": 2},
    "bytes": 3.352e11,
    "seconds": 0.6,
}  # fmt: skip


def test_time_fit_and_cost_follow_from_what_was_measured(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    one = judge(MEASURED, parse_target("gpu:h100:1x8"), tokens=1e12, price=2.0)
    two = judge(MEASURED, parse_target("gpu:h100:4x2"), tokens=1e12, price=2.0)
    time = one["roofline"]
    assert one["fits"] and one["margin_bytes"] == pytest.approx(
        0.75 * 84.94e9 - 40e9, rel=1e-3
    )
    assert time["compute_seconds"] == pytest.approx(0.6 + 7e12 / 989e12)
    assert time["memory_seconds"] == pytest.approx(0.1)
    # The gathers are hidden behind the work, the sum over data is not.
    assert time["exposed_send_seconds"] == pytest.approx(1 / 450)
    assert time["mfu"] == pytest.approx(4e14 / 989e12 / time["step_seconds"])
    # Over nodes of two GPUs the same bytes go through the network.
    slow = two["roofline"]["exposed_send_seconds"]
    assert slow == pytest.approx(1 / 50)
    training = one["training"]
    assert training["seconds"] == pytest.approx(1e6 * time["step_seconds"])
    assert training["dollars"] == pytest.approx(training["seconds"] / 3600 * 16)
    print_plan(one)
    print_overrides({**one, "overrides": ["mesh.data=2"]})
    text = capsys.readouterr().out
    assert "1.38 times" in text and "--config.mesh.data=2" in text
    write_plot([one, two], tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 1000


def test_a_plan_that_the_compiler_refused(capsys):
    refused = {k: v for k, v in MEASURED.items() if k not in ("flops", "collectives")}
    plan = judge(
        {**refused, "refused": "RESOURCE_EXHAUSTED: too much", "total_bytes": 17e9},
        parse_target("tpu:v5e:2x2"),
        tokens=1,
    )
    assert not plan["fits"]
    print_plan(plan)
    out = capsys.readouterr().out
    assert "does not fit" in out and "too much" in out


def test_jax_takes_three_quarters_of_a_gpu():
    target = parse_target("gpu:h100:1x8")
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}
    assert available_bytes(target, {}) == pytest.approx(0.75 * 84_942_979_072)
    assert available_bytes(target, share) == pytest.approx(0.9 * 84_942_979_072)
