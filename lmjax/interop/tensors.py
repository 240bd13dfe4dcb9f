"""Directories of safetensors files, read slice by slice, written tensor by tensor.

A file is a little-endian uint64, a JSON header of that many bytes, and the tensors'
bytes (github.com/huggingface/safetensors). Nothing is mapped: what is asked for is
read, and no more.
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

from lmjax.errors import ConfigError
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
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5 * 10**9
_MAX_HEADER = 100_000_000  # bytes, as in the reference implementation
_BLOCK = 16 << 20  # bytes read at a time where a slice is not contiguous
_ALIGNMENT = 64  # bytes: where jax can take an array without a copy
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_OTHERS = ("*.h5", "*.msgpack", "*.gguf", "*.onnx")


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a tensor is, without its values."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Return how many bytes the values take."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Entry(Spec):
    """Where the values of a tensor lie."""

    file: Path
    offset: int  # of the first byte in the file


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The tensors of a directory, by name; nothing is read but what is asked for."""

    directory: Path
    entries: Mapping[str, Entry]

    def read(self, name: str, index: Sequence[slice] = ()) -> np.ndarray:
        """Return a tensor, or the part of it that `index` cuts out.

        Raises:
          ConfigError: the file is shorter than it was.
        """
        entry = self.entries[name]
        whole = [slice(None)] * (len(entry.shape) - len(index))
        cuts = [
            range(*cut.indices(size))
            for cut, size in zip([*index, *whole], entry.shape, strict=True)
        ]
        assert all(cut.step == 1 for cut in cuts), index
        out = _aligned([len(cut) for cut in cuts], entry.dtype)
        if out.size:
            with entry.file.open("rb", buffering=0) as file:
                _read_into(out, file, entry, cuts)
        return out


def _aligned(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    num_bytes = math.prod(shape) * dtype.itemsize
    buffer = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + num_bytes].view(dtype).reshape(shape)


def _read_into(out: np.ndarray, file: Any, entry: Entry, cuts: list[range]) -> None:
    """Fill `out` with whole rows of the first dimension, or with blocks cut down."""
    rows = cuts[0] if cuts else range(1)
    row_shape = entry.shape[1:]
    row_bytes = math.prod(row_shape) * entry.dtype.itemsize
    file.seek(entry.offset + rows.start * row_bytes)
    if all(len(cut) == size for cut, size in zip(cuts[1:], row_shape, strict=True)):
        _fill(out, file, entry)
        return
    columns = tuple(slice(cut.start, cut.stop) for cut in cuts[1:])
    num_rows = max(1, _BLOCK // row_bytes)
    block = np.empty((min(num_rows, len(rows)), *row_shape), entry.dtype)
    for first in range(0, len(rows), num_rows):
        part = block[: min(num_rows, len(rows) - first)]
        _fill(part, file, entry)
        out[first : first + len(part)] = part[:, *columns]


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8).data)


def _fill(array: np.ndarray, file: Any, entry: Entry) -> None:
    view = _bytes(array)
    while view:
        count = file.readinto(view)
        if not count:
            raise ConfigError(f"{entry.file}: truncated while it was read")
        view = view[count:]


def open_tensors(directory: Path) -> Tensors:
    """Return the tensors of a directory of safetensors files.

    The file is model.safetensors, or the shards that model.safetensors.index.json
    names, or else the only *.safetensors there is.

    Raises:
      ConfigError: naming the file, and what is wrong with it.
    """
    files, index = _find_files(directory)
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in _read_header(file).items():
            if name in entries:
                raise ConfigError(
                    f"{file}: tensor {name!r} is also in {entries[name].file.name}"
                )
            entries[name] = entry
    for name, shard in index.items():
        if name not in entries or entries[name].file.name != shard:
            raise ConfigError(
                f"{directory / shard}: lacks tensor {name!r}, which the index places "
                "there"
            )
    return Tensors(directory, entries)


def _find_files(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the safetensors files, and where the index says each tensor is."""
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
        raise ConfigError(
            f"{directory}: holds {len(files)} safetensors files and no {INDEX} that "
            "says which belong together"
        )
    raise ConfigError(f"{directory}: {_why_none(directory)}")


def _why_none(directory: Path) -> str:
    for pattern in _PICKLES:
        for file in sorted(directory.glob(pattern)):
            return (
                f"its weights are pickled ({file.name}), and a pickle can run any code "
                "when it is loaded; if you trust the file, write it anew with "
                "transformers' save_pretrained (safe_serialization=True)"
            )
    for pattern in _OTHERS:
        for file in sorted(directory.glob(pattern)):
            return f"its weights are in {file.name}; only safetensors files are read"
    return f"holds no weights (no {SINGLE}, no {INDEX})"


def _read_index(path: Path) -> dict[str, str]:
    index = read_json(path).get("weight_map")
    files: set[Any] = set(index.values()) if isinstance(index, dict) else {None}
    if not all(isinstance(name, str) and Path(name).name == name for name in files):
        raise ConfigError(f"{path}: weight_map must map tensors to files beside it")
    missing = sorted(name for name in files if not (path.parent / name).is_file())
    if missing:
        raise ConfigError(
            f"{path}: names {missing[0]}, which is not there "
            f"({len(missing)} of {len(files)} files are missing)"
        )
    return dict(index or {})


def _read_header(path: Path) -> dict[str, Entry]:
    """Return the tensors of one file, having checked that all their bytes are there."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise ConfigError(
                f"{path}: not a safetensors file, or a truncated one: {size} bytes "
                f"cannot hold a header of {length}"
            )
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: the header is damaged: {error}") from error
    if not isinstance(header, dict):
        raise ConfigError(f"{path}: the header is damaged: not a JSON object")
    header.pop("__metadata__", None)
    entries = {
        name: _entry(path, name, fields, start=8 + length)
        for name, fields in header.items()
    }
    _check_extent(path, entries, start=8 + length, size=size)
    return entries


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name is there twice")
    return result


def _entry(path: Path, name: str, fields: Any, *, start: int) -> Entry:
    match fields:
        case {
            "dtype": str(dtype),
            "shape": list(shape),
            "data_offsets": [int(begin), int(end)],
        } if all(type(size) is int and size >= 0 for size in shape):
            pass
        case _:
            raise ConfigError(f"{path}: tensor {name!r}: damaged header: {fields}")
    if dtype not in DTYPES:
        raise ConfigError(
            f"{path}: tensor {name!r} is of dtype {dtype}; allowed: {', '.join(DTYPES)}"
        )
    entry = Entry(DTYPES[dtype], tuple(shape), path, start + begin)
    if begin < 0 or end - begin != entry.num_bytes:
        raise ConfigError(
            f"{path}: tensor {name!r}: {dtype} of shape {shape} takes "
            f"{entry.num_bytes} bytes, but the header gives it {end - begin}"
        )
    return entry


def _check_extent(
    path: Path, entries: dict[str, Entry], *, start: int, size: int
) -> None:
    """Raise unless the tensors fill the file without gaps or overlaps."""
    for name, entry in sorted(entries.items(), key=lambda item: item[1].offset):
        if not entry.num_bytes:
            continue
        if entry.offset != start:
            raise ConfigError(
                f"{path}: tensor {name!r} begins at byte {entry.offset}, not at {start}"
            )
        start += entry.num_bytes
    if size < start:
        raise ConfigError(f"{path}: truncated: {size} bytes of {start}")
    if size > start:
        raise ConfigError(f"{path}: {size - start} bytes after the last tensor")


def write_tensors(
    directory: Path,
    specs: Mapping[str, Spec],
    arrays: Iterable[np.ndarray],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write tensors one at a time, in files of at most `shard_bytes` each.

    Args:
      directory: where model.safetensors goes, or shards and their index.
      specs: of all tensors, in the order in which they come.
      arrays: their values; each is written, and let go, before the next is asked for.
      shard_bytes: a tensor larger than that has a file of its own.
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
    shards: list[list[str]] = [[]]
    filled = 0
    for name, spec in specs.items():
        if shards[-1] and filled + spec.num_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += spec.num_bytes
    return shards


def write_file(
    path: Path, specs: Mapping[str, Spec], arrays: Iterator[np.ndarray]
) -> None:
    """Write one file; the values come one at a time, in the order of `specs`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, spec in specs.items():
        header[name] = {
            "dtype": NAMES[spec.dtype],
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
            file.write(_bytes(np.ascontiguousarray(array)))
            del array
