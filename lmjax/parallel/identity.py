"""Who a process is among those of its run, as its launcher or cluster says.

Each fact (the address of the first process, the number of processes, the index of this
one) is taken from the first source that gives it:

1. the variables of a launcher: LAUNCHER
2. mpirun: Open MPI, MPICH, Intel MPI
3. Slurm: the step that `srun` has started
4. Cloud TPUs, on GKE or as virtual machines
5. Kubernetes: the index in an indexed Job, and the rest from its API where the package
   `kubernetes` is installed

Without `--distributed` only the first is asked. Reading the others is jax's own work
where it reads them right.
"""

import dataclasses
import importlib.util
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmjax.errors import UserError, nearest
from lmjax.parallel.rendezvous import split_address

# Environment variables that a launcher sets, by the names that jax gives them.
LAUNCHER = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_FACTS = ("address", "num_processes", "index")
_PORT = "JAX_COORDINATOR_PORT"  # in place of the one that a cluster's source chooses

Facts = dict[str, str]  # from the names of _FACTS, and local_index, num_local


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """A process among those of its run.

    Args:
      address: HOST:PORT, where the first process is met.
      num_processes: of the run.
      index: of this process, from 0.
      source: where these facts are from.
      gpus: those of this host that this process uses; None: all that it sees.
    """

    address: str
    num_processes: int
    index: int
    source: str
    gpus: list[int] | None = None


def find_identity(*, detect: bool) -> Identity | None:
    """Return who this process is; None for one that trains alone.

    Args:
      detect: ask all sources, not only the launcher's variables.

    Raises:
      UserError: a fact is missing, or is none.
    """
    facts: Facts = {}
    used: list[str] = []
    for source, read in SOURCES.items() if detect else [*SOURCES.items()][:1]:
        if all(name in facts for name in _FACTS):
            break
        try:
            found = read()
        except (ValueError, KeyError, RuntimeError, OSError, LookupError) as error:
            text = " ".join(str(error).split())
            raise UserError(f"--distributed: {source}: {text}") from error
        if new := found.keys() - facts.keys():
            used.append(source)
            facts |= {name: found[name] for name in new}
    if not used:
        if not detect:
            return None
        raise UserError(
            f"--distributed: found none of: {', '.join(SOURCES)}; set "
            f"{', '.join(LAUNCHER)}"
        )
    if missing := [v for v, fact in _variables() if fact not in facts]:
        raise UserError(_describe_missing(missing, used, detect=detect))
    source = " and ".join(used)
    num = _count("num_processes", facts, least=1, source=source)
    index = _count("index", facts, least=0, source=source)
    if index >= num:
        raise UserError(
            f"{LAUNCHER[2]}={index}: must be < {LAUNCHER[1]}={num} ({source})"
        )
    try:
        split_address(facts["address"])
    except ValueError:
        raise UserError(
            f"{LAUNCHER[0]}={facts['address']}: must be HOST:PORT ({source})"
        ) from None
    return Identity(
        address=facts["address"],
        num_processes=num,
        index=index,
        source=source,
        gpus=_own_gpus(facts),
    )


def describe_ignored() -> str:
    """Return what a cluster says of several processes, or "" if it says nothing.

    For a process that has not been told to ask it.
    """
    for source in ("mpirun", "Slurm"):
        try:
            num = int(SOURCES[source]().get("num_processes", 1))
        except (ValueError, KeyError, RuntimeError):
            continue
        if num > 1:
            return (
                f"{source} has started {num} processes, but each trains alone: "
                "--distributed joins them"
            )
    return ""


def _variables() -> list[tuple[str, str]]:
    return list(zip(LAUNCHER, _FACTS, strict=True))


def _describe_missing(missing: list[str], used: list[str], *, detect: bool) -> str:
    """Return the error of facts that nobody gives."""
    others = [name for name in os.environ if name.startswith("JAX_")]
    hints = [hint for name in missing if (hint := nearest(name, others))]
    given = " and ".join(name for name in LAUNCHER if os.environ.get(name))
    text = f"{' and '.join(missing)}: not set"
    if not detect:
        text += f", but {given} is; set all {len(LAUNCHER)}, or --distributed"
        return text + "".join(hints[:1])
    return f"{text}, and not known from {' and '.join(used)}{''.join(hints[:1])}"


def _count(name: str, facts: Facts, *, least: int, source: str) -> int:
    text = facts[name].strip()
    if text.isdecimal() and int(text) >= least:
        return int(text)
    variable = dict(zip(_FACTS, LAUNCHER, strict=True))[name]
    raise UserError(f"{variable}={text}: must be an integer >= {least} ({source})")


def _own_gpus(facts: Facts) -> list[int] | None:
    """Return this process's share of the GPUs that all processes of a host see."""
    index, num = (int(facts.get(name) or 0) for name in ("local_index", "num_local"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        num_visible = len(list(Path("/dev").glob("nvidia[0-9]*")))
    else:
        num_visible = len([name for name in visible.split(",") if name])
    each = num_visible // num if num > 1 else 0
    return list(range(index * each, (index + 1) * each)) or None


def _given(**names: str) -> Facts:
    """Return the facts whose variables are set and not empty."""
    return {
        fact: os.environ[name] for fact, name in names.items() if os.environ.get(name)
    }


def _read_launcher() -> Facts:
    return _given(**{fact: name for name, fact in _variables()})


def _read_mpi() -> Facts:
    """Read what mpirun tells: the first of its processes is found on one host only."""
    facts = _given(
        num_processes="OMPI_COMM_WORLD_SIZE",
        index="OMPI_COMM_WORLD_RANK",
        local_index="OMPI_COMM_WORLD_LOCAL_RANK",
        num_local="OMPI_COMM_WORLD_LOCAL_SIZE",
    ) or _given(
        num_processes="PMI_SIZE",
        index="PMI_RANK",
        local_index="MPI_LOCALRANKID",
        num_local="MPI_LOCALNRANKS",
    )
    if not facts:
        return {}
    from jax._src.clusters import OmpiCluster

    if OmpiCluster.is_env_present():  # Open MPI before its version 5
        facts["address"] = _ask(OmpiCluster, "address")
    elif facts.get("num_local") == facts.get("num_processes"):
        names = ("PMIX_NAMESPACE", "PMI_JOBID", "MPI_JOBID", "PMI_FD")
        job = next((os.environ[name] for name in names if os.environ.get(name)), "")
        port = os.environ.get(_PORT) or str(
            _LAST_PORTS + zlib.crc32(job.encode()) % 4096
        )
        facts["address"] = f"127.0.0.1:{port}"
    return facts


_LAST_PORTS = (1 << 16) - 4096  # jax derives ports of this range from a job's number


def _read_slurm() -> Facts:
    """Read what Slurm tells the tasks of a step.

    The number of tasks is that of the step: SLURM_NTASKS is of the whole job.
    """
    facts = _given(
        num_processes="SLURM_STEP_NUM_TASKS",
        index="SLURM_PROCID",
        local_index="SLURM_LOCALID",
    )
    if len(facts) < 3 or not os.environ.get("SLURM_STEP_NODELIST"):
        return {}
    from jax._src.clusters import SlurmCluster

    counts = expand_counts(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = int(os.environ.get("SLURM_NODEID") or 0)
    if node < len(counts):
        facts["num_local"] = str(counts[node])
    return facts | {"address": _ask(SlurmCluster, "address")}


def expand_counts(text: str) -> list[int]:
    """Return the numbers of tasks of all nodes, of a text such as "2(x3),1"."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in parts for _ in range(int(times or 1))]


def _read_tpu() -> Facts:
    from jax._src.clusters import GceTpuCluster, GkeTpuCluster

    for cluster in (GkeTpuCluster, GceTpuCluster):
        if cluster.is_env_present():
            return {name: _ask(cluster, name) for name in _FACTS}
    return {}


def _read_kubernetes() -> Facts:
    facts = _given(index="JOB_COMPLETION_INDEX")
    if not facts or importlib.util.find_spec("kubernetes") is None:
        return facts
    from jax._src.clusters import K8sCluster

    if not K8sCluster.is_env_present():
        return facts
    return facts | {name: _ask(K8sCluster, name) for name in _FACTS[:2]}


def _ask(cluster: Any, fact: str) -> str:
    """Return a fact as jax reads it from a cluster."""
    if fact == "address":
        return cluster.get_coordinator_address(_DNS_SECONDS, os.environ.get(_PORT))
    if fact == "index":
        return str(cluster.get_process_id())
    return str(cluster.get_process_count())


_DNS_SECONDS = 60  # for the name of the first process to be known

SOURCES: dict[str, Callable[[], Facts]] = {
    "launcher": _read_launcher,
    "mpirun": _read_mpi,
    "Slurm": _read_slurm,
    "Cloud TPU": _read_tpu,
    "Kubernetes": _read_kubernetes,
}
