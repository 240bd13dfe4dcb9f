"""Processes learn who they are, meet in bounded time, or are told what is wrong."""

import concurrent.futures
import dataclasses
import json
import os
import socket
import sys
import threading
import time
import types

import pytest

from lmjax.errors import UserError
from lmjax.parallel import identity, rendezvous
from lmjax.parallel.identity import LAUNCHER, expand_counts, find_identity

TOLD = ("JAX_", "SLURM_", "OMPI_", "PMI", "MPI_", "TPU_", "JOB_", "KUBERNETES_", "CUDA")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in os.environ:
        if name.startswith(TOLD) and name != "JAX_PLATFORMS":
            monkeypatch.delenv(name)


def told(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


LAUNCHED = dict(zip(LAUNCHER, ("10.0.0.1:1234", "4", "3"), strict=True))
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[03-04,7],other",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_NTASKS": "8",  # of the job
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
OPEN_MPI_4 = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
OPEN_MPI_5 = {
    "PMIX_NAMESPACE": "prterun-host-1234@1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
HYDRA = {"PMI_SIZE": "4", "PMI_RANK": "2"}
INDEXED = {"JOB_COMPLETION_INDEX": "1", **dict([*LAUNCHED.items()][:2])}


@pytest.mark.parametrize(
    ("variables", "address", "num", "index", "source"),
    [
        (LAUNCHED, "10.0.0.1:1234", 4, 3, "launcher"),
        (SLURM, "node03:61447", 4, 3, "Slurm"),
        (SLURM | {"JAX_COORDINATOR_PORT": "99"}, "node03:99", 4, 3, "Slurm"),
        # mpirun starts its daemons by Slurm, one on each node, which tells of these.
        (SLURM | OPEN_MPI_4, "10.96.0.1:", 4, 2, "mpirun"),
        (SLURM | HYDRA, "node03:61447", 4, 2, "mpirun and Slurm"),
        (OPEN_MPI_5, "127.0.0.1:", 2, 1, "mpirun"),
        (LAUNCHED | SLURM | OPEN_MPI_4, "10.0.0.1:1234", 4, 3, "launcher"),
        (INDEXED, "10.0.0.1:1234", 4, 1, "launcher and Kubernetes"),
    ],
)
def test_who_a_process_is(monkeypatch, variables, address, num, index, source):
    told(monkeypatch, **variables)
    found = find_identity(detect=True)
    assert found.address.startswith(address)
    assert (found.num_processes, found.index, found.source) == (num, index, source)


@pytest.mark.parametrize(
    ("variables", "detect", "parts"),
    [
        ({}, True, ["--distributed", "mpirun", "Slurm", "Kubernetes", LAUNCHER[0]]),
        ({LAUNCHER[0]: "a:1"}, False, [*LAUNCHER, "--distributed"]),
        ({LAUNCHER[0]: "a:1"}, True, [*LAUNCHER[1:], "launcher"]),
        (LAUNCHED | {LAUNCHER[1]: ""}, False, [LAUNCHER[1], "not set"]),
        (
            {LAUNCHER[0]: "a:1", LAUNCHER[1]: "2", "JAX_PROCES_ID": "1"},
            False,
            ["did you mean 'JAX_PROCES_ID'"],
        ),
        (LAUNCHED | {LAUNCHER[2]: "4"}, False, [f"{LAUNCHER[2]}=4", "< ", "=4"]),
        (LAUNCHED | {LAUNCHER[2]: "-1"}, False, [f"{LAUNCHER[2]}=-1", ">= 0"]),
        (LAUNCHED | {LAUNCHER[1]: "0"}, False, [f"{LAUNCHER[1]}=0", ">= 1"]),
        (LAUNCHED | {LAUNCHER[0]: "host"}, False, [f"{LAUNCHER[0]}=host", "HOST:PORT"]),
        (LAUNCHED | {LAUNCHER[0]: "a:b"}, False, ["a:b", "HOST:PORT"]),
        (LAUNCHED | {LAUNCHER[0]: "a:99999"}, False, ["a:99999", "HOST:PORT"]),
        (HYDRA, True, [LAUNCHER[0], "mpirun"]),
        ({"JOB_COMPLETION_INDEX": "1"}, True, [LAUNCHER[0], "Kubernetes"]),
        (SLURM | {"SLURM_JOB_ID": "x"}, True, ["Slurm", "'x'"]),
        (SLURM | {"SLURM_NODEID": "x"}, True, ["Slurm", "'x'"]),
    ],
)
def test_facts_that_are_missing_or_wrong_are_named(
    monkeypatch, variables, detect, parts
):
    told(monkeypatch, **variables)
    with pytest.raises(UserError) as error:
        find_identity(detect=detect)
    assert all(part in str(error.value) for part in parts), error.value
    assert "\n" not in str(error.value)


def test_a_process_alone_joins_nobody_and_a_cluster_is_not_ignored(monkeypatch):
    assert find_identity(detect=False) is None and not identity.describe_ignored()
    told(monkeypatch, **SLURM)
    assert find_identity(detect=False) is None
    assert "4 processes" in identity.describe_ignored()
    told(monkeypatch, SLURM_STEP_NUM_TASKS="1")
    assert not identity.describe_ignored()


@pytest.mark.parametrize(
    ("visible", "gpus"), [("0,1,2,3", [2, 3]), ("0,1", [1]), ("0", None), ("", None)]
)
def test_processes_of_a_host_share_its_gpus(monkeypatch, visible, gpus):
    """One process of a host has all of them; bound ones have their own already."""
    told(monkeypatch, **SLURM, CUDA_VISIBLE_DEVICES=visible)
    assert find_identity(detect=True).gpus == gpus
    told(monkeypatch, SLURM_STEP_TASKS_PER_NODE="1(x4)", SLURM_LOCALID="0")
    assert find_identity(detect=True).gpus is None


def test_tasks_per_node():
    assert expand_counts("2(x3),1") == [2, 2, 2, 1] and expand_counts("") == []


def test_tpu_and_kubernetes_are_read_by_jax(monkeypatch):
    from jax._src import clusters
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, "get_tpu_env_value", lambda name: None)
    monkeypatch.setattr(clusters.GkeTpuCluster, "is_env_present", lambda: True)
    told(monkeypatch, TPU_WORKER_HOSTNAMES="127.0.0.1,b", TPU_WORKER_ID="1")
    found = find_identity(detect=True)
    assert (found.num_processes, found.index) == (2, 1)
    assert (found.address, found.source) == ("127.0.0.1:8482", "Cloud TPU")
    monkeypatch.setattr(clusters.GkeTpuCluster, "is_env_present", lambda: False)
    monkeypatch.setitem(
        sys.modules, "kubernetes", types.SimpleNamespace(__spec__="installed")
    )
    for name, value in {
        "is_env_present": True,
        "get_coordinator_address": "job-0.set:55527",
        "get_process_count": 2,
    }.items():
        monkeypatch.setattr(clusters.K8sCluster, name, lambda *_, v=value: v)
    told(monkeypatch, JOB_COMPLETION_INDEX="1")
    found = find_identity(detect=True)
    assert (found.address, found.num_processes) == ("job-0.set:55527", 2)
    assert (found.index, found.source) == (1, "Kubernetes")


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def hello(index, num=3, **changes):
    own = rendezvous.greeting(index=index, num_processes=num, versions={"jax": "1"})
    return dataclasses.replace(own, host=f"host{index}", **changes)


def meet(address, *greetings, seconds=10.0, bind=None):
    """Return what each process is told, and how long that took."""

    def one(own):
        try:
            where = address if bind is None else bind
            rendezvous.meet(own, address=address, bind=where, seconds=seconds)
        except UserError as error:
            return str(error)
        return ""

    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(len(greetings)) as threads:
        said = list(threads.map(one, greetings))
    return said, time.monotonic() - begin


@pytest.mark.parametrize("bind", [None, ""])
def test_processes_meet_in_any_order_among_strangers(address, bind):
    def disturb():
        for text in (b"GET / HTTP/1.1\n", b"{}\n", b"[1]\n", b""):
            for _ in range(20):
                try:
                    with socket.create_connection(
                        rendezvous.split_address(address)
                    ) as s:
                        s.sendall(text)
                    break
                except OSError:
                    time.sleep(0.01)

    thread = threading.Thread(target=disturb)
    thread.start()
    said, seconds = meet(address, hello(2), hello(1), hello(0), bind=bind)
    thread.join()
    assert said == ["", "", ""] and seconds < 5.0


def test_who_did_not_come_is_named_in_time(address):
    said, seconds = meet(address, hello(0), hello(2), seconds=1.0)
    for text in said:
        assert "process 1 of 3" in text and "0 on host0, 2 on host2" in text
        assert address in text and "1 s" in text
    assert seconds < 4.0
    (text,), seconds = meet(address, hello(2), seconds=0.5)
    assert address in text and "process 2 of 3, on host2" in text
    assert "refused" in text and seconds < 2.0
    (text,), _ = meet(address, hello(0, num=40), seconds=0.5)
    assert "and 29 more of 40" in text


def test_a_process_that_left_has_not_come(address):
    left = threading.Thread(target=leave_early, args=(address,))
    left.start()
    (text,), _ = meet(address, hello(0), seconds=1.0)
    left.join()
    assert "processes 1, 2 of 3 did not come" in text


def leave_early(address):
    line = json.dumps({"lmjax": "greeting", **dataclasses.asdict(hello(1))})
    for _ in range(50):
        try:
            with socket.create_connection(rendezvous.split_address(address)) as s:
                s.sendall(line.encode() + b"\n")
                time.sleep(0.1)
            return
        except OSError:
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("others", "parts"),
    [
        ([hello(1), hello(2, versions={"jax": "2"})], ["on host2 has jax 2", "has 1"]),
        ([hello(1), hello(2, versions={})], ["on host2 has jax none"]),
        ([hello(1), hello(2, num=4)], ["host2", "one of 4", "host0", "one of 3"]),
        ([hello(1), hello(1, pid=7)], ["two processes", "process 1", "pid 7"]),
    ],
)
def test_processes_that_do_not_belong_together_are_told_why(
    monkeypatch, address, others, parts
):
    monkeypatch.setattr(rendezvous, "_LATE_SECONDS", 1.0)
    said, seconds = meet(address, hello(0), *others)
    assert len({*said}) == 1 and seconds < 8.0
    assert all(part in said[0] for part in parts), said[0]


def test_an_address_that_is_not_the_first_process(address):
    with socket.create_server(rendezvous.split_address(address)) as taken:
        thread = threading.Thread(target=answer_as_another_program, args=(taken,))
        thread.start()
        (text,), seconds = meet(address, hello(1), seconds=5.0)
        thread.join()
        assert address in text and "something else" in text and seconds < 3.0
    (text,), _ = meet(address, hello(0), bind="192.0.2.1:80", seconds=1.0)
    assert "192.0.2.1:80" in text and "cannot listen" in text


def answer_as_another_program(server):
    connection, _ = server.accept()
    with connection:
        connection.recv(100)
        connection.sendall(b"\x00\x00\x12\x04settings\n")
