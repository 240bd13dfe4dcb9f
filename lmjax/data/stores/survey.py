"""What was found in a text while it was encoded: told once, kept in the manifest."""

import dataclasses
import functools
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_SAMPLE = 500  # characters of a document, or of 2 MB of a long one
_MAX_SCRIPTS = 4
_LEAST_SHARE = 0.005


@dataclasses.dataclass(kw_only=True)
class Survey:
    """Of a shard, or of a store.

    Attributes:
      num_empty: documents without text.
      longest_bytes: of the longest document.
      scripts: the letters of samples by their scripts.
    """

    num_empty: int = 0
    longest_bytes: int = 0
    scripts: dict[str, int] = dataclasses.field(default_factory=dict)


class Surveyor:
    """Looks at the documents of a shard, which come in pieces."""

    def __init__(self) -> None:
        self.survey = Survey()
        self.hashes: list[int] = []
        self._scripts = Counter[str]()
        self._hash: Any = None
        self._num_bytes = 0
        self._has_text = False

    def add(self, text: str, *, is_first: bool, is_last: bool) -> None:
        """Look at a piece of a document."""
        if is_first:
            self._hash = hashlib.blake2b(digest_size=8)
            self._num_bytes, self._has_text = 0, False
        raw = text.encode()
        self._hash.update(raw)
        self._num_bytes += len(raw)
        self._has_text = self._has_text or not (not text or text.isspace())
        for character, count in Counter(text[:_SAMPLE]).items():
            if script := script_of(character):
                self._scripts[script] += count
        if is_last:
            self.hashes.append(int.from_bytes(self._hash.digest(), "little"))
            self.survey.num_empty += not self._has_text
            longest = self.survey.longest_bytes
            self.survey.longest_bytes = max(longest, self._num_bytes)
            self.survey.scripts = dict(self._scripts)


@functools.cache
def script_of(character: str) -> str:
    """Return the script of a letter, such as Latin; "": it is none."""
    if not character.isalpha():
        return ""
    name = unicodedata.name(character, "")
    first = name.replace("CJK UNIFIED", "Han").split(" ")[0]
    return {"FULLWIDTH": "Latin", "HALFWIDTH": "Katakana"}.get(first, first.title())


def add_up(surveys: Iterable[Mapping[str, Any]]) -> Survey:
    """Return the survey of a store of several shards."""
    total, scripts = Survey(), Counter[str]()
    for survey in surveys:
        total.num_empty += survey["num_empty"]
        total.longest_bytes = max(total.longest_bytes, survey["longest_bytes"])
        scripts.update(survey["scripts"])
    total.scripts = dict(scripts.most_common())
    return total


def count_duplicates(files: Iterable[Path]) -> int:
    """Return how many documents are copies of others, given files of their hashes."""
    hashes = [np.frombuffer(file.read_bytes(), "<u8") for file in files]
    every = np.concatenate([np.zeros(0, np.uint64), *hashes])
    return len(every) - len(np.unique(every))


def describe(found: Mapping[str, Any]) -> str:
    """Return what is worth telling of the survey in a manifest, after the counts."""
    parts = [f"longest {found['longest_bytes']:,} bytes"]
    if found["num_empty"]:
        parts.append(f"{found['num_empty']:,} empty")
    if found["num_duplicates"]:
        parts.append(f"{found['num_duplicates']:,} exact duplicates")
    total = sum(found["scripts"].values())
    named = [
        f"{name} {count / total:.0%}"
        for name, count in [*found["scripts"].items()][:_MAX_SCRIPTS]
        if count > _LEAST_SHARE * total
    ]
    return "; ".join([*parts, *(["letters: " + ", ".join(named)] if named else [])])
