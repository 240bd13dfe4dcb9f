"""The encoding of a file of text, told by its bytes."""

import codecs
import functools
import itertools
import logging
from collections.abc import Iterable
from pathlib import Path

from lmjax.errors import UserError
from lmjax.storage.paths import is_remote

AUTO = "auto"
_MARKS = (  # UTF-32 before UTF-16, which begins alike
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES = 64 << 10
_HEAD_BYTES = 4096
_MAX_NAMED = 20  # files of other encodings that are told one by one

_log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=1 << 16)
def _cached(file: Path, version: tuple[float, int], path: str) -> str:
    from lmjax.data.sources.plain import read_raw

    found = detect(read_raw(file, path=path))
    if found != "utf-8":
        _tell(file, found, path)
    return found


def detect_encoding(file: Path, *, path: str) -> str:
    """Return the encoding of a file, and log it unless that is UTF-8.

    Args:
      file: of text, which may be compressed.
      path: the dotted path of the source in the config, or the flag, that names it.

    Raises:
      UserError: it cannot be read, or the package that tells encodings is missing.
    """
    version = (0.0, 0)
    if not is_remote(file) and file.exists():
        version = file.stat().st_mtime, file.stat().st_size
    return _cached(file, version, path)


def detect(blocks: Iterable[bytes]) -> str:
    """Return the encoding of a text: by its mark, UTF-8 if it is that, or a guess.

    Binary files, and texts of which nothing can be told, count as UTF-8.
    """
    stream = iter(blocks)
    first = next(stream, b"")
    for mark, name in _MARKS:
        if first.startswith(mark):
            return name
    if name := _without_mark(first[:_HEAD_BYTES]):
        return name
    decode = codecs.getincrementaldecoder("utf-8")().decode
    is_utf8, sample = True, b""
    for block in itertools.chain([first], stream):
        if len(sample) < _SAMPLE_BYTES:
            lines = [line for line in block.split(b"\n") if not line.isascii()]
            sample += b"\n".join(lines)
        if is_utf8:
            try:
                decode(block)
            except UnicodeDecodeError:
                is_utf8 = False
        elif len(sample) >= _SAMPLE_BYTES:
            break
    return "utf-8" if is_utf8 else _guess(sample[:_SAMPLE_BYTES])


def _without_mark(head: bytes) -> str:
    """Return UTF-16 if every second byte of a text is NUL; "": another encoding."""
    zeros = head.count(b"\0")
    for start, name in ((0, "utf-16-be"), (1, "utf-16-le")):
        if zeros > len(head) / 4 and head[start::2].count(b"\0") > zeros * 0.95:
            return name
    return ""


def _guess(sample: bytes) -> str:
    try:
        from charset_normalizer import from_bytes
    except ImportError as error:
        raise UserError(
            "data.encoding = 'auto': a file that is not UTF-8 needs a package that is "
            "not installed: pip install 'lmjax[data]'"
        ) from error
    best = from_bytes(sample).best()
    return str(best.encoding) if best else "utf-8"


_told: list[Path] = []


def _tell(file: Path, encoding: str, path: str) -> None:
    _told.append(file)
    if len(_told) <= _MAX_NAMED:
        _log.info("%s: %s is read as %s", path, file, encoding)
    elif len(_told) == _MAX_NAMED + 1:
        _log.info("%s: further files are not UTF-8 either", path)
