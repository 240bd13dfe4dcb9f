"""A Slurm cluster on this machine: a controller and node daemons, for tests.

    python tests/tools/launch/slurm_cluster.py

starts it, prints how to use it, and stops it at Ctrl-C or SIGTERM. Needs `apt-get
install slurm-wlm munge`. Jobs run as the user that starts it.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# Daemons end with this process, however it ends.
CHILD = (sys.executable, "-I", str(Path(__file__).parents[3] / "tools/child.py"))
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol")
START_SECONDS = 30
CONFIG = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/linear
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=20
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=z-second NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=low Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=20
PartitionName=high Nodes=ALL State=UP PriorityTier=2
"""


def why_not() -> str:
    """Return why a cluster cannot be started here, or an empty text."""
    missing = [name for name in PROGRAMS if find(name) is None]
    return f"needs slurm-wlm and munge: no {', '.join(missing)}" if missing else ""


def find(program: str) -> str | None:
    """Return the path of a program, also of one that only administrators use."""
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextlib.contextmanager
def start() -> Iterator[dict[str, str]]:
    """Run a cluster of two nodes, and yield the variables for its commands."""
    # Sockets have short names, and munged wants directories that only their owner can
    # write to.
    directory = Path(tempfile.mkdtemp(prefix="slurm-"))
    (directory / "state").mkdir()
    key = directory / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    directory.chmod(0o711)
    host = socket.gethostname().partition(".")[0]
    config = directory / "slurm.conf"
    config.write_text(
        CONFIG.format(
            directory=directory, host=host, user=getpass.getuser(), ports=_free_ports(3)
        )
    )
    environ = {**os.environ, "SLURM_CONF": str(config)}
    munged = [
        "munged",
        "--foreground",
        "--force",
        f"--key-file={key}",
        f"--socket={directory / 'munge.socket'}",
        f"--pid-file={directory / 'munged.pid'}",
        f"--log-file={directory / 'munged.log'}",
        f"--seed-file={directory / 'munged.seed'}",
    ]
    daemons = []
    try:
        daemons.append(_spawn(munged, environ, directory))
        _wait_for(lambda: (directory / "munge.socket").exists(), directory)
        daemons.append(_spawn(["slurmctld", "-D", "-c"], environ, directory))
        for node in (host, "z-second"):
            daemons.append(_spawn(["slurmd", "-D", "-N", node], environ, directory))
        _wait_for(lambda: _idle_nodes(environ) == 2, directory)
        yield environ
    finally:
        _kill_jobs(environ)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _kill_jobs(environ: dict[str, str]) -> None:
    """Kill what still runs, which node daemons that end would leave alone."""
    options = {"env": environ, "capture_output": True, "text": True}
    jobs = subprocess.run(["squeue", "--noheader", "--format=%A"], **options)
    for number in jobs.stdout.split():
        subprocess.run(["scancel", "--full", "--signal=KILL", number], **options)
        subprocess.run(["scancel", number], **options)


def _spawn(
    command: list[str], environ: dict[str, str], directory: Path
) -> subprocess.Popen[bytes]:
    path = find(command[0])
    assert path is not None
    with (directory / "daemons.log").open("ab") as log:
        return subprocess.Popen(
            [*CHILD, str(os.getpid()), path, *command[1:]],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
        )


def _idle_nodes(environ: dict[str, str]) -> int:
    command = ["sinfo", "--noheader", "--Node", "--partition=low", "--format=%t"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    return done.stdout.split().count("idle")


def _wait_for(is_ready, directory: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_ready():
        if time.monotonic() > deadline:
            log = (directory / "daemons.log").read_text(errors="replace")
            raise RuntimeError(f"the cluster does not start:\n{log[-3000:]}")
        time.sleep(0.2)


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


if __name__ == "__main__":
    if reason := why_not():
        sys.exit(reason)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit())
    with start() as variables:
        print(f"export SLURM_CONF={variables['SLURM_CONF']}; sinfo", flush=True)
        while True:
            time.sleep(3600)
