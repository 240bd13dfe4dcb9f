"""Files as UTF-8 text: decompressed, from other encodings, in blocks or as a copy.

A file is compressed if its first bytes say so; its name does not count. What is read at
random is copied to the cache first (see `lmjax.storage.cache`), as UTF-8, so that a
line is found by its byte in every file.
"""

import bz2
import codecs
import contextlib
import gzip
import lzma
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from lmjax.data.sources.detect import AUTO, detect_encoding
from lmjax.errors import UserError
from lmjax.storage.cache import derived_copy, local_copy

BLOCK_BYTES = 1 << 20
_VERSION = 1  # of the copies: raise it when they change
_MAX_WINDOW = 1 << 31  # of zstd, as `zstd --long=31` writes
# From the blocks of a file, in UTF-8, to those of its copy. Raises `UserError`s that
# begin with a place in the file.
Rewrite = Callable[[Iterator[bytes]], Iterator[bytes]]


def _open_zstd(file: BinaryIO) -> BinaryIO:
    try:
        import zstandard
    except ImportError as error:
        raise UserError(
            "is compressed (zstd), and zstandard is not installed: "
            "pip install 'lmjax[data]'"
        ) from error
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    return cast(BinaryIO, decompressor.stream_reader(file, read_across_frames=True))


# By name: the first bytes of a file, and how it is opened.
_COMPRESSIONS: dict[str, tuple[bytes, Callable[[BinaryIO], Any]]] = {
    "gzip": (b"\x1f\x8b", gzip.open),
    "bzip2": (b"BZh", bz2.open),
    "xz": (b"\xfd7zXZ\x00", lzma.open),
    "zstd": (b"\x28\xb5\x2f\xfd", _open_zstd),
}
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # after BZh and a digit
# Suffixes that are added to the name of a file.
SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd")


def strip_suffix(file: Path) -> str:
    """Return the suffix of a file before that of its compression: .txt of a.txt.gz."""
    name = Path(file.name)
    return Path(name.stem).suffix if name.suffix in SUFFIXES else name.suffix


def encoding_of(file: Path, encoding: str, *, path: str) -> str:
    """Return the encoding of a file: the one that is set, or with "auto" its own."""
    return detect_encoding(file, path=path) if encoding == AUTO else encoding


def is_utf8(encoding: str) -> bool:
    """Return whether an encoding is UTF-8, by any of its names."""
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def compression_of(head: bytes) -> str:
    """Return what the first bytes of a file say it is compressed with; "": nothing."""
    for name, (magic, _) in _COMPRESSIONS.items():
        if head.startswith(magic):
            if name == "bzip2" and not head[4:].startswith(_BZIP2_BLOCKS):
                continue  # letters, with which a text may begin
            return name
    return ""


def find_compression(file: Path) -> str:
    """Return what a file is compressed with; "": nothing."""
    with file.open("rb") as opened:
        return compression_of(opened.read(16))


def read_raw(file: Path, *, path: str) -> Generator[bytes, None, None]:
    """Yield the decompressed bytes of a file, in blocks.

    Raises:
      UserError: the file cannot be read, or is cut off or damaged.
    """
    place = f"{path}: {file}"
    with contextlib.ExitStack() as stack:
        try:
            opened: Any = stack.enter_context(file.open("rb"))
            kind = compression_of(opened.read(16))
            opened.seek(0)
        except OSError as error:
            raise _cannot_read(file, error, path) from error
        if kind:
            try:
                opened = stack.enter_context(_COMPRESSIONS[kind][1](opened))
            except UserError as error:
                raise UserError(f"{place} {error}") from error
        while block := _read_block(opened, kind=kind, file=file, path=path):
            yield block


def _read_block(opened: Any, *, kind: str, file: Path, path: str) -> bytes:
    try:
        return bytes(opened.read(BLOCK_BYTES))
    except OSError as error:
        if error.errno is not None:
            raise _cannot_read(file, error, path) from error
        why: Exception = error  # what gzip and bz2 say of the content
    except Exception as error:
        if not kind or not isinstance(error, _damage_errors()):
            raise
        why = error
    text = " ".join(str(why).split())
    raise UserError(f"{path}: {file} is cut off or damaged ({kind}): {text}") from why


def _damage_errors() -> tuple[type[Exception], ...]:
    known: tuple[type[Exception], ...] = (EOFError, zlib.error, lzma.LZMAError)
    with contextlib.suppress(ImportError):
        import zstandard

        known += (zstandard.ZstdError,)
    return known


def _cannot_read(file: Path, error: OSError, path: str) -> UserError:
    return UserError(f"{path}: cannot read {file}: {error.strerror}")


def read_plain(
    file: Path, *, path: str, encoding: str = "utf-8", on_bad_text: str = "error"
) -> Iterator[bytes]:
    """Yield the text of a file in blocks: decompressed, as UTF-8.

    Bytes of a file in UTF-8 are not looked at: whoever decodes them tells their line.

    Args:
      file: the file.
      path: the dotted path of the source in the config, or the flag, that names it.
      encoding: of the file.
      on_bad_text: "error", or "replace" bytes that are not in the encoding by U+FFFD.

    Raises:
      UserError: the file cannot be read, is damaged, or is not in the encoding.
    """
    encoding = encoding_of(file, encoding, path=path)
    blocks: Iterator[bytes] = read_raw(file, path=path)
    if is_utf8(encoding):
        return blocks
    return _transcode(
        blocks, file=file, path=path, encoding=encoding, on_bad_text=on_bad_text
    )


def _transcode(
    blocks: Iterator[bytes], *, file: Path, path: str, encoding: str, on_bad_text: str
) -> Iterator[bytes]:
    errors = "strict" if on_bad_text == "error" else "replace"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    start = 0  # of the block in the file
    for block in blocks:
        yield _decode(decoder, block, start, file=file, path=path, encoding=encoding)
        start += len(block)
    yield _decode(decoder, b"", start, file=file, path=path, encoding=encoding)


def _decode(
    decoder: codecs.IncrementalDecoder,
    block: bytes,
    start: int,
    *,
    file: Path,
    path: str,
    encoding: str,
) -> bytes:
    try:
        text = decoder.decode(block, final=not block)
        return text.encode(
            "utf-8", "strict" if decoder.errors == "strict" else "replace"
        )
    except UnicodeDecodeError as error:
        # What is decoded is the rest of the block before, and this one.
        at = start + len(block) - len(error.object) + error.start
        byte = error.object[error.start]
        raise UserError(
            f"{file}: not {encoding} at byte {at:,} ({byte:#04x}); to read such bytes "
            f"as U+FFFD set {path}.on_bad_text='replace'"
        ) from error
    except UnicodeError as error:  # half of a surrogate pair, or no BOM
        why = " ".join(str(error).split())
        stop = start + len(block)
        raise UserError(
            f"{file}: not {encoding} in bytes {start:,} to {stop:,}: {why}"
        ) from error


def plain_copy(
    file: Path,
    *,
    path: str,
    encoding: str = "utf-8",
    on_bad_text: str = "error",
    rewrite: Rewrite | None = None,
) -> Path:
    """Return a local file with the text of another, as UTF-8: itself, if it is that.

    Args:
      file: the file.
      path: the dotted path of the source in the config, or the flag, that names it.
      encoding: of the file.
      on_bad_text: see `read_plain`.
      rewrite: changes the text.

    Raises:
      OSError: the file cannot be read.
      UserError: the text cannot be read or rewritten.
    """
    name = rewrite.__name__ if rewrite else ""
    encoding = encoding_of(file, encoding, path=path)
    kind = find_compression(file)
    if not kind and is_utf8(encoding) and not name:
        return local_copy(file)
    codec = codecs.lookup(encoding).name

    def blocks() -> Iterator[bytes]:
        read = read_plain(file, path=path, encoding=encoding, on_bad_text=on_bad_text)
        yield from rewrite(read) if rewrite else read

    made = f"{_VERSION} {kind} {codec} {on_bad_text} {name}"
    return derived_copy(file, made=made, blocks=blocks)
