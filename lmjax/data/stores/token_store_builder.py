"""Build a token store: shards in parallel processes, then the manifest.

Every file appears under its name only when it is complete, and the counts of a shard,
which show its files to be complete, are written last. So an interrupted build resumes
where it stopped, and several jobs can share one: each calls `build_shards`, then one of
them `build_token_store`.
"""

import dataclasses
import hashlib
import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.data.sources.documents import Documents, estimate_bytes, split_into_chunks
from lmjax.data.stores.store_manifest import (
    MANIFEST,
    open_if_current,
    parse_checksums,
    write_manifest,
)
from lmjax.data.stores.survey import Surveyor, add_up, count_duplicates
from lmjax.data.stores.token_store import VERSION, Counts, ShardFiles, TokenStore
from lmjax.data.tokenizers.special_ids import not_none
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.data.workers import map_in_processes
from lmjax.errors import UserError
from lmjax.fileio import (
    has_intact_seal,
    lock,
    open_atomic,
    read_json,
    seal,
    write_errors,
)
from lmjax.storage.paths import open_path

# Characters encoded at once; a document of twice as many is split. SentencePiece takes
# 30 to 100 bytes of memory for each. The ids of a split document depend on it: when it
# changes, the version of the store must change, too.
CHUNK = 1 << 20

_SHARD_BYTES = 2_000_000  # of text; a smaller corpus is not worth a process
_MAX_SHARDS = 1024
_PROGRESS_DELAY = 3.0  # seconds before a progress bar is shown

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A document, or a piece of one that is too long to be encoded whole."""

    text: str
    is_first: bool  # of its document
    is_last: bool
    inside_word: bool  # it begins within a word


def split_document(text: str) -> Iterator[Chunk]:
    """Yield the chunks of a document: one unless it is long."""
    start, before = 0, " "
    for chunk in split_into_chunks(text, size=CHUNK):
        stop = start + len(chunk)
        inside_word = not (before.isspace() or chunk[:1].isspace())
        yield Chunk(chunk, start == 0, stop == len(text), inside_word)
        start, before = stop, chunk[-1:]


def batch_chunks(documents: Documents, indices: range) -> Iterator[list[Chunk]]:
    """Yield the chunks of documents in order, about `CHUNK` characters at a time."""
    batch: list[Chunk] = []
    num_characters = 0
    for chunk in (chunk for i in indices for chunk in split_document(documents[i])):
        if batch and num_characters + len(chunk.text) > CHUNK:
            yield batch
            batch, num_characters = [], 0
        batch.append(chunk)
        num_characters += len(chunk.text) + 1
    yield batch


def encode_chunks(
    chunks: Sequence[Chunk], *, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Encode chunks, with an EOS after each document if the tokenizer has one.

    Each chunk is encoded by itself, so neither batches nor workers change the ids.

    Returns:
      The tokens, int32, and the places where documents begin, int64.
    """
    eos = np.array(not_none(tokenizer.eos_id), np.int32)
    nothing = np.zeros(0, np.int32)
    texts = [chunk.text for chunk in chunks]
    encoded = [
        np.concatenate([ids, eos if chunk.is_last else nothing])
        for chunk, ids in zip(chunks, tokenizer.encode_batch(texts), strict=True)
    ]
    ends = np.cumsum([len(ids) for ids in encoded])
    starts = np.concatenate([[0], ends[:-1]])[[chunk.is_first for chunk in chunks]]
    return np.concatenate(encoded), starts.astype(np.int64)


def count_chunks(chunks: Sequence[Chunk], *, num_tokens: int) -> Counts:
    """Count documents, bytes and words as if no document were split."""
    return Counts(
        num_documents=sum(chunk.is_first for chunk in chunks),
        num_tokens=num_tokens,
        num_bytes=sum(len(chunk.text.encode()) for chunk in chunks),
        num_words=sum(len(chunk.text.split()) - chunk.inside_word for chunk in chunks),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The division of documents into shards; the same wherever it is computed."""

    directory: Path
    documents: Documents
    tokenizer: Tokenizer
    fingerprint: str
    num_shards: int

    @property
    def dtype(self) -> np.dtype:
        """Return the type in which a token is stored."""
        return np.dtype("<u2" if self.tokenizer.vocab_size <= 1 << 16 else "<u4")

    @property
    def is_complete(self) -> bool:
        """Return whether every shard is built."""
        counts = (self.read_counts(shard) for shard in range(self.num_shards))
        return all(count is not None for count in counts)

    def documents_in(self, shard: int) -> range:
        """Return the indices of the documents of one shard."""
        count = len(self.documents)
        first, stop = (count * s // self.num_shards for s in (shard, shard + 1))
        return range(first, stop)

    def files(self, shard: int) -> ShardFiles:
        """Return the files of one shard."""
        return ShardFiles(
            directory=self.directory, shard=shard, num_shards=self.num_shards
        )

    def read_counts(self, shard: int) -> Counts | None:
        """Return the counts of a shard that is complete and up to date, else None."""
        files = self.files(shard)
        try:
            noted = read_json(files.counts)
            has_intact_seal(noted, file=files.counts)
            counts = Counts(**noted["counts"])
            up_to_date = noted["made_from"] == self.fingerprint
            complete = files.match(counts, dtype=self.dtype)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return counts if up_to_date and complete else None

    def read_checksums(self, shard: int) -> dict[str, int]:
        """Return the CRC-32 of the files of a complete shard by their names."""
        return parse_checksums(read_json(self.files(shard).counts))


def plan_store(
    directory: str | Path, *, documents: Documents, tokenizer: Tokenizer
) -> Plan:
    """Plan the store of some documents in `directory`."""
    return Plan(
        directory=open_path(directory),
        documents=documents,
        tokenizer=tokenizer,
        fingerprint=store_fingerprint(documents, tokenizer),
        num_shards=choose_num_shards(documents),
    )


def choose_num_shards(documents: Documents) -> int:
    """Return the number of shards that the size of the text calls for."""
    wanted = -(-estimate_bytes(documents) // _SHARD_BYTES)
    return min(max(1, wanted), _MAX_SHARDS, len(documents))


def store_fingerprint(documents: Documents, tokenizer: Tokenizer) -> str:
    """Hash everything that decides the tokens of a store."""
    both = f"{VERSION} {documents.fingerprint()} {tokenizer.fingerprint()}"
    return hashlib.sha256(both.encode()).hexdigest()


def build_token_store(
    directory: str | Path,
    *,
    documents: Documents,
    tokenizer: Tokenizer,
    num_workers: int = 0,
    label: str = "store",
) -> TokenStore:
    """Open the store of some documents; build it unless it exists and is up to date.

    One process builds in a directory at a time; others wait, then open its store.

    Args:
      directory: of the store.
      documents: the content.
      tokenizer: encodes them.
      num_workers: processes that tokenize; 0: one for each core.
      label: name of the store in the progress bar.

    Raises:
      UserError: a document cannot be read, or the directory cannot be written.
    """
    with write_errors(directory), lock(open_path(directory)):
        fingerprint = store_fingerprint(documents, tokenizer)
        store = open_if_current(TokenStore, open_path(directory), fingerprint)
        if store is not None:
            return store
        plan = plan_store(directory, documents=documents, tokenizer=tokenizer)
        (plan.directory / MANIFEST).unlink(missing_ok=True)
        _build(plan, range(plan.num_shards), num_workers=num_workers, label=label)
        _write_manifest(plan)
        _remove_leftovers(plan)
        store = TokenStore(plan.directory)
        _log.info("%s: %s", label, store.describe_text())
        return store


def build_shards(
    plan: Plan, shards: Sequence[int], *, num_workers: int = 0, label: str = "store"
) -> None:
    """Build some shards of a store, as one job of several.

    Shards that are complete and up to date are left as they are.
    """
    with write_errors(plan.directory):
        plan.directory.mkdir(parents=True, exist_ok=True)
        _build(plan, shards, num_workers=num_workers, label=label)


def _build(plan: Plan, shards: Sequence[int], *, num_workers: int, label: str) -> None:
    todo = [shard for shard in shards if plan.read_counts(shard) is None]
    done = map_in_processes(
        _build_shard,
        todo,
        shared=plan,
        num_workers=num_workers,
        killed=lambda count: (
            f"{plan.directory}: a process that tokenizes was killed, probably because "
            "memory ran out; run again to resume, with a smaller "
            f"config.data.num_store_workers (now {count})"
        ),
    )
    total = sum(len(plan.documents_in(shard)) for shard in todo)
    from lmjax.progress import ProgressBar

    with ProgressBar(f"tokenizing {label}", total=total, delay=_PROGRESS_DELAY) as bar:
        for num_documents in done:
            bar.advance(num_documents)


def _build_shard(plan: Plan, shard: int) -> int:
    """Write one shard, and return the number of its documents.

    Its counts are removed first and written last, so they never stand next to files
    that they do not belong to.
    """
    files = plan.files(shard)
    files.counts.unlink(missing_ok=True)
    counts, offsets, crc = Counts(), [np.zeros(0, np.int64)], 0
    surveyor = Surveyor()
    with open_atomic(files.tokens) as out:
        for chunks in batch_chunks(plan.documents, plan.documents_in(shard)):
            tokens, starts = encode_chunks(chunks, tokenizer=plan.tokenizer)
            offsets.append(starts + counts.num_tokens)
            counts += count_chunks(chunks, num_tokens=len(tokens))
            for chunk in chunks:
                surveyor.add(chunk.text, is_first=chunk.is_first, is_last=chunk.is_last)
            raw = tokens.astype(plan.dtype).tobytes()
            crc = zlib.crc32(raw, crc)
            out.write(raw)
    raw = np.concatenate(offsets).astype("<i8").tobytes()
    with open_atomic(files.offsets) as out:
        out.write(raw)
    with open_atomic(files.hashes) as out:
        out.write(np.array(surveyor.hashes, "<u8").tobytes())
    noted = {
        "made_from": plan.fingerprint,
        "counts": dataclasses.asdict(counts),
        "survey": dataclasses.asdict(surveyor.survey),
        "checksums": {files.tokens.name: crc, files.offsets.name: zlib.crc32(raw)},
    }
    with open_atomic(files.counts) as out:
        out.write(json.dumps(seal(noted)).encode())
    return counts.num_documents


def _write_manifest(plan: Plan) -> None:
    shards = [plan.read_counts(shard) for shard in range(plan.num_shards)]
    assert all(shards), "the manifest comes after all shards"
    manifest = {
        "version": VERSION,
        "made_from": plan.fingerprint,
        "source": plan.documents.fingerprint(),
        "tokenizer": plan.tokenizer.fingerprint(),
        "dtype": plan.dtype.str,
        "shards": [dataclasses.asdict(shard) for shard in shards if shard],
        "checksums": {
            name: crc
            for shard in range(plan.num_shards)
            for name, crc in plan.read_checksums(shard).items()
        },
    }
    write_manifest(plan.directory, manifest | _read_survey(plan))


def _read_survey(plan: Plan) -> dict[str, Any]:
    """Return what was found in all shards, for the manifest.

    Shards of earlier versions have none, and then nothing is told.
    """
    files = [plan.files(shard) for shard in range(plan.num_shards)]
    try:
        surveys = [read_json(file.counts)["survey"] for file in files]
        num_duplicates = count_duplicates(file.hashes for file in files)
    except (OSError, KeyError, UserError):
        return {}
    found = dataclasses.asdict(add_up(surveys))
    found |= {
        "num_duplicates": num_duplicates,
        "num_files": getattr(plan.documents, "num_files", 0),
    }
    return {"survey": found}


def _remove_leftovers(plan: Plan) -> None:
    """Remove the shards of earlier plans and the files of interrupted builds."""
    stems = {plan.files(shard).stem for shard in range(plan.num_shards)}
    for file in plan.directory.glob("?????-of-?????.*"):
        temporary = file.suffix in (".partial", ".hashes")
        if temporary or file.name.partition(".")[0] not in stems:
            file.unlink(missing_ok=True)
