"""Where and when a run was started, each time: starts.jsonl."""

import datetime
import json
import platform
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lmjax.fileio import write_bytes, write_errors
from lmjax.parallel import processes

STARTS = "starts.jsonl"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")


def note_start(workdir: Path, *, step: int, mesh: Mesh) -> None:
    """Add a line with the time, the devices and the versions of packages.

    The first process writes for all.

    Raises:
      UserError: it cannot be written.
    """
    with processes.sync_errors():
        if processes.is_first():
            path = workdir / STARTS
            with write_errors(path):
                before = path.read_bytes() if path.exists() else b""
            line = json.dumps(_describe(step=step, mesh=mesh)) + "\n"
            write_bytes(path, before + line.encode())


def _describe(*, step: int, mesh: Mesh) -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in _PACKAGES}
    return {
        "step": step,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "num_processes": jax.process_count(),
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "versions": {"python": platform.python_version(), **versions},
    }


def read_starts(workdir: Path) -> list[dict[str, Any]]:
    """Return the lines of a run, oldest first; damaged ones are left out."""
    path = workdir / STARTS
    text = path.read_text(errors="replace") if path.exists() else ""
    starts = []
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict):
            starts.append(values)
    return starts
