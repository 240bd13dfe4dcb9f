"""Documents read, judged and changed, some thousand at a time; each chunk is a file.

00012.jsonl  the records of the documents that the rules keep, in order
00012.npz    of these: hashes, signatures, sizes, indices
00012.json   what the rules took, with examples; written last
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.data.clean.contamination import find_held_out
from lmjax.data.clean.corpus import Corpus
from lmjax.data.clean.language import find_language
from lmjax.data.clean.lines import leave_out_lines
from lmjax.data.clean.measures import Measured
from lmjax.data.clean.minhash import NGRAM, sign
from lmjax.data.clean.personal import Redactor
from lmjax.data.clean.rules import find_broken
from lmjax.data.clean.settings import Settings
from lmjax.data.clean.tally import Tally, excerpt
from lmjax.data.clean.words import hash_ngrams, hash_words, normal_words
from lmjax.errors import UserError
from lmjax.fileio import open_atomic, read_json, seal

_ARRAYS = {
    "hashes": np.uint64,
    "signatures": np.uint32,
    "sizes": np.int64,
    "indices": np.int64,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What all chunks share.

    Attributes:
      directory: of the files of chunks.
      held_out: sorted hashes of n-grams, in a file; None: none are.
      fingerprint: of corpus and settings.
    """

    directory: Path
    corpus: Corpus
    settings: Settings
    held_out: Path | None
    num_chunks: int
    fingerprint: str

    def indices(self, chunk: int) -> range:
        """Return the indices of the documents of a chunk."""
        count = len(self.corpus)
        first, stop = (count * c // self.num_chunks for c in (chunk, chunk + 1))
        return range(first, stop)

    def file(self, chunk: int, suffix: str) -> Path:
        """Return a file of a chunk."""
        return self.directory / f"{chunk:06d}{suffix}"

    def read_tally(self, chunk: int) -> Tally | None:
        """Return what the rules took of a chunk; None unless it is complete."""
        try:
            noted = read_json(self.file(chunk, ".json"))
            if noted["made_from"] != self.fingerprint:
                return None
            return Tally(**noted["tally"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def clean_chunk(job: Job, chunk: int) -> int:
    """Clean the documents of one chunk, and return how many it has."""
    cleaner, tally = _Cleaner(job), Tally()
    kept: dict[str, list[Any]] = {name: [] for name in _ARRAYS}
    with open_atomic(job.file(chunk, ".jsonl")) as out:
        for index in job.indices(chunk):
            cleaned = cleaner.clean(index, tally)
            if cleaned is None:
                continue
            text, record = cleaned
            out.write(_encode_record(record) + b"\n")
            kept["sizes"].append(len(text.encode()))
            kept["indices"].append(index)
            kept["hashes"].append(_hash_text(text))
            if job.settings.duplicates == "near":
                kept["signatures"].append(_sign_text(text))
    with open_atomic(job.file(chunk, ".npz")) as out:
        arrays: Any = {k: np.array(v, _ARRAYS[k]) for k, v in kept.items()}
        np.savez(out, **arrays)
    noted = {"made_from": job.fingerprint, "tally": dataclasses.asdict(tally)}
    with open_atomic(job.file(chunk, ".json")) as out:
        out.write(json.dumps(seal(noted)).encode())
    return len(job.indices(chunk))


def _encode_record(record: Any) -> bytes:
    """Return JSON; in ASCII where a field has half of a surrogate pair."""
    try:
        return json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(record).encode()


class _Cleaner:
    """Applies the settings to one document after another."""

    def __init__(self, job: Job) -> None:
        self.corpus, self.settings = job.corpus, job.settings
        self.redactor = Redactor(
            self.settings.personal, patterns=self.settings.patterns
        )
        self.held_out = np.zeros(0, np.uint64)
        if job.held_out is not None:
            self.held_out = np.load(job.held_out, mmap_mode="r")

    def clean(self, index: int, tally: Tally) -> tuple[str, dict[str, Any]] | None:
        """Return the text and the record of a document; None if it is left out."""
        where = lambda: self.corpus.where(index)
        try:
            text, record = self.corpus.read(index)
        except UserError as error:
            if not self.settings.skip_bad:
                raise UserError(f"{error} (--skip_bad leaves it out)") from error
            tally.read(0)
            tally.take("unreadable", 0, where=where, value=str(error), text="")
            return None
        tally.read(len(text.encode()))
        text, lines = leave_out_lines(text, self.settings.limits)
        for name, left_out in lines.items():
            tally.change(name, len(left_out), where=where, text=excerpt(left_out[0]))
        if broken := self._find_broken(text):
            name, value = broken
            tally.take(name, len(text.encode()), where=where, value=value, text=text)
            return None
        text, counts, examples = self.redactor.redact(text)
        for found in examples:
            count = counts[found.kind]
            tally.change(found.kind, count, where=where, text=found.example)
        field = self.corpus.config.field
        return text, {**record, field if record else "text": text}

    def _find_broken(self, text: str) -> tuple[str, float | str] | None:
        """Return the rule that takes a document, and why; None: it stays."""
        if not text.strip():
            return "empty", 0
        if broken := find_broken(Measured(text), self.settings.limits):
            return broken
        if self.settings.languages:
            language = find_language(text)
            if language not in self.settings.languages:
                return "language", language
        if len(self.held_out):
            words = normal_words(text)
            ngrams = hash_ngrams(hash_words(words), self.settings.ngram)
            place = find_held_out(ngrams, self.held_out)
            if place is not None:
                return "held_out", " ".join(words[place : place + self.settings.ngram])
        return None


def _hash_text(text: str) -> np.ndarray:
    digest = hashlib.blake2b(text.strip().encode(), digest_size=16).digest()
    return np.frombuffer(digest, np.uint64)


def _sign_text(text: str) -> np.ndarray:
    hashes = hash_words(normal_words(text) or [text.strip()])
    return sign(np.unique(hash_ngrams(hashes, min(NGRAM, len(hashes)))))
