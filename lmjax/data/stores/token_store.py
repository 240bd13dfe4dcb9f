"""Running text as token ids on disk: flat, memory-mapped, built once.

A store is a directory of shards, each a run of documents in order:

  00000-of-00004.tokens   t1 .. tn EOS of each document; uint16, or uint32 where the
                          vocabulary needs it
  00000-of-00004.offsets  int64, where each document begins in the shard
  00000-of-00004.json     its counts, and the fingerprint of the store
  manifest.json           written last: see `store_manifest`

BOS is not stored; `packing` inserts it. Readers see one stream over all shards.
`token_store_builder` writes the files.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.data.stores import survey
from lmjax.data.stores.store_manifest import (
    MANIFEST,
    parse_checksums,
    read_manifest,
)
from lmjax.storage.cache import local_copy, warn_if_larger
from lmjax.storage.paths import is_remote, open_path

VERSION = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """The amount of text in a shard or a store."""

    num_documents: int = 0
    num_tokens: int = 0  # including an EOS for each document
    num_bytes: int = 0  # of the text in UTF-8
    num_words: int = 0  # separated by white space

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            num_documents=self.num_documents + other.num_documents,
            num_tokens=self.num_tokens + other.num_tokens,
            num_bytes=self.num_bytes + other.num_bytes,
            num_words=self.num_words + other.num_words,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardFiles:
    """The files of one shard."""

    directory: Path
    shard: int
    num_shards: int

    @property
    def stem(self) -> str:
        """Return their name without the suffix."""
        return f"{self.shard:05d}-of-{self.num_shards:05d}"

    @property
    def tokens(self) -> Path:
        """Return the file of token ids."""
        return self.directory / f"{self.stem}.tokens"

    @property
    def offsets(self) -> Path:
        """Return the file of the places where documents begin."""
        return self.directory / f"{self.stem}.offsets"

    @property
    def hashes(self) -> Path:
        """Return the file of hashes of documents, until there is a manifest."""
        return self.directory / f"{self.stem}.hashes"

    @property
    def counts(self) -> Path:
        """Return the file that shows the other two to be complete."""
        return self.directory / f"{self.stem}.json"

    def match(self, counts: Counts, *, dtype: np.dtype) -> bool:
        """Return whether the sizes of the files are those that the counts imply."""
        try:
            sizes = self.tokens.stat().st_size, self.offsets.stat().st_size
        except OSError:
            return False
        return sizes == (counts.num_tokens * dtype.itemsize, counts.num_documents * 8)


class TokenStore:
    """A finished store, open for reading.

    Raises:
      FileNotFoundError: there is no manifest.
      ValueError: the files are not those that the manifest was written for.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = open_path(directory)
        manifest = read_manifest(self.directory)
        self.checksums = parse_checksums(manifest)
        try:
            if manifest["version"] != VERSION:
                raise ValueError(f"version {manifest['version']}, not {VERSION}")
            self.fingerprint: str = manifest["made_from"]
            self._dtype = np.dtype(manifest["dtype"])
            self._shards = [Counts(**shard) for shard in manifest["shards"]]
            self.counts = sum(self._shards, Counts())
            self.survey: dict[str, Any] = manifest.get("survey", {})
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{MANIFEST} is not that of a token store: {error!r}"
            ) from error
        self._first = np.cumsum([0, *(shard.num_tokens for shard in self._shards)])
        self._copies: dict[Path, Path] = {}  # the files themselves, if they are local
        self._maps: dict[Path, np.ndarray] = {}
        if is_remote(self.directory):  # a file is verified when it is fetched
            size = self.num_tokens * self._dtype.itemsize + self.num_documents * 8
            warn_if_larger(size, name=str(self.directory))
            return
        for shard in range(len(self._shards)):
            self._check_sizes(shard)

    @property
    def num_tokens(self) -> int:
        """Count the tokens, including an EOS for each document."""
        return self.counts.num_tokens

    @property
    def num_documents(self) -> int:
        """Count the documents."""
        return self.counts.num_documents

    @property
    def num_bytes(self) -> int:
        """Count the bytes of the text in UTF-8."""
        return self.counts.num_bytes

    @property
    def num_words(self) -> int:
        """Count the words of the text, separated by white space."""
        return self.counts.num_words

    def describe(self) -> str:
        """Return a summary of the counts."""
        return (
            f"{self.num_documents:,} documents, {self.num_tokens:,} tokens, "
            f"{self.num_bytes:,} bytes"
        )

    def describe_text(self) -> str:
        """Return what was found in the text, after files and counts."""
        num_files = self.survey.get("num_files", 0)
        files = f"{num_files:,} file{'s' * (num_files > 1)}, " if num_files else ""
        found = f"; {survey.describe(self.survey)}" if self.survey else ""
        return f"{files}{self.describe()}{found}"

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return tokens [start, stop) of the stream, int32."""
        runs = [self._tokens(shard)[a:b] for shard, a, b in self._runs(start, stop)]
        return np.concatenate([np.zeros(0, np.int32), *runs], dtype=np.int32)

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """Return the places in [start, stop) where documents begin, int64."""
        starts = [np.zeros(0, np.int64)]
        for shard, a, b in self._runs(start, stop):
            offsets = self._offsets(shard)
            low, high = np.searchsorted(offsets, [a, b])
            starts.append(offsets[low:high] + self._first[shard])
        return np.concatenate(starts)

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.directory,)  # memory maps would be pickled as copies

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the shards that [start, stop) crosses, and the range in each."""
        shard = int(np.searchsorted(self._first, start, side="right")) - 1
        while start < stop and shard < len(self._shards):
            first, last = int(self._first[shard]), int(self._first[shard + 1])
            yield shard, start - first, min(stop, last) - first
            start, shard = last, shard + 1

    def _tokens(self, shard: int) -> np.ndarray:
        return self._map(self._files(shard).tokens, self._dtype)

    def _offsets(self, shard: int) -> np.ndarray:
        return self._map(self._files(shard).offsets, np.dtype(np.int64))

    def _map(self, file: Path, dtype: np.dtype) -> np.ndarray:
        copy = self._copies.get(file)
        if copy is None or (is_remote(file) and not copy.exists()):  # no longer cached
            copy = local_copy(file, crc32=self.checksums.get(file.name))
            self._copies[file] = copy
            self._maps[file] = np.memmap(copy, dtype, mode="r")
        return self._maps[file]

    def _files(self, shard: int) -> ShardFiles:
        return ShardFiles(
            directory=self.directory, shard=shard, num_shards=len(self._shards)
        )

    def _check_sizes(self, shard: int) -> None:
        files = self._files(shard)
        if not files.match(self._shards[shard], dtype=self._dtype):
            raise ValueError(f"{files.tokens.name} or its offsets have the wrong size")
