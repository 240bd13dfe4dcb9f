"""How arrays lie in a checkpoint: by Orbax, with a CRC-32C of each chunk.

TensorStore computes the checksums of Zarr 3 when it writes a chunk and compares them
when it reads one, in any process and on any mesh.
"""

import contextlib
import functools
import logging
import re
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint._src.serialization import tensorstore_utils

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
    return ocp.PyTreeCheckpointHandler(use_zarr3=True, **options)


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
