"""Build a token store: shards in parallel processes, then the manifest.

Every file appears under its name only when it is whole, and a shard's counts, which
vouch for its files, come last. So a build that was cut off goes on where it stopped,
and several jobs can share one: `build_shards` in each, then `finish`.
"""

import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from lmjax.data.sources.documents import Documents, chunks, estimate_bytes
from lmjax.data.stores.token_store import (
    MANIFEST,
    VERSION,
    Counts,
    ShardFiles,
    TokenStore,
)
from lmjax.data.tokenizers.special_ids import not_none
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError
from lmjax.fileio import lock, open_atomic, write_errors

# Characters encoded at once; a document of twice as many is cut. SentencePiece takes
# 30 to 100 bytes of memory for each. The ids of what is cut depend on it, so the
# store's version changes with it.
CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Part:
    """A document, or a chunk of one that is too long to be encoded whole."""

    text: str
    first: bool  # of its document
    last: bool
    inside_word: bool  # it begins within a word


def cut(text: str) -> Iterator[Part]:
    """Yield a document's parts: one, unless it is long; `documents.chunks` cuts it."""
    start, before = 0, " "
    for chunk in chunks(text, size=CHUNK):
        stop = start + len(chunk)
        inside_word = not (before.isspace() or chunk[:1].isspace())
        yield Part(chunk, start == 0, stop == len(text), inside_word)
        start, before = stop, chunk[-1:]


def batches(documents: Documents, indices: range) -> Iterator[list[Part]]:
    """Yield parts in order, few enough at a time that they fit the memory."""
    batch: list[Part] = []
    num_characters = 0
    for part in (part for i in indices for part in cut(documents[i])):
        if batch and num_characters + len(part.text) > CHUNK:
            yield batch
            batch, num_characters = [], 0
        batch.append(part)
        num_characters += len(part.text) + 1
    yield batch


def join(
    parts: Sequence[Part], *, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of parts, any EOS after a document, and where documents begin.

    Each part is encoded for itself, so neither batches nor workers change the ids.
    """
    eos = np.array(not_none(tokenizer.eos_id), np.int32)
    nothing = np.zeros(0, np.int32)
    encoded = [
        np.concatenate([ids, eos if part.last else nothing])
        for part, ids in zip(
            parts, tokenizer.encode_batch([part.text for part in parts]), strict=True
        )
    ]
    ends = np.cumsum([len(ids) for ids in encoded])
    starts = np.concatenate([[0], ends[:-1]])[[part.first for part in parts]]
    return np.concatenate(encoded), starts.astype(np.int64)


def count(parts: Sequence[Part], *, num_tokens: int) -> Counts:
    """Count documents, bytes and words of parts, as if no document were cut."""
    return Counts(
        num_documents=sum(part.first for part in parts),
        num_tokens=num_tokens,
        num_bytes=sum(len(part.text.encode()) for part in parts),
        num_words=sum(len(part.text.split()) - part.inside_word for part in parts),
    )


_SHARD_BYTES = 2_000_000  # of text; a smaller corpus is not worth a process
_MAX_SHARDS = 1024
_PROGRESS_DELAY = 3.0  # seconds before a progress bar is shown

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How documents become shards; the same wherever it is computed."""

    directory: Path
    documents: Documents
    tokenizer: Tokenizer
    made_from: str
    num_shards: int

    @property
    def dtype(self) -> np.dtype:
        """Return the type that a token is stored in."""
        return np.dtype("<u2" if self.tokenizer.vocab_size <= 1 << 16 else "<u4")

    def documents_of(self, shard: int) -> range:
        """Return the documents of one shard."""
        count = len(self.documents)
        first, stop = (count * s // self.num_shards for s in (shard, shard + 1))
        return range(first, stop)

    @property
    def complete(self) -> bool:
        """Return whether every shard is built."""
        return all(self.finished(shard) is not None for shard in range(self.num_shards))

    def files(self, shard: int) -> ShardFiles:
        """Return the files of one shard."""
        return ShardFiles(
            directory=self.directory, shard=shard, num_shards=self.num_shards
        )

    def finished(self, shard: int) -> Counts | None:
        """Return the counts of a shard that is complete and up to date."""
        files = self.files(shard)
        try:
            noted = json.loads(files.counts.read_text())
            counts = Counts(**noted["counts"])
            up_to_date = noted["made_from"] == self.made_from
            complete = files.hold(counts, dtype=self.dtype)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return counts if up_to_date and complete else None


def plan_store(
    directory: str | Path,
    *,
    documents: Documents,
    tokenizer: Tokenizer,
    num_shards: int = 0,
) -> Plan:
    """Plan a store.

    Args:
      directory: where the store is, or will be.
      documents: what it holds.
      tokenizer: what its tokens mean.
      num_shards: 0: as many as the size of the text asks for.
    """
    wanted = -(-estimate_bytes(documents) // _SHARD_BYTES)
    num_shards = num_shards or min(max(1, wanted), _MAX_SHARDS)
    return Plan(
        directory=Path(directory),
        documents=documents,
        tokenizer=tokenizer,
        made_from=store_identity(documents, tokenizer),
        num_shards=min(num_shards, len(documents)),
    )


def store_identity(documents: Documents, tokenizer: Tokenizer) -> str:
    """Hash what decides the tokens of a store."""
    both = f"{VERSION} {documents.fingerprint()} {tokenizer.fingerprint()}"
    return hashlib.sha256(both.encode()).hexdigest()


def kept_identity(directory: str | Path) -> str:
    """Return what the store of a directory notes of `identity`; "" if there is none."""
    try:
        return str(json.loads((Path(directory) / MANIFEST).read_text())["made_from"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def build_token_store(
    directory: str | Path,
    *,
    documents: Documents,
    tokenizer: Tokenizer,
    num_workers: int = 0,
    label: str = "store",
    num_shards: int = 0,
) -> TokenStore:
    """Return the store of some documents: the one that is there, or a new one.

    One builder works on a directory at a time; others wait, then read what it built.

    Args:
      directory: where the store is, or will be.
      documents: what it holds.
      tokenizer: what its tokens mean.
      num_workers: processes that tokenize; 0: one for each core.
      label: what to call it in the progress bar.
      num_shards: 0: as many as the size of the text asks for.

    Raises:
      ConfigError: a document cannot be read, or the directory cannot be written.
    """
    with write_errors(directory), lock(Path(directory)):
        store = _open_if_current(Path(directory), store_identity(documents, tokenizer))
        if store is not None:
            return store
        plan = plan_store(
            directory, documents=documents, tokenizer=tokenizer, num_shards=num_shards
        )
        (plan.directory / MANIFEST).unlink(missing_ok=True)
        _build(plan, range(plan.num_shards), num_workers=num_workers, label=label)
        return _finish(plan)


def build_shards(
    plan: Plan, shards: Sequence[int], *, num_workers: int = 0, label: str = "store"
) -> None:
    """Build some shards of a store, as one job of several; `finish` comes after all.

    Shards that are complete and up to date are left as they are.
    """
    with write_errors(plan.directory):
        plan.directory.mkdir(parents=True, exist_ok=True)
        _build(plan, shards, num_workers=num_workers, label=label)


def finish(plan: Plan) -> TokenStore:
    """Make a store of shards that are all built.

    Raises:
      ConfigError: some are not; they are named.
    """
    missing = [s for s in range(plan.num_shards) if plan.finished(s) is None]
    if missing:
        raise ConfigError(f"{plan.directory}: shards {missing} are still to be built")
    with write_errors(plan.directory), lock(plan.directory):
        return _finish(plan)


def _open_if_current(directory: Path, made_from: str) -> TokenStore | None:
    """Open the store if it holds the right tokens; say so if it is damaged."""
    try:
        store = TokenStore(directory)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("%s: damaged, will be built again: %s", directory, error)
        return None
    return store if store.made_from == made_from else None


def _build(plan: Plan, shards: Sequence[int], *, num_workers: int, label: str) -> None:
    todo = [shard for shard in shards if plan.finished(shard) is None]
    num_workers = min(num_workers or os.cpu_count() or 1, len(todo))
    done = (
        (_build_shard(plan, shard) for shard in todo)
        if num_workers <= 1
        else _build_in_processes(plan, todo, num_workers=num_workers)
    )
    total = sum(len(plan.documents_of(shard)) for shard in todo)
    from lmjax.progress import ProgressBar

    with ProgressBar(f"tokenizing {label}", total=total, delay=_PROGRESS_DELAY) as bar:
        for num_documents in done:
            bar.advance(num_documents)


def _build_in_processes(
    plan: Plan, shards: Sequence[int], *, num_workers: int
) -> Iterator[int]:
    pool = futures.ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),  # threads of jax do not fork
        initializer=_start_worker,
        initargs=(plan,),
    )
    try:
        waiting = [pool.submit(_work, shard) for shard in shards]
        for future in futures.as_completed(waiting):
            yield future.result()
    except BrokenProcessPool as error:
        raise ConfigError(
            f"{plan.directory}: a process that tokenizes was killed, as happens when "
            "memory runs out; run again to go on, with a smaller "
            f"config.data.num_store_workers (now {num_workers})"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker_plan: Plan  # in a worker process: sent once, not with each shard


def _start_worker(plan: Plan) -> None:
    global _worker_plan
    _worker_plan = plan


def _work(shard: int) -> int:
    return _build_shard(_worker_plan, shard)


def _build_shard(plan: Plan, shard: int) -> int:
    """Write one shard; return how many documents it holds.

    Its counts are removed first and written last, so they never vouch for other
    files than their own.
    """
    files = plan.files(shard)
    files.counts.unlink(missing_ok=True)
    counts, offsets = Counts(), [np.zeros(0, np.int64)]
    with open_atomic(files.tokens) as out:
        for parts in batches(plan.documents, plan.documents_of(shard)):
            tokens, starts = join(parts, tokenizer=plan.tokenizer)
            offsets.append(starts + counts.num_tokens)
            counts += count(parts, num_tokens=len(tokens))
            out.write(tokens.astype(plan.dtype).tobytes())
    with open_atomic(files.offsets) as out:
        out.write(np.concatenate(offsets).astype("<i8").tobytes())
    noted = {"made_from": plan.made_from, "counts": dataclasses.asdict(counts)}
    with open_atomic(files.counts) as out:
        out.write(json.dumps(noted).encode())
    return counts.num_documents


def _finish(plan: Plan) -> TokenStore:
    shards = [plan.finished(shard) for shard in range(plan.num_shards)]
    assert all(shards), "finish comes after all shards"
    manifest = {
        "version": VERSION,
        "made_from": plan.made_from,
        "source": plan.documents.fingerprint(),
        "tokenizer": plan.tokenizer.fingerprint(),
        "dtype": plan.dtype.str,
        "shards": [dataclasses.asdict(shard) for shard in shards if shard],
    }
    with open_atomic(plan.directory / MANIFEST) as out:
        out.write(json.dumps(manifest, indent=1).encode())
    _remove_leftovers(plan)
    return TokenStore(plan.directory)


def _remove_leftovers(plan: Plan) -> None:
    """Remove shards of an earlier plan and what interrupted builds left."""
    stems = {plan.files(shard).stem for shard in range(plan.num_shards)}
    for file in plan.directory.glob("?????-of-?????.*"):
        if file.name.partition(".")[0] not in stems or file.suffix == ".partial":
            file.unlink(missing_ok=True)
