"""Held-out texts in a corpus: n-grams of words that both have (Brown et al. 2020)."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from lmjax.data.clean.words import hash_ngrams, hash_words, normal_words


class HeldOut(NamedTuple):
    """The n-grams of held-out texts."""

    hashes: np.ndarray  # sorted, uint64
    num_texts: int
    num_short: int  # texts of fewer words, which are not looked for


def collect_ngrams(texts: Iterable[str], *, size: int) -> HeldOut:
    """Return the n-grams of held-out texts.

    Args:
      texts: held out.
      size: words of an n-gram.
    """
    found, num_texts, num_short = [np.zeros(0, np.uint64)], 0, 0
    for text in texts:
        hashes = hash_ngrams(hash_words(normal_words(text)), size)
        num_texts += 1
        num_short += not len(hashes)
        found.append(hashes)
        if len(found) > 10_000:
            found = [np.unique(np.concatenate(found))]
    return HeldOut(np.unique(np.concatenate(found)), num_texts, num_short)


def find_held_out(ngrams: np.ndarray, held_out: np.ndarray) -> int | None:
    """Return the place of the first n-gram that is held out; None: there is none."""
    if not len(ngrams) or not len(held_out):
        return None
    places = np.minimum(np.searchsorted(held_out, ngrams), len(held_out) - 1)
    found = np.flatnonzero(held_out[places] == ngrams)
    return int(found[0]) if len(found) else None


def strings_in(value: Any) -> Iterator[str]:
    """Yield the strings in a record, at whatever depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_in(item)
