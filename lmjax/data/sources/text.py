"""Text in files: what ends a line, what is no text, and how bytes become characters.

Whatever reads a file of a user reads it by these rules. The file is UTF-8, or is made
so (see `plain`); a byte order mark at its start is no text; a line ends with LF or CRLF
and with nothing else, so that U+2028, NEL, vertical tabs, form feeds and NUL are
characters within it; the last line may lack its end.
"""

import codecs
import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from lmjax.data.sources.plain import encoding_of, is_utf8, read_plain, read_raw
from lmjax.errors import UserError

BOM = codecs.BOM_UTF8
_HEAD_BYTES = 8 << 10
_COMPRESSED = "is compressed ({}); decompress it first"
_TABLE = "is {}, which cannot be read; convert it to JSON lines"
_COLUMNS = "is {}, which config.data.source={!r} reads"
_OTHER = "is {}, not text"
_UTF = "is {0}; for data set config.data.encoding={0!r}, or iconv -f {0} -t UTF-8"
# The first bytes of files that are no UTF-8 text, and what to say of them. Text may
# begin with those that are letters: they count only before bytes that text has not.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x04\x22\x4d\x18", _COMPRESSED.format("lz4")),
    (b"PK\x03\x04", _COMPRESSED.format("zip, or a document in one")),
    (b"PK\x05\x06", _COMPRESSED.format("zip")),
    (b"7z\xbc\xaf\x27\x1c", _COMPRESSED.format("7z")),
    (b"Rar!\x1a\x07", _COMPRESSED.format("rar")),
    (b"PAR1", _COLUMNS.format("Parquet", "parquet")),
    (b"PARE", _TABLE.format("encrypted Parquet")),
    (b"ARROW1", _COLUMNS.format("Arrow", "arrow")),
    (b"FEA1", _TABLE.format("Feather")),
    (b"\xff\xff\xff\xff", _COLUMNS.format("an Arrow stream", "arrow")),
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
_UTF_MARKS = (
    codecs.BOM_UTF32_LE,
    codecs.BOM_UTF32_BE,
    codecs.BOM_UTF16_LE,
    codecs.BOM_UTF16_BE,
)
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


def find_fault(
    file: Path,
    *,
    path: str,
    lines: bool = False,
    all: bool = False,
    encoding: str = "utf-8",
) -> str:
    """Return why a file is not one of text, judged by its first bytes; "": it is.

    Args:
      file: a file, which may be compressed.
      path: the dotted path in the config, or the flag, that names it.
      lines: it is read line by line.
      all: also look for bytes that are not in the encoding in all of it.
      encoding: of the text.

    Raises:
      UserError: it cannot be read.
    """
    if file.exists() and not file.is_file():
        return "is not a regular file"
    with contextlib.closing(read_raw(file, path=path)) as blocks:
        head = next(blocks, b"")[:_HEAD_BYTES]
    encoding = encoding_of(file, encoding, path=path)
    if fault := _describe_magic(head, encoding=encoding):
        return fault
    text = head
    if not is_utf8(encoding):
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        text = decoder.decode(head).encode("utf-8", "replace")
    if fault := _describe_head(text):
        return fault
    if lines and b"\n" not in text and text.count(b"\r") > 1:
        return "has lines that end with CR alone; convert them, as with tr '\\r' '\\n'"
    return _find_bad_bytes(file, path=path, encoding=encoding) if all else ""


def _find_bad_bytes(file: Path, *, path: str, encoding: str) -> str:
    """Return why some of a file is not in its encoding; "": all is."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    try:
        for block in read_plain(file, path=path, encoding=encoding):
            decode(block)
        decode(b"", final=True)
    except UnicodeDecodeError:
        return "is not UTF-8"
    except UserError as error:
        if isinstance(error.__cause__, UnicodeError):
            return f"is not {encoding}"
        raise
    return ""


def _describe_magic(head: bytes, *, encoding: str) -> str:
    """Return what a file is instead of text, by its very first bytes; "": text."""
    controls = len(head) - len(head.translate(None, _CONTROLS))
    utf8 = _is_utf8(head)
    for magic, fault in _MAGIC:
        if magic in _UTF_MARKS and not is_utf8(encoding):
            continue
        if head.startswith(magic) and not (magic.isalnum() and utf8 and not controls):
            return fault
    return "is an archive (tar); unpack it first" if head[257:262] == b"ustar" else ""


def _describe_head(head: bytes) -> str:
    """Return what a file is instead of UTF-8 text, by control characters; "": text.

    Text has hardly any of them; a tenth of compressed or random bytes, and half of
    UTF-16, are some.
    """
    controls = len(head) - len(head.translate(None, _CONTROLS))
    if controls <= 4 or controls <= len(head) / 20:
        return ""
    zeros = head.count(b"\0")
    for first, name in ((0, "UTF-16BE"), (1, "UTF-16LE")):
        if zeros > len(head) / 4 and head[first::2].count(b"\0") > zeros * 0.95:
            return _UTF.format(name)
    if _is_utf8(head) and controls <= len(head) / 4:
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
    file: Path,
    *,
    path: str,
    on_bad_text: str = "error",
    source: str = "",
    encoding: str = "utf-8",
) -> str:
    """Return the text of a file: its line ends are those on disk.

    Args:
      file: the file.
      path: the dotted path in the config, or the flag, that names it.
      on_bad_text: see `decode_utf8`.
      source: dotted path of the source in the config; "": it is of none.
      encoding: of the file.

    Raises:
      UserError: it cannot be read, or is no text in the encoding.
    """
    raw = _read_bytes(file, path=path, encoding=encoding, on_bad_text=on_bad_text)
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
    encoding: str = "utf-8",
) -> list[str]:
    """Return the lines of a file; see `read_text`.

    Args:
      file: the file.
      path: the dotted path in the config, or the flag, that names it.
      on_bad_text: see `decode_utf8`.
      source: dotted path of the source in the config; "": it is of none.
      keep_ends: each line keeps its LF or CRLF.
      encoding: of the file.

    Raises:
      UserError: it cannot be read, or is no text in the encoding; names FILE:LINE if
        that is UTF-8.
    """
    text = _read_bytes(
        file, path=path, lines=True, encoding=encoding, on_bad_text=on_bad_text
    )
    *complete, last = text.split(b"\n")
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


def _read_bytes(
    file: Path, *, path: str, lines: bool = False, encoding: str, on_bad_text: str
) -> bytes:
    """Return the bytes of a file of text, as UTF-8 without a byte order mark."""
    if fault := find_fault(file, path=path, lines=lines, encoding=encoding):
        raise UserError(f"{path}: {file} {fault}")
    options = {"encoding": encoding, "on_bad_text": on_bad_text}
    return b"".join(read_plain(file, path=path, **options)).removeprefix(BOM)
