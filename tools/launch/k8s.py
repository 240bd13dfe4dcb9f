"""Train on Kubernetes: TPU slices or GPU nodes, as a JobSet."""

import argparse
import dataclasses
import posixpath
import re
import subprocess
from collections.abc import Mapping
from typing import Any

import yaml

from lmjax.cli.flags import parse_integer
from lmjax.cli.parser import Flag
from lmjax.errors import UserError

from . import experiment_files, manifest, names
from .job import Job
from .topology import parse_topology

PROGRAM = ("python", "-m", "lmjax.cli")  # in the image
FLAGS = (
    Flag(
        "--topology",
        "the machines: a TPU slice, as in tpu-v5p:4x4x4, or GPUs in each node and "
        "nodes, as in gpu:h200:8x2",
        required=True,
        metavar="KIND:SIZE",
    ),
    Flag(
        "--image",
        "the container's image, which has lmjax (see the Dockerfile)",
        required=True,
        metavar="IMAGE",
    ),
    Flag(
        "--slices",
        "the number of slices, of groups of GPU nodes, or of workers of a search, each "
        "on one host; default: 1",
        type=parse_integer,
        default=1,
        metavar="N",
    ),
    Flag(
        "--storage",
        "mount a PersistentVolumeClaim, or a bucket of Google Cloud, at a path; may be "
        "given several times",
        action="append",
        default=[],
        metavar="CLAIM:/PATH|gs://BUCKET:/PATH",
    ),
    Flag(
        "--name",
        "of the JobSet; default: that of the workdir",
        default="",
        metavar="NAME",
    ),
    Flag("--namespace", "default: kubectl's", default="", metavar="NAME"),
    Flag(
        "--service_account",
        "of the pods, which may read and write the bucket",
        default="",
        metavar="NAME",
    ),
    Flag(
        "--node_selector",
        "a label of the nodes, in place of Google's for the topology; may be given "
        "several times",
        action="append",
        default=[],
        metavar="LABEL=VALUE",
    ),
    Flag(
        "--env",
        "a variable of all processes; may be given several times",
        action="append",
        default=[],
        metavar="NAME=VALUE",
    ),
    Flag(
        "--max_restarts",
        "how often all pods start again after a crash; preemption and the loss of a "
        "node do not count; default: 10",
        type=parse_integer,
        default=10,
        metavar="N",
    ),
)
_LABEL = re.compile(
    r"([-.a-z0-9]{1,253}/)?[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?"
)
_VALUE = re.compile(r"([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_IMAGE = re.compile(r"[A-Za-z0-9][-._:/@A-Za-z0-9]*")


def launch(job: Job, flags: argparse.Namespace, *, dry_run: bool) -> int:
    """Submit a JobSet of pods, one for each host."""
    config, training = render(job, flags)
    namespace = [f"--namespace={flags.namespace}"] if flags.namespace else []
    name = training["metadata"]["name"]
    if dry_run:
        print(to_yaml(config), to_yaml(training), sep="---\n", end="")
        return 0
    kubectl = names.find_program("kubectl", package="the Kubernetes tools")
    # On the client's side `apply` takes 256 KiB only.
    for verb, manifest_now in (("apply --server-side", config), ("create", training)):
        done = subprocess.run(
            [kubectl, *verb.split(), *namespace, "--filename=-"],
            input=to_yaml(manifest_now),
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            raise UserError(_explain(done.stderr, name, namespace))
    selector = f"--selector=jobset.sigs.k8s.io/jobset-name={name}"
    show = ["kubectl", "logs", *namespace, selector, "--follow", "--prefix"]
    print(f"follow it with: {' '.join(show)}")
    return 0


def render(
    job: Job, flags: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the ConfigMap and the JobSet of a job.

    Raises:
      UserError: a flag that Kubernetes would refuse, or a workdir that pods would lose.
    """
    settings = _parse_settings(job, flags)
    _check_workdir(job, settings)
    relative, files = experiment_files.collect(job.config)
    config = manifest.config_map(settings, files)
    there = dataclasses.replace(job, config=f"{manifest.CONFIG_DIRECTORY}/{relative}")
    training = manifest.job_set(
        settings,
        there.train_command(PROGRAM),
        list(files),
        config=config["metadata"]["name"],
    )
    return config, training


def to_yaml(data: Mapping[str, Any]) -> str:
    """Return an object as YAML, with texts of several lines as they are."""

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        style = "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, represent)
    return yaml.dump(dict(data), Dumper=Dumper, sort_keys=False, width=2**31)


def _parse_settings(job: Job, flags: argparse.Namespace) -> manifest.Settings:
    for flag, value, least in (
        ("--slices", flags.slices, 1),
        ("--max_restarts", flags.max_restarts, 0),
    ):
        if value < least:
            raise UserError(f"{flag}={value}: must be >= {least}")
    if not _IMAGE.fullmatch(flags.image):
        raise UserError(f"--image={flags.image}: not a name of an image")
    for flag in ("namespace", "service_account", "name"):
        if value := getattr(flags, flag):
            names.check_label(f"--{flag}", value)
    if len(flags.name) > manifest.MAX_NAME_LENGTH or "." in flags.name:
        raise UserError(
            f"--name={flags.name}: must have at most {manifest.MAX_NAME_LENGTH} "
            "characters, and no '.'"
        )
    mounts = tuple(manifest.parse_mount(text) for text in flags.storage)
    for i, mount in enumerate(mounts):
        if mount.path in (other.path for other in mounts[:i]):
            raise UserError(f"--storage={flags.storage[i]}: {mount.path} has another")
    last = [part for part in job.workdir.split("/") if part][-1:] or ["run"]
    selector = _pairs("--node_selector", flags.node_selector, _LABEL, _VALUE)
    topology = parse_topology(flags.topology)
    if job.alone and topology.num_hosts > 1:
        raise UserError(
            f"--topology={flags.topology}: has {topology.num_hosts} hosts; a worker of "
            "a search trains on 1, and --slices is the number of workers"
        )
    return manifest.Settings(
        name=flags.name or names.to_label(*last, max_length=manifest.MAX_NAME_LENGTH),
        image=flags.image,
        topology=topology,
        num_slices=flags.slices,
        max_restarts=flags.max_restarts,
        namespace=flags.namespace,
        service_account=flags.service_account,
        mounts=mounts,
        node_selector=selector or None,
        environ=_pairs("--env", flags.env, _VARIABLE, None),
        alone=job.alone,
    )


def _pairs(
    flag: str, texts: list[str], key: re.Pattern[str], value: re.Pattern[str] | None
) -> dict[str, str]:
    """Parse NAME=VALUE."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, content = text.partition("=")
        allowed = value is None or value.fullmatch(content)
        if not equals or not key.fullmatch(name) or not allowed or "\0" in content:
            raise UserError(
                f"{flag}={text}: must be NAME=VALUE, of Kubernetes' letters"
            )
        if name in pairs:
            raise UserError(f"{flag}={text}: {name} is given more than once")
        pairs[name] = content
    return pairs


def _check_workdir(job: Job, settings: manifest.Settings) -> None:
    """Raise `UserError` if the workdir would be lost with a pod."""
    workdir = job.workdir
    if "://" in workdir:
        return
    # A study is a database, with locks, which a bucket has not.
    mounts = [m for m in settings.mounts if not (job.alone and m.is_bucket())]
    paths = [mount.path for mount in mounts]
    path_now = posixpath.normpath(workdir)
    if not any(path_now.startswith(f"{path}/") for path in paths):
        where = (
            f"below {' or '.join(paths)}" if paths else "below a --storage=CLAIM:/PATH"
        )
        raise UserError(
            f"--workdir={workdir}: would be lost with its pod; must be {where}, or an "
            "address such as gs://BUCKET/PATH"
        )


def _explain(error: str, name: str, namespace: list[str]) -> str:
    """Return the reason for which kubectl failed, in one line."""
    if "AlreadyExists" in error:
        delete = " ".join(["kubectl delete jobset", *namespace, name])
        return f"--name={name}: there is such a JobSet; choose another, or {delete}"
    lines = [line for line in error.splitlines() if line.strip()]
    return f"kubectl: {lines[-1] if lines else 'failed without a message'}"
