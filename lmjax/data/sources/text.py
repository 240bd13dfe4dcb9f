"""Text in files: what ends a line, what is no text, and how bytes become characters.

Whatever reads a file of a user reads it by these rules. The file is UTF-8; a byte order
mark at its start is no text; a line ends with LF or CRLF and with nothing else, so that
U+2028, NEL, vertical tabs, form feeds and NUL are characters within it; the last line
may lack its end.
"""

import codecs
import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from lmjax.errors import UserError

BOM = codecs.BOM_UTF8
_HEAD_BYTES = 8 << 10
_DECODE_BYTES = 1 << 20
_COMPRESSED = "is compressed ({}); decompress it first"
_TABLE = "is {}, which cannot be read; convert it to JSON lines"
_OTHER = "is {}, not text"
_UTF = "is {0}; convert it to UTF-8, as with iconv -f {0} -t UTF-8"
# The first bytes of files that are no UTF-8 text, and what to say of them. Text may
# begin with those that are letters: they count only before bytes that text has not.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", _COMPRESSED.format("gzip")),
    (b"BZh", _COMPRESSED.format("bzip2")),
    (b"\xfd7zXZ\x00", _COMPRESSED.format("xz")),
    (b"\x28\xb5\x2f\xfd", _COMPRESSED.format("zstd")),
    (b"\x04\x22\x4d\x18", _COMPRESSED.format("lz4")),
    (b"PK\x03\x04", _COMPRESSED.format("zip, or a document in one")),
    (b"PK\x05\x06", _COMPRESSED.format("zip")),
    (b"7z\xbc\xaf\x27\x1c", _COMPRESSED.format("7z")),
    (b"Rar!\x1a\x07", _COMPRESSED.format("rar")),
    (b"PAR1", _TABLE.format("Parquet")),
    (b"PARE", _TABLE.format("encrypted Parquet")),
    (b"ARROW1", _TABLE.format("Arrow")),
    (b"FEA1", _TABLE.format("Feather")),
    (b"\xff\xff\xff\xff", _TABLE.format("an Arrow stream")),
    (b"ORC", _TABLE.format("ORC")),
    (b"Obj\x01", _TABLE.format("Avro")),
    (b"SQLite format 3\x00", _TABLE.format("an SQLite database")),
    (b"\x89HDF\r\n", _TABLE.format("HDF5")),
    (b"\x93NUMPY", _OTHER.format("a NumPy array")),
    (b"\x80\x04\x95", _OTHER.format("a pickle")),
    (b"%PDF-", _OTHER.format("PDF")),
    (b"{\\rtf", _OTHER.format("RTF")),
    (b"\xd0\xcf\x11\xe0", _OTHER.format("an old Office document")),
    (b"\x89PNG", _OTHER.format("a PNG image")),
    (b"\xff\xd8\xff", _OTHER.format("a JPEG image")),
    (b"GIF8", _OTHER.format("a GIF image")),
    (b"\x7fELF", _OTHER.format("a program")),
    (codecs.BOM_UTF32_LE, _UTF.format("UTF-32")),
    (codecs.BOM_UTF32_BE, _UTF.format("UTF-32")),
    (codecs.BOM_UTF16_LE, _UTF.format("UTF-16")),
    (codecs.BOM_UTF16_BE, _UTF.format("UTF-16")),
)
# Suffixes of compressed files.
_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip")
# Control characters that text does not have, but NUL, which it may have here and there.
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b")) + b"\x7f"


@contextlib.contextmanager
def read_errors(file: Path, *, path: str) -> Iterator[None]:
    """Turn an `OSError` inside the block into a `UserError` that names the file.

    Args:
      file: the file that is read.
      path: the dotted path in the config, or the flag, that names it.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot read {file}: {error.strerror}") from error


def find_fault(file: Path, *, path: str, lines: bool = False, all: bool = False) -> str:
    """Return why a file is not one of UTF-8 text, judged by its first bytes; "": it is.

    Args:
      file: a file.
      path: the dotted path in the config, or the flag, that names it.
      lines: it is read line by line.
      all: also look for bytes that are not UTF-8 in all of it.

    Raises:
      UserError: it cannot be read.
    """
    if file.exists() and not file.is_file():
        return "is not a regular file"
    if file.suffix in _SUFFIXES:
        return _COMPRESSED.format(file.suffix.removeprefix("."))
    with read_errors(file, path=path), file.open("rb") as opened:
        head = opened.read(_HEAD_BYTES)
        if fault := _describe_head(head):
            return fault
        if lines and b"\n" not in head and head.count(b"\r") > 1:
            return (
                "has lines that end with CR alone; convert them, as with tr '\\r' '\\n'"
            )
        if not all:
            return ""
        decode = codecs.getincrementaldecoder("utf-8")().decode
        try:
            while head:
                decode(head)
                head = opened.read(_DECODE_BYTES)
            decode(b"", final=True)
        except UnicodeDecodeError:
            return "is not UTF-8"
    return ""


def _describe_head(head: bytes) -> str:
    """Return what a file is instead of UTF-8 text, by its first bytes; "": text."""
    controls = len(head) - len(head.translate(None, _CONTROLS))
    utf8 = _is_utf8(head)
    for magic, fault in _MAGIC:
        if head.startswith(magic) and not (magic.isalnum() and utf8 and not controls):
            return fault
    if head[257:262] == b"ustar":
        return "is an archive (tar); unpack it first"
    # Text has hardly any control characters; a tenth of compressed or random bytes,
    # and half of UTF-16, are some.
    if controls <= 4 or controls <= len(head) / 20:
        return ""
    zeros = head.count(b"\0")
    for first, name in ((0, "UTF-16BE"), (1, "UTF-16LE")):
        if zeros > len(head) / 4 and head[first::2].count(b"\0") > zeros * 0.95:
            return _UTF.format(name)
    if utf8 and controls <= len(head) / 4:
        return ""
    return _OTHER.format("binary")


def _is_utf8(head: bytes) -> bool:
    """Return whether the beginning of a file is UTF-8; a character may be cut off."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def decode_utf8(
    raw: bytes, *, where: Callable[[], str], on_bad_text: str = "error", path: str = ""
) -> str:
    """Decode UTF-8.

    Args:
      raw: the bytes.
      where: returns FILE or FILE:LINE, for an error.
      on_bad_text: "error", or "replace" with U+FFFD.
      path: dotted path of the source in the config, which has `on_bad_text`; "": none.

    Raises:
      UserError: the bytes are not UTF-8.
    """
    try:
        return raw.decode("utf-8", "strict" if on_bad_text == "error" else "replace")
    except UnicodeDecodeError as error:
        hint = f"; to read such bytes as U+FFFD set {path}.on_bad_text='replace'"
        raise UserError(
            f"{where()}: not UTF-8 at byte {error.start} ({raw[error.start]:#04x})"
            f"{hint if path else ''}"
        ) from error


def read_text(
    file: Path, *, path: str, on_bad_text: str = "error", source: str = ""
) -> str:
    """Return the text of a file: its line ends are those on disk.

    Args:
      file: the file.
      path: the dotted path in the config, or the flag, that names it.
      on_bad_text: see `decode_utf8`.
      source: dotted path of the source in the config; "": it is of none.

    Raises:
      UserError: it cannot be read, or is no UTF-8 text.
    """
    raw = _read_bytes(file, path=path)
    return decode_utf8(
        raw, where=lambda: str(file), on_bad_text=on_bad_text, path=source
    )


def read_lines(
    file: Path,
    *,
    path: str,
    on_bad_text: str = "error",
    source: str = "",
    keep_ends: bool = False,
) -> list[str]:
    """Return the lines of a file; see `read_text`.

    Args:
      file: the file.
      path: the dotted path in the config, or the flag, that names it.
      on_bad_text: see `decode_utf8`.
      source: dotted path of the source in the config; "": it is of none.
      keep_ends: each line keeps its LF or CRLF.

    Raises:
      UserError: it cannot be read, or a line is not UTF-8 (with its FILE:LINE).
    """
    *complete, last = _read_bytes(file, path=path, lines=True).split(b"\n")
    raw = [line + b"\n" for line in complete] + ([last] if last else [])
    lines = [
        decode_utf8(
            line,
            where=functools.partial("{}:{}".format, file, number),
            on_bad_text=on_bad_text,
            path=source,
        )
        for number, line in enumerate(raw, start=1)
    ]
    if keep_ends:
        return lines
    return [line.removesuffix("\n").removesuffix("\r") for line in lines]


def _read_bytes(file: Path, *, path: str, lines: bool = False) -> bytes:
    """Return the bytes of a file of text without a byte order mark."""
    if fault := find_fault(file, path=path, lines=lines):
        raise UserError(f"{path}: {file} {fault}")
    with read_errors(file, path=path):
        return file.read_bytes().removeprefix(BOM)
