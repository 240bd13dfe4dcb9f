"""Start the processes of a training on this machine."""

import argparse
import importlib.util
import itertools
import os
import re
import shlex
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path

from lmjax.cli.flags import parse_integer
from lmjax.cli.parser import Flag
from lmjax.errors import UserError
from lmjax.parallel.identity import LAUNCHER

from . import group
from .job import Job

EXIT_USER_ERROR = 2
RESTART_SECONDS = 1.0  # from the end of the processes to their restart
FLAGS = (
    Flag(
        "--processes",
        "the number of processes",
        type=parse_integer,
        required=True,
        metavar="N",
    ),
    Flag(
        "--devices_per_process",
        "GPUs of each process, or devices that its CPU is divided into; default: 1",
        type=parse_integer,
        default=1,
        metavar="M",
    ),
    Flag(
        "--max_restarts",
        "how often to start all processes again after a crash, or after one was told "
        "to stop (exit code 75) though this command was not; default: 0",
        type=parse_integer,
        default=0,
        metavar="K",
    ),
)
# What would let processes draw on a terminal that is not theirs, or count their devices
# differently.
_CONFUSING = ("FORCE_COLOR", "TTY_INTERACTIVE", "COLUMNS", "JAX_NUM_CPU_DEVICES")
_DEVICE_COUNT = "--xla_force_host_platform_device_count"


def launch(job: Job, flags: argparse.Namespace, *, dry_run: bool) -> int:
    """Start processes on this machine, and end them together."""
    least = {"processes": 1, "devices_per_process": 1, "max_restarts": 0}
    for name, bound in least.items():
        if (value := getattr(flags, name)) < bound:
            raise UserError(f"--{name}={value}: must be >= {bound}")
    command = job.train_command()
    devices = device_variables(
        os.environ, num_processes=flags.processes, each=flags.devices_per_process
    )
    if dry_run:
        for own, joining in zip(devices, _join(job, devices, "PORT"), strict=True):
            given = [f"{name}={shlex.quote(v)}" for name, v in (joining | own).items()]
            print(*given, shlex.join(command))
        return 0
    inherited = {k: v for k, v in os.environ.items() if k not in _CONFUSING}
    inherited |= {"PYTHONUNBUFFERED": "1", "TTY_COMPATIBLE": "0"}
    with group.Signals() as signals:
        for attempt in itertools.count(1):
            joining = _join(job, devices, str(free_port()))
            own = [a | b for a, b in zip(devices, joining, strict=True)]
            ending = group.run(
                command,
                environs=[inherited | variables for variables in own],
                logs=new_log_directory(job.workdir),
                signals=signals,
            )
            is_final = ending.code in (0, EXIT_USER_ERROR) or signals.received
            if is_final or attempt > flags.max_restarts:
                if ending.text:
                    group.say(ending.text)
                return ending.code
            group.say(f"{ending.text}; restart {attempt} of {flags.max_restarts}")
            signals.wait(RESTART_SECONDS)
            if signals.received:
                return ending.code
    raise AssertionError


def _join(job: Job, devices: list[dict[str, str]], port: str) -> list[dict[str, str]]:
    return [{} for _ in devices] if job.alone else join_variables(devices, port)


def join_variables(devices: list[dict[str, str]], port: str) -> list[dict[str, str]]:
    """Return the variables that tell each process who it is; out of others' reach."""
    address, number = f"127.0.0.1:{port}", str(len(devices))
    return [
        dict(zip(LAUNCHER, (address, number, str(rank)), strict=True))
        | {"JAX_COORDINATOR_BIND_ADDRESS": address}
        for rank in range(len(devices))
    ]


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def device_variables(
    environ: Mapping[str, str], *, num_processes: int, each: int
) -> list[dict[str, str]]:
    """Return the variables that give each process its devices.

    These are `each` of the GPUs, or `each` devices that its CPU is divided into.

    Raises:
      UserError: there are too few GPUs.
    """
    platform = environ.get("JAX_PLATFORMS", "").partition(",")[0]
    gpus = [] if platform == "cpu" else find_gpus(environ)
    if platform not in ("", "cpu") and not gpus:
        raise UserError(
            f"JAX_PLATFORMS={platform}: no such devices for several processes here; "
            "must be cpu, or cuda where there are GPUs"
        )
    if not gpus:
        others = re.sub(rf"{_DEVICE_COUNT}=\S*", "", environ.get("XLA_FLAGS", ""))
        flags = f"{others} {_DEVICE_COUNT}={each}".strip()
        return [{"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}] * num_processes
    if num_processes * each > len(gpus):
        raise UserError(
            f"--processes={num_processes}: with {each} GPUs each must be <= "
            f"{len(gpus) // each}, for there are {len(gpus)} GPUs "
            "(JAX_PLATFORMS=cpu uses the CPU)"
        )
    shares = [gpus[i * each : (i + 1) * each] for i in range(num_processes)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def find_gpus(environ: Mapping[str, str]) -> list[str]:
    """Return the names of the GPUs that jax can use, as in CUDA_VISIBLE_DEVICES."""
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    if not any(importlib.util.find_spec(name) for name in plugins):
        return []
    if (visible := environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    files = [path.name for path in Path("/dev").glob("nvidia[0-9]*")]
    return [str(i) for i in range(len(files))]


def new_log_directory(workdir: str) -> Path:
    """Create WORKDIR/logs/K, K being one more than that of the attempt before."""
    remote = "://" in workdir
    logs = Path(tempfile.mkdtemp()) if remote else Path(workdir) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(
        1 + max((int(p.name) for p in logs.iterdir() if p.name.isdigit()), default=0)
    ):
        try:
            (logs / str(number)).mkdir()
        except FileExistsError:
            continue
        return logs / str(number)
    raise AssertionError
