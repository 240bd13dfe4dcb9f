"""The file of a cleaned corpus: JSON lines or text, compressed or not."""

import bz2
import contextlib
import functools
import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lmjax.errors import UserError
from lmjax.fileio import open_atomic
from lmjax.storage.paths import is_remote


def _open_zstd(out: BinaryIO) -> Any:
    import zstandard

    return zstandard.ZstdCompressor(level=3).stream_writer(out, closefd=False)


def _open_gzip(out: BinaryIO) -> Any:
    return gzip.GzipFile("", "wb", 6, fileobj=out, mtime=0)  # the same bytes each time


_COMPRESSORS: dict[str, Callable[[BinaryIO], Any]] = {
    "": contextlib.nullcontext,
    ".gz": _open_gzip,
    ".zst": _open_zstd,
    ".xz": functools.partial(lzma.LZMAFile, mode="wb"),
    ".bz2": functools.partial(bz2.BZ2File, mode="wb"),
}
_FORMATS = (".jsonl", ".txt")


class Output(NamedTuple):
    """What is written, by the name of the file."""

    format: str
    compression: str

    def convert(self, line: bytes, *, field: str) -> bytes:
        """Return a record as it is written.

        In .txt a document is a line: white space within it becomes single spaces.
        """
        if self.format == ".jsonl":
            return line
        record = json.loads(line)
        text = record[field] if field in record else record["text"]
        return " ".join(text.split()).encode() + b"\n"


def check_output(path: Path) -> Output:
    """Return what a file is to hold, by its suffixes.

    Raises:
      UserError: by none that is known, or the file is not a local one.
    """
    if is_remote(path):
        raise UserError(f"--output={path}: must be a local file")
    compression = path.suffix if path.suffix in _COMPRESSORS else ""
    plain = Path(path.stem) if compression else path
    if plain.suffix not in _FORMATS or not plain.stem:
        ends = ", ".join(filter(None, _COMPRESSORS))
        raise UserError(
            f"--output={path}: must end in .jsonl or .txt, and then none or one of "
            f"{ends}"
        )
    if compression == ".zst":
        try:
            import zstandard  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"--output={path}: .zst needs a package that is not installed: "
                "pip install 'lmjax[data]'"
            ) from error
    if path.is_dir():
        raise UserError(f"--output={path}: is a directory")
    return Output(plain.suffix, compression)


@contextlib.contextmanager
def open_output(path: Path, kind: Output) -> Iterator[Any]:
    """Open the file, which appears once it is complete."""
    with open_atomic(path) as out, _COMPRESSORS[kind.compression](out) as compressed:
        yield compressed
