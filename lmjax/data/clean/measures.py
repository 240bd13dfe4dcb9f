"""What rules measure of a document. The rules themselves are in `rules`."""

import functools
import re

import numpy as np

from lmjax.data.clean.words import hash_ngrams, hash_words, split_words

_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"[.!?。！？]+[\"'”’)\]]*(?=\s|$)|[。！？]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]")
_BULLETS = ("•", "‣", "▪", "●", "○", "◦", "·", "-", "*", "–")
_ELLIPSES = ("...", "…", "[…]")
_PUNCTUATION = ".,;:!?\"'()[]"
STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))


class Measured:
    """A document, and what is counted in it, once each."""

    def __init__(self, text: str) -> None:
        self.text = text

    @functools.cached_property
    def words(self) -> list[str]:
        """Its words, with their punctuation."""
        return split_words(self.text)

    @functools.cached_property
    def lines(self) -> list[str]:
        """Its lines that are not blank, stripped."""
        stripped = (line.strip() for line in self.text.split("\n"))
        return [line for line in stripped if line]

    @functools.cached_property
    def paragraphs(self) -> list[str]:
        """What blank lines separate."""
        stripped = (part.strip() for part in _PARAGRAPH.split(self.text))
        return [part for part in stripped if part]

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """The characters of each word."""
        return np.fromiter(map(len, self.words), np.int64, len(self.words))

    @functools.cached_property
    def _ids(self) -> np.ndarray:
        """A number for each word: the same for the same word."""
        return hash_words(self.words)

    @functools.cached_property
    def _no_repeats_from(self) -> list[int]:
        """The least n of which no n-gram is known to be repeated, in a list."""
        return [1 << 30]

    def ngrams(self, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Return hashes, the first place, and the count at each place of n-grams.

        None where none is repeated: then no longer one is.
        """
        if size >= self._no_repeats_from[0]:
            return None
        hashes = hash_ngrams(self._ids, size)
        _, first, inverse, counts = np.unique(
            hashes, return_index=True, return_inverse=True, return_counts=True
        )
        if counts.max(initial=1) == 1:
            self._no_repeats_from[0] = size
            return None
        return first, inverse, counts


def mean_word_length(document: Measured) -> float:
    """Return the mean number of characters in a word."""
    return float(document.lengths.mean()) if len(document.lengths) else 0.0


def longest_word(document: Measured) -> float:
    """Return the number of characters in the longest word."""
    return float(document.lengths.max(initial=0))


def hash_ratio(document: Measured) -> float:
    """Return the number of # for each word."""
    return document.text.count("#") / max(len(document.words), 1)


def ellipsis_ratio(document: Measured) -> float:
    """Return the number of ellipses for each word."""
    count = document.text.count("...") + document.text.count("…")
    return count / max(len(document.words), 1)


def bullet_lines(document: Measured) -> float:
    """Return the share of lines that begin with a bullet."""
    return sum(line.startswith(_BULLETS) for line in document.lines) / max(
        len(document.lines), 1
    )


def ellipsis_lines(document: Measured) -> float:
    """Return the share of lines that end with an ellipsis."""
    return sum(line.endswith(_ELLIPSES) for line in document.lines) / max(
        len(document.lines), 1
    )


def alphabetic_words(document: Measured) -> float:
    """Return the share of words that contain a letter."""
    others = [word for word in document.words if not word.isalpha()]
    none = sum(not any(map(str.isalpha, word)) for word in others)
    return 1 - none / max(len(document.words), 1)


def stop_words(document: Measured) -> float:
    """Return how many of eight English words occur."""
    words = {word.lower().strip(_PUNCTUATION) for word in {*document.words}}
    return len(STOP_WORDS & words)


def control_characters(document: Measured) -> float:
    """Return the share of control characters and of U+FFFD."""
    text = document.text
    return len(_CONTROL.findall(text)) / max(len(text), 1)


def sentences(document: Measured) -> float:
    """Return the number of sentence ends."""
    return float(len(_SENTENCE.findall(document.text)))


def duplicates(parts: list[str]) -> float:
    """Return the share of parts that occurred before."""
    return (len(parts) - len({*parts})) / max(len(parts), 1)


def duplicate_characters(parts: list[str]) -> float:
    """Return the share of characters in parts that occurred before."""
    total = sum(map(len, parts))
    return (total - sum(map(len, {*parts}))) / max(total, 1)


def top_ngram(document: Measured, *, size: int) -> float:
    """Return the share of characters in the most frequent n-gram of words."""
    found = document.ngrams(size)
    if found is None:
        return 0.0
    first, _, counts = found
    ends = np.concatenate([[0], np.cumsum(document.lengths)])
    top = first[counts == counts.max()]
    characters = (ends[top + size] - ends[top]).max()
    return float(min(1.0, characters * counts.max() / ends[-1]))


def duplicate_ngrams(document: Measured, *, size: int) -> float:
    """Return the share of characters in n-grams of words that occur more than once."""
    found = document.ngrams(size)
    if found is None:
        return 0.0
    _, inverse, counts = found
    starts = np.flatnonzero(counts[inverse] > 1)
    edges = np.zeros(len(document.words) + 1, np.int64)
    edges[starts] += 1
    np.subtract.at(edges, starts + size, 1)
    covered = np.cumsum(edges)[:-1] > 0
    return float(document.lengths[covered].sum() / document.lengths.sum())
