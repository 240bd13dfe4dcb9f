"""Directories of safetensors files, read slice by slice and written tensor by tensor.

A file is a little-endian uint64, a JSON header of that many bytes, and the values of
the tensors (github.com/huggingface/safetensors). Files are not mapped into memory: only
the slices that are requested are read.
"""

import dataclasses
import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lmjax.errors import UserError
from lmjax.fileio import read_json

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5 * 10**9
_MAX_HEADER = 100_000_000  # bytes, as in the reference implementation
_BLOCK = 16 << 20  # bytes read at a time where a slice is not contiguous
_ALIGNMENT = 64  # bytes: jax uses an array so aligned without a copy
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_OTHER_FORMATS = ("*.h5", "*.msgpack", "*.gguf", "*.onnx")


@dataclasses.dataclass(frozen=True)
class Spec:
    """The dtype and shape of a tensor."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Return the size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class StoredTensor(Spec):
    """A tensor in a file."""

    file: Path
    offset: int  # of the first byte in the file


@dataclasses.dataclass(frozen=True)
class TensorFiles:
    """The tensors of a directory by name; values are read on request."""

    directory: Path
    tensors: Mapping[str, StoredTensor]

    def read(self, name: str, index: Sequence[slice] = ()) -> np.ndarray:
        """Read a tensor, or a slice of it.

        Args:
          name: of the tensor.
          index: slices of step 1 for the leading dimensions; the rest is whole.

        Raises:
          UserError: the file was truncated after it had been opened.
        """
        tensor = self.tensors[name]
        rest = [slice(None)] * (len(tensor.shape) - len(index))
        ranges = [
            range(*part.indices(size))
            for part, size in zip([*index, *rest], tensor.shape, strict=True)
        ]
        assert all(part.step == 1 for part in ranges), index
        out = allocate([len(part) for part in ranges], tensor.dtype)
        if out.size:
            with tensor.file.open("rb", buffering=0) as file:
                _read_into(out, file, tensor, ranges)
        return out


def allocate(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """Return an uninitialised array, aligned so that jax needs no copy of it."""
    num_bytes = math.prod(shape) * dtype.itemsize
    buffer = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + num_bytes].view(dtype).reshape(shape)


def _read_into(
    out: np.ndarray, file: Any, tensor: StoredTensor, ranges: list[range]
) -> None:
    """Read a slice of a tensor into `out`.

    If it is contiguous (whole but for the first dimension), at once; else in blocks of
    whole rows, from which the columns are copied.
    """
    rows = ranges[0] if ranges else range(1)
    row_shape = tensor.shape[1:]
    row_bytes = math.prod(row_shape) * tensor.dtype.itemsize
    file.seek(tensor.offset + rows.start * row_bytes)
    if all(len(part) == size for part, size in zip(ranges[1:], row_shape, strict=True)):
        _fill(out, file)
        return
    columns = tuple(slice(part.start, part.stop) for part in ranges[1:])
    num_rows = max(1, _BLOCK // row_bytes)
    block = np.empty((min(num_rows, len(rows)), *row_shape), tensor.dtype)
    for first in range(0, len(rows), num_rows):
        part = block[: min(num_rows, len(rows) - first)]
        _fill(part, file)
        out[first : first + len(part)] = part[:, *columns]


def _fill(array: np.ndarray, file: Any) -> None:
    view = _view_bytes(array)
    while view:
        count = file.readinto(view)
        if not count:
            raise UserError(f"{file.name}: truncated while it was read")
        view = view[count:]


def _view_bytes(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8).data)


def open_tensors(directory: Path) -> TensorFiles:
    """Read the headers of the safetensors files of a directory.

    The tensors are in model.safetensors, or in the shards that
    model.safetensors.index.json names, or in the only *.safetensors file.

    Raises:
      UserError: there is no such file, or one is damaged; the text names it.
    """
    files, index = _find_files(directory)
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in _read_header(file).items():
            if name in tensors:
                raise UserError(
                    f"{file}: tensor {name!r} is also in {tensors[name].file.name}"
                )
            tensors[name] = tensor
    for name, shard in index.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise UserError(
                f"{directory / shard}: tensor {name!r} is missing; the index says that "
                "it is in this file"
            )
    return TensorFiles(directory, tensors)


def _find_files(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the safetensors files, and the file name of each tensor by the index."""
    if (directory / SINGLE).exists():
        return [directory / SINGLE], {}
    indices = sorted(directory.glob("*.safetensors.index.json"))
    if indices:
        path = directory / INDEX if directory / INDEX in indices else indices[0]
        index = _read_index(path)
        return [directory / shard for shard in sorted(set(index.values()))], index
    files = sorted(directory.glob("*.safetensors"))
    if len(files) == 1:
        return files, {}
    if files:
        raise UserError(
            f"{directory}: holds {len(files)} safetensors files, but no {INDEX}"
        )
    for pattern in _PICKLES:
        for file in sorted(directory.glob(pattern)):
            raise UserError(
                f"{directory}: the weights are pickled ({file.name}); loading a pickle "
                "can run any code. If you trust the file, convert it with "
                "save_pretrained(safe_serialization=True) of transformers"
            )
    for pattern in _OTHER_FORMATS:
        for file in sorted(directory.glob(pattern)):
            hint = f"; --from={file} reads it" if pattern == "*.gguf" else ""
            raise UserError(
                f"{directory}: the weights are in {file.name}; expected safetensors"
                f"{hint}"
            )
    raise UserError(f"{directory}: holds no weights (no {SINGLE}, no {INDEX})")


def _read_index(path: Path) -> dict[str, str]:
    index = read_json(path).get("weight_map")
    files: set[Any] = set(index.values()) if isinstance(index, dict) else {None}
    if not all(isinstance(name, str) and Path(name).name == name for name in files):
        raise UserError(
            f"{path}: weight_map: expected tensor names and the names of files in the "
            "same directory"
        )
    missing = sorted(name for name in files if not (path.parent / name).is_file())
    if missing:
        raise UserError(
            f"{path}: {missing[0]} is missing ({len(missing)} of {len(files)} files)"
        )
    return dict(index or {})


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """Read which tensors a file holds, and check that their values fill the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise UserError(
                f"{path}: not a safetensors file, or truncated: {size} bytes cannot "
                f"hold a header of {length}"
            )
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged header: {error}") from error
    if not isinstance(header, dict):
        raise UserError(f"{path}: damaged header: not a JSON object")
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = {
        name: _parse_tensor(path, name, fields, start=start)
        for name, fields in header.items()
    }
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if not tensor.num_bytes:
            continue
        if tensor.offset != start:
            raise UserError(
                f"{path}: tensor {name!r} begins at byte {tensor.offset}; expected "
                f"{start}, without gaps and overlaps"
            )
        start += tensor.num_bytes
    if size < start:
        raise UserError(f"{path}: truncated: {size} bytes of {start}")
    if size > start:
        raise UserError(f"{path}: {size - start} bytes after the last tensor")
    return tensors


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("duplicate name")
    return result


def _parse_tensor(path: Path, name: str, fields: Any, *, start: int) -> StoredTensor:
    match fields:
        case {
            "dtype": str(dtype),
            "shape": list(shape),
            "data_offsets": [int(begin), int(end)],
        } if all(type(size) is int and size >= 0 for size in shape):
            pass
        case _:
            raise UserError(f"{path}: tensor {name!r}: damaged header: {fields}")
    if dtype not in DTYPES:
        raise UserError(
            f"{path}: tensor {name!r} has dtype {dtype}; allowed: {', '.join(DTYPES)}"
        )
    tensor = StoredTensor(DTYPES[dtype], tuple(shape), path, start + begin)
    if begin < 0 or end - begin != tensor.num_bytes:
        raise UserError(
            f"{path}: tensor {name!r}: {dtype} of shape {shape} takes "
            f"{tensor.num_bytes} bytes; the header says {end - begin}"
        )
    return tensor


def write_tensors(
    directory: Path,
    specs: Mapping[str, Spec],
    arrays: Iterable[np.ndarray],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write tensors one at a time, in files of at most `shard_bytes` each.

    Args:
      directory: gets model.safetensors, or several files and their index.
      specs: of all tensors, in the order of `arrays`.
      arrays: the values; each is written and freed before the next one is requested.
      shard_bytes: of values; a larger tensor has a file of its own.
    """
    shards = _split(specs, shard_bytes)
    values = iter(arrays)
    index: dict[str, str] = {}
    for i, names in enumerate(shards, start=1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        if len(shards) == 1:
            file = SINGLE
        index |= dict.fromkeys(names, file)
        write_file(directory / file, {name: specs[name] for name in names}, values)
    if len(shards) > 1:
        total = sum(spec.num_bytes for spec in specs.values())
        text = json.dumps(
            {"metadata": {"total_size": total}, "weight_map": index}, indent=2
        )
        (directory / INDEX).write_text(text + "\n")


def _split(specs: Mapping[str, Spec], shard_bytes: int) -> list[list[str]]:
    """Return the names of the tensors of each file."""
    shards: list[list[str]] = [[]]
    num_bytes = 0
    for name, spec in specs.items():
        if shards[-1] and num_bytes + spec.num_bytes > shard_bytes:
            shards.append([])
            num_bytes = 0
        shards[-1].append(name)
        num_bytes += spec.num_bytes
    return shards


def write_file(
    path: Path, specs: Mapping[str, Spec], arrays: Iterator[np.ndarray]
) -> None:
    """Write one file; the values come one at a time, in the order of `specs`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, spec in specs.items():
        header[name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.num_bytes],
        }
        offset += spec.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, spec in specs.items():
            array = next(arrays)
            assert array.dtype == spec.dtype and array.shape == spec.shape, name
            file.write(_view_bytes(np.ascontiguousarray(array)))
            del array
