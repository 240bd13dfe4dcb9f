"""Compile for a machine in a child process, and wait for what it measured."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lmjax.config.experiment import Config, to_dict
from lmjax.errors import UserError
from lmjax.plan.devices import check_packages, environment
from lmjax.plan.target import Target


def compile_step(config: Config, target: Target) -> dict[str, Any]:
    """Return what `worker.measure` does, of a process with its own environment.

    Raises:
      UserError: the mesh does not divide the machine, a kernel does not run on it, its
        compiler is not installed or fails.
    """
    check_packages(target)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "result.json")
        done = subprocess.run(
            [sys.executable, "-m", "lmjax.plan.worker", target.name, str(path)],
            input=json.dumps(to_dict(config)),
            env=environment(target, os.environ),
            text=True,
            capture_output=True,
        )
        if not path.exists():
            raise UserError(_describe_death(target, done))
        result = json.loads(path.read_text())
    if "error" in result:
        raise UserError(result["error"])
    return result


def _describe_death(target: Target, done: "subprocess.CompletedProcess[str]") -> str:
    """Say how a compiler ended that wrote no result; its stderr is kept."""
    file = tempfile.NamedTemporaryFile(  # noqa: SIM115
        "w", prefix="lmjax-plan-", suffix=".txt", delete=False
    )
    with file:
        file.write(done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode == -9:
        why = "was killed, as by a system that is out of memory"
    else:
        why = f"ended with exit code {done.returncode}"
        why += f": {lines[-1].strip()[:300]}" if lines else ""
    return (
        f"--topology={target.name}: the compiler {why} (its output is in {file.name})"
    )
