"""Words of texts, and n-grams of them as 64-bit hashes."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

# Scripts without spaces: each character counts as a word. Thai, Lao, Burmese, Khmer,
# kana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)
_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: 2**64 over the golden ratio
_MAX_CACHED = 1 << 20


def split_words(text: str) -> list[str]:
    """Return what is separated by white space, and each character of other scripts."""
    return _separate(text).split()


def normal_words(text: str) -> list[str]:
    """Return the runs of letters and digits in lower case, without punctuation."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(_separate(text.lower()))


def _separate(text: str) -> str:
    if text.isascii() or not _UNSPACED.search(text):
        return text
    return _UNSPACED.sub(r" \g<0> ", text)


class _WordHashes(dict[str, int]):
    """Hashes of words, those of the last million kept."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MAX_CACHED:
            self.clear()
        digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8)
        self[word] = value = int.from_bytes(digest.digest(), "little")
        return value


_hashes = _WordHashes()


def hash_words(words: Sequence[str]) -> np.ndarray:
    """Return a hash of each word, uint64: the same in all processes."""
    return np.fromiter(map(_hashes.__getitem__, words), np.uint64, len(words))


def hash_ngrams(hashes: np.ndarray, size: int) -> np.ndarray:
    """Return a hash of each n-gram, uint64; none of fewer than `size` words."""
    count = len(hashes) - size + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    ngrams = np.zeros(count, np.uint64)
    for i in range(size):
        ngrams = ngrams * _FACTOR + hashes[i : i + count]
    return _mix(ngrams)


def _mix(values: np.ndarray) -> np.ndarray:
    """Spread each bit over all of a hash (SplitMix64; Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
