"""The objects of Kubernetes that train: a ConfigMap and a JobSet.

The JobSet (jobset.x-k8s.io/v1alpha2, from v0.10 on) has one Job for each slice, with
one pod for each host. If a pod is lost all pods start again, and training resumes.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.errors import UserError

from .names import check_label
from .topology import Topology

CONFIG_DIRECTORY = "/config"  # where pods find the experiment's files
CONTAINER, REPLICATED_JOB = "train", "slice"
PORT = 8476  # of the coordinator
MAX_CONFIG_BYTES = 1_000_000  # a ConfigMap holds 1 MiB
MAX_NAME_LENGTH = 40  # of a JobSet: the names of its pods have 63 characters at most
GRACE_SECONDS = 300  # between SIGTERM and SIGKILL, for saving; spot machines give less
EXIT_USER_ERROR, EXIT_STOPPED = 2, 75

# The process's number among those of all slices, each of which counts its pods.
_START = """\
if [ "$LMJAX_NUM_PROCESSES" -gt 1 ]; then
  export JAX_COORDINATOR_ADDRESS="$LMJAX_COORDINATOR"
  export JAX_NUM_PROCESSES="$LMJAX_NUM_PROCESSES"
  first=$((LMJAX_SLICE_INDEX * LMJAX_HOSTS_PER_SLICE))
  export JAX_PROCESS_ID=$((first + LMJAX_HOST_INDEX))
fi
exec "$@"
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mount:
    """Storage that all pods share: a claim, or a bucket through Cloud Storage FUSE."""

    source: str
    path: str

    def volume(self, name: str) -> dict[str, Any]:
        """Return the volume of a pod."""
        if not self.is_bucket():
            return {"name": name, "persistentVolumeClaim": {"claimName": self.source}}
        driver, _, _ = GCS_DRIVER.partition("/")
        attributes = {"bucketName": self.source.removeprefix("gs://")}
        csi = {"driver": driver, "volumeAttributes": attributes}
        return {"name": name, "csi": csi}

    def is_bucket(self) -> bool:
        """Return whether it is a bucket."""
        return self.source.startswith("gs://")


GCS_DRIVER = "gcsfuse.csi.storage.gke.io"


def parse_mount(text: str) -> Mount:
    """Parse CLAIM:/PATH or gs://BUCKET:/PATH.

    Raises:
      UserError: it is neither.
    """
    source, _, path = text.rpartition(":")
    if not source or not re.fullmatch(r"(/[^/\0\n:]+)+", path):
        raise UserError(
            f"--storage={text}: must be CLAIM:/PATH or gs://BUCKET:/PATH, as in "
            "datasets:/data"
        )
    if path == CONFIG_DIRECTORY or path.startswith(f"{CONFIG_DIRECTORY}/"):
        raise UserError(f"--storage={text}: {path} is taken by the config")
    name = source.removeprefix("gs://")
    if source.startswith("gs://"):
        if not re.fullmatch(r"[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]", name):
            raise UserError(f"--storage={text}: {name!r} is not a name of a bucket")
    else:
        check_label("--storage", name)
    return Mount(source=source, path=path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How pods run."""

    name: str  # of the JobSet
    image: str
    topology: Topology
    num_slices: int
    max_restarts: int
    namespace: str = ""
    service_account: str = ""
    mounts: tuple[Mount, ...] = ()
    node_selector: Mapping[str, str] | None = None  # in place of the topology's
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    alone: bool = False  # each pod trains by itself


def config_map(settings: Settings, files: Mapping[str, str]) -> dict[str, Any]:
    """Return the ConfigMap of the experiment's files, named after their content.

    Raises:
      UserError: the files are too large for a ConfigMap.
    """
    size = sum(len(text.encode()) + len(name.encode()) for name, text in files.items())
    if size > MAX_CONFIG_BYTES:
        largest = max(files, key=lambda name: len(files[name]))
        raise UserError(
            f"--config: its files have {size} bytes, the largest is {largest}; at most "
            f"{MAX_CONFIG_BYTES} fit in a ConfigMap"
        )
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:10]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(settings, name=f"{settings.name}-{digest}"),
        "data": {f"file-{i}": text for i, text in enumerate(files.values())},
    }


def job_set(
    settings: Settings, command: Sequence[str], files: Sequence[str], *, config: str
) -> dict[str, Any]:
    """Return the JobSet that runs a command on every host.

    Args:
      settings: how.
      command: of each process; `CONFIG_DIRECTORY` has the experiment's files.
      files: their paths below `CONFIG_DIRECTORY`, as given to `config_map`.
      config: the name of the ConfigMap.
    """
    topology = settings.topology
    metadata = _metadata(settings, name=settings.name)
    if topology.resource == "google.com/tpu" and topology.num_hosts > 1:
        # No two slices in one node pool: a pool of several hosts is one slice.
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": (
                "cloud.google.com/gke-nodepool"
            )
        }
    job = {
        "parallelism": topology.num_hosts,
        "completions": topology.num_hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": POD_RULES},
        "template": _pod(settings, command, files, config),
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": settings.max_restarts,
                "rules": JOB_SET_RULES,
            },
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [
                {
                    "name": REPLICATED_JOB,
                    "replicas": settings.num_slices,
                    "template": {"spec": job},
                }
            ],
        },
    }


def _exit_rule(code: int) -> dict[str, Any]:
    codes = {"containerName": CONTAINER, "operator": "In", "values": [code]}
    return {"action": "FailJob", "onExitCodes": codes}


# A Job that fails by one of these has the reason PodFailurePolicy, and the index of the
# rule in its message.
POD_RULES = [
    _exit_rule(EXIT_USER_ERROR),
    _exit_rule(EXIT_STOPPED),
    {
        "action": "FailJob",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    },
]
# Any other failure, such as a crash, counts as one of maxRestarts.
JOB_SET_RULES = [
    {
        "name": "mistake_of_the_user",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": ["matching FailJob rule at index 0$"],
    },
    {
        "name": "preempted",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    },
]


def _pod(
    settings: Settings, command: Sequence[str], files: Sequence[str], config: str
) -> dict[str, Any]:
    """Return the template of the pods."""
    topology = settings.topology
    volumes = [
        {
            "name": "config",
            "configMap": {
                "name": config,
                "items": [
                    {"key": f"file-{i}", "path": path} for i, path in enumerate(files)
                ],
            },
        },
        # Processes of one host talk through it; the default of 64 MiB is too small.
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
    ]
    mounts = [
        {"name": "config", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
    ]
    for i, mount in enumerate(settings.mounts):
        volumes.append(mount.volume(f"storage-{i}"))
        mounts.append({"name": f"storage-{i}", "mountPath": mount.path})
    selector = settings.node_selector
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": dict(topology.node_selector if selector is None else selector),
        "tolerations": [
            {"key": topology.resource, "operator": "Exists", "effect": "NoSchedule"}
        ],
        "containers": [
            {
                "name": CONTAINER,
                "image": settings.image,
                "command": ["/bin/sh", "-c", _escape(_START), "sh"],
                "args": [_escape(argument) for argument in command],
                "env": _environ(settings),
                "resources": {"limits": {topology.resource: topology.chips_per_host}},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if settings.service_account:
        spec["serviceAccountName"] = settings.service_account
    template: dict[str, Any] = {"spec": spec}
    if any(mount.is_bucket() for mount in settings.mounts):
        template["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"}}
    return template


def _environ(settings: Settings) -> list[dict[str, Any]]:
    """Return the variables of the pods, which `_START` reads."""
    num_hosts = settings.topology.num_hosts
    first = f"{settings.name}-{REPLICATED_JOB}-0-0.{settings.name}"
    values = {
        "PYTHONPATH": CONFIG_DIRECTORY,
        "LMJAX_COORDINATOR": f"{first}:{PORT}",
        "LMJAX_NUM_PROCESSES": str(
            1 if settings.alone else settings.num_slices * num_hosts
        ),
        "LMJAX_HOSTS_PER_SLICE": str(num_hosts),
        **settings.environ,
    }
    annotations = {
        "LMJAX_SLICE_INDEX": "jobset.sigs.k8s.io/job-index",
        "LMJAX_HOST_INDEX": "batch.kubernetes.io/job-completion-index",
    }
    return [
        *({"name": name, "value": _escape(value)} for name, value in values.items()),
        *(
            {
                "name": name,
                "valueFrom": {
                    "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}
                },
            }
            for name, annotation in annotations.items()
        ),
    ]


def _metadata(settings: Settings, *, name: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": name,
        "labels": {"app.kubernetes.io/name": "lmjax"},
    }
    if settings.namespace:
        metadata["namespace"] = settings.namespace
    return metadata


def _escape(text: str) -> str:
    """Protect a text from Kubernetes, which replaces $(NAME) by a variable."""
    return text.replace("$", "$$")
