"""Checkpoints of two processes: read once, passed over by both, failed by both."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "checkpoint_in_processes.py"
NUM_PROCESSES = 2


@pytest.mark.slow
def test_two_processes_save_damage_and_restore(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environ = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environ |= {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(NUM_PROCESSES),
        "PYTHONPATH": str(SCRIPT.parents[2]),
    }
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path)],
            env=environ | {"JAX_PROCESS_ID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(NUM_PROCESSES)
    ]
    try:
        said = [process.communicate(timeout=100) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0, 0], said
    found = [json.loads(out.splitlines()[-1]) for out, _ in said]
    for one in found:
        assert one["restored"] and one["passed_over"] and one["steps"] == [1]
        assert "No space left on device" in one["error"], one
        assert "complete ones: [1]" in one["error"], one
        assert one["seconds_to_error"] < 15
        # Each reads half of it, and little else.
        assert one["bytes_read"] < 0.6 * one["bytes_of_state"]
    total = sum(one["bytes_read"] for one in found)
    assert 0.8 < total / found[0]["bytes_of_state"] < 1.1  # random numbers, compressed
    assert {p.name for p in tmp_path.glob("checkpoints/[0-9]*")} & {"1", "3"} == {"1"}
