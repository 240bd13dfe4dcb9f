"""Bits per byte of general-purpose compressors, to compare a language model with."""

import lzma
import zlib
from collections.abc import Sequence

from lmjax.data.sources.documents import Documents


def bits_per_byte(sources: Sequence[Documents]) -> dict[str, float]:
    """Return the bits per byte of `gzip -9` and `xz -9` on all text."""
    texts = (documents[i] for documents in sources for i in range(len(documents)))
    text = "".join(texts).encode()
    gzip = zlib.compress(text, 9, wbits=16 + zlib.MAX_WBITS)
    xz = lzma.compress(text, preset=9)
    return {"gzip": 8 * len(gzip) / len(text), "xz": 8 * len(xz) / len(text)}
