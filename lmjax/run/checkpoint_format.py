"""How arrays lie in a checkpoint: by Orbax, with a CRC-32C of each chunk.

TensorStore computes the checksums of Zarr 3 when it writes a chunk and compares them
when it reads one, in any process and on any mesh.
"""

import contextlib
import functools
import logging
import os
import re
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from lmjax.errors import UserError
from lmjax.run.checkpoint_record import COMMITTED
from lmjax.storage.paths import is_remote

_S3 = "s3://"
_PROTOCOLS = ("gs", "s3")
# About half a minute in all; TensorStore's own are 32, and a quarter of an hour.
_RETRIES = {"max_retries": 6, "initial_delay": "0.5s", "max_delay": "8s"}
_CHECKSUM = {"name": "crc32c"}
# In the text of an error of TensorStore: the file of an array, and source positions.
_ARRAY_IN_ERROR = re.compile(
    r'(?:reading|in|opening) "([^"]+?)/(?:zarr\.json|\.zarray|c/[^"]*|[\d.]+)"'
)
_SOURCE_IN_ERROR = re.compile(r" \[(?:tensorstore_spec|source locations).*", re.DOTALL)

_log = logging.getLogger(__name__)


def array_handler(**options: Any) -> ocp.PyTreeCheckpointHandler:
    """Return the handler of an item of arrays; `options` are of its class."""
    _write_checksums()
    _open_s3()
    return ocp.PyTreeCheckpointHandler(use_zarr3=True, **options)


def atomicity(directory: Path) -> ocp.options.AtomicityOptions:
    """Return how a checkpoint becomes visible: renamed, or by a last file on storage.

    Object storage renames by copying all files one by one.
    """
    modes = ocp.options.AtomicityMode
    mode = modes.COMMIT_FILE if is_remote(directory) else modes.AUTO
    return ocp.options.AtomicityOptions(mode=mode)


def complete_steps(directory: Path) -> list[int]:
    """Return the steps of the checkpoints in a directory that are complete."""
    steps = ocp.utils.checkpoint_steps(directory)
    if is_remote(directory):  # there, one that is being written has its name already
        steps = [step for step in steps if (directory / str(step) / COMMITTED).exists()]
    return sorted(steps)


def check_supported(directory: Path) -> None:
    """Check that Orbax can write to the storage of a directory.

    Raises:
      UserError: it cannot.
    """
    if is_remote(directory) and directory.protocol not in _PROTOCOLS:
        names = ", ".join(f"{name}://" for name in _PROTOCOLS)
        raise UserError(
            f"{directory}: checkpoints can be on local disks and on {names}, not on "
            f"{directory.protocol}://"
        )
    if is_remote(directory):
        directory.file_system  # noqa: B018  raises where it is not installed


def save_args(tree: Any) -> ocp.args.CheckpointArgs:
    """Return the arguments to save an item."""
    return ocp.args.PyTreeSave(tree)


def restore_item(directory: Any, like: Any) -> Any:
    """Read an item into shapes and shardings; processes do not wait for each other.

    Args:
      directory: of the item, as an `epath.Path`.
      like: a tree of `jax.ShapeDtypeStruct` with shardings.
    """
    args = ocp.checkpoint_utils.construct_restore_args(like)
    restore = ocp.args.PyTreeRestore(item=like, restore_args=args)
    with contextlib.closing(array_handler()) as handler:
        return handler.restore(directory, args=restore)


def describe_error(error: BaseException) -> str:
    """Return one line of an error of Orbax; it begins with the array, if one is named.

    The errors of TensorStore are pages long, and their causes hold the reason.
    """
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for text in map(str, reversed(causes)):
        if array := _ARRAY_IN_ERROR.search(text):
            reason = _SOURCE_IN_ERROR.sub("", text[array.end() :]).rpartition('": ')[2]
            return f"{array[1]}: damaged: {_shorten(reason)}"
    return _shorten(str(error)) or type(error).__name__


def _shorten(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:300] if lines else ""


def _open_s3() -> None:
    """Let Orbax open s3:// by TensorStore, which can, as it opens gs://."""
    names = ("_use_gcs_driver", "_normalize_path")
    if not all(hasattr(tensorstore_utils, name) for name in names) or not hasattr(
        gcs_utils, "get_kvstore_for_gcs"
    ):
        _log.warning("this version of orbax-checkpoint cannot be used with s3://")
        return
    if hasattr(gcs_utils.get_kvstore_for_gcs, "opens_s3"):
        return
    use, normalize, open_gcs = (
        tensorstore_utils._use_gcs_driver,
        tensorstore_utils._normalize_path,
        gcs_utils.get_kvstore_for_gcs,
    )

    def get_kvstore(path: str) -> dict[str, Any]:
        return s3_spec(path) if path.startswith(_S3) else open_gcs(path)

    get_kvstore.opens_s3 = True  # type: ignore[attr-defined]
    tensorstore_utils._use_gcs_driver = lambda path: path.startswith(_S3) or use(path)
    tensorstore_utils._normalize_path = lambda path: (
        normalize(path).replace("s3:/", _S3)
        if path.startswith(_S3)
        else normalize(path)
    )
    gcs_utils.get_kvstore_for_gcs = get_kvstore


def s3_spec(path: str) -> dict[str, Any]:
    """Return TensorStore's specification of an address of S3.

    It reads the credentials of the AWS tools, but not the variables of an endpoint.
    """
    bucket, _, key = path.removeprefix(_S3).partition("/")
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": key}
    spec["s3_request_retries"] = _RETRIES
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    if endpoint := next(filter(None, map(os.environ.get, names)), None):
        names = ("AWS_REGION", "AWS_DEFAULT_REGION")
        region = next(filter(None, map(os.environ.get, names)), "us-east-1")
        spec |= {"endpoint": endpoint, "aws_region": region}
    if os.environ.get("AWS_ACCESS_KEY_ID"):  # else it looks for ~/.aws, aloud
        spec["aws_credentials"] = {"type": "environment"}
    return spec


def _write_checksums() -> None:
    """Let Orbax add a checksum to each chunk, for which it has no option."""
    name = "_build_zarr3_metadata"
    build = getattr(tensorstore_utils, name, None)
    if build is None:
        _log.warning(
            "this version of orbax-checkpoint writes no checksums: damage to the files "
            "of a checkpoint will not be noticed"
        )
    elif not hasattr(build, "adds_checksums"):

        @functools.wraps(build)
        def with_checksums(*args: Any, **kwargs: Any) -> dict[str, Any]:
            metadata: dict[str, Any] = build(*args, **kwargs)
            codecs = metadata["codecs"][0]["configuration"]["codecs"]
            for codec in codecs:
                if codec["name"] == "zstd":
                    codec["configuration"]["level"] = 1  # floats hardly compress
            codecs.append(_CHECKSUM)
            return metadata

        with_checksums.adds_checksums = True  # type: ignore[attr-defined]
        setattr(tensorstore_utils, name, with_checksums)
