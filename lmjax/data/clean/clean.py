"""Clean a corpus: rules on each document in processes, then duplicates, then one file.

Chunks of documents are files in .OUTPUT.cleaning until the output is complete, so that
a command that was killed goes on where it stopped, and writes the same bytes. The name
is hidden from globs and directories that may be the input.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from lmjax.data.clean.chunk import Job, clean_chunk
from lmjax.data.clean.contamination import HeldOut, collect_ngrams
from lmjax.data.clean.corpus import Corpus, choose_source, read_held_out
from lmjax.data.clean.duplicates import Copies, find_copies, load_array
from lmjax.data.clean.output import Output, check_output, open_output
from lmjax.data.clean.settings import Settings
from lmjax.data.clean.tally import Tally, add_up
from lmjax.data.sources.documents import Documents, estimate_bytes, hash_json
from lmjax.data.workers import map_in_processes
from lmjax.errors import UserError
from lmjax.fileio import open_atomic, try_lock, write_errors

_VERSION = 1  # of the rules: raise it when one changes
_CHUNK_BYTES = 4 << 20
_MAX_CHUNKS = 1 << 16
_PROGRESS_DELAY = 3.0  # seconds before a progress bar is shown
_NOTE = "made_from"


class Cleaned(NamedTuple):
    """What was read, taken, changed and kept."""

    tally: Tally
    num_documents: int  # that stay
    num_bytes: int  # of their text
    held_out: HeldOut | None
    other_splits: Sequence[str]  # of the input, which were not read
    settings: Settings

    def to_json(self) -> dict[str, Any]:
        """Return the report, the same whenever the same corpus is cleaned."""
        tally = dataclasses.asdict(self.tally)
        report = {
            "read": {
                "documents": tally["num_documents"],
                "bytes": tally["num_bytes"],
            },
            "kept": {"documents": self.num_documents, "bytes": self.num_bytes},
            "taken": tally["taken"],
            "changed": tally["changed"],
            "settings": dataclasses.asdict(self.settings),
        }
        if self.held_out is not None:
            report["held_out"] = {
                "texts": self.held_out.num_texts,
                "too_short": self.held_out.num_short,
                "ngrams": len(self.held_out.hashes),
            }
        return report


def clean(
    pattern: str,
    output: Path,
    settings: Settings,
    *,
    overrides: Sequence[str] = (),
    held_out: Sequence[str] = (),
    num_workers: int = 0,
) -> Cleaned:
    """Clean the documents of files, in their order; call again to resume.

    Args:
      pattern: a glob or a directory.
      output: .jsonl, or .txt with a document a line; also .gz, .zst, .xz and .bz2.
      settings: see `settings.choose`.
      overrides: "data.LEAF=VALUE": how the files are read.
      held_out: globs or directories; documents that share an n-gram with one of these
        files are left out.
      num_workers: processes; 0: one for each core.

    Raises:
      UserError: a file cannot be read or written.
    """
    if num_workers < 0:
        raise UserError(f"--num_workers={num_workers}: must be >= 0")
    kind = check_output(output)
    corpus = Corpus(choose_source(pattern, overrides, flag="--input"))
    if output.resolve() in {Path(file).resolve() for file in corpus.files}:
        raise UserError(f"--output={output}: is a file of --input={pattern}")
    directory = output.with_name(f".{output.name}.cleaning")
    with write_errors(directory), try_lock(directory, flag="--output"):
        found = _find_held_out(held_out, settings)
        job = _plan(corpus, settings, directory, found)
        _clean_chunks(job, num_workers=num_workers)
        tally = add_up(filter(None, map(job.read_tally, range(job.num_chunks))))
        files = [job.file(chunk, ".npz") for chunk in range(job.num_chunks)]
        copies = find_copies(
            files,
            directory,
            near=settings.duplicates == "near",
            threshold=settings.similarity,
        )
        kept = _note_copies(job, copies, tally)
        num_bytes = _write(job, kept, output, kind)
    shutil.rmtree(directory, ignore_errors=True)
    return Cleaned(
        tally, int(kept.sum()), num_bytes, found, corpus.other_splits(), settings
    )


def _find_held_out(patterns: Sequence[str], settings: Settings) -> HeldOut | None:
    if not patterns:
        return None
    texts = (text for pattern in patterns for text in read_held_out(pattern))
    return collect_ngrams(texts, size=settings.ngram)


def _plan(
    corpus: Corpus, settings: Settings, directory: Path, held_out: HeldOut | None
) -> Job:
    """Plan the chunks; remove those of another corpus or of other settings."""
    if not len(corpus):
        raise UserError(f"--input={corpus.config.path}: has no document")
    hashes = np.zeros(0, np.uint64) if held_out is None else held_out.hashes
    made_from = hash_json(
        _VERSION,
        corpus.fingerprint(),
        dataclasses.asdict(settings),
        hashlib.sha256(hashes.tobytes()).hexdigest(),
    )
    note = directory / _NOTE
    if not note.exists() or note.read_text() != made_from:
        for file in directory.glob("[0-9]*"):
            file.unlink()
        with open_atomic(note) as out:
            out.write(made_from.encode())
    ngrams: Path | None = None
    if held_out is not None:
        ngrams = directory / "held_out.npy"
        with open_atomic(ngrams) as out:
            np.save(out, hashes)
    wanted = -(-estimate_bytes(cast(Documents, corpus)) // _CHUNK_BYTES)
    return Job(
        directory=directory,
        corpus=corpus,
        settings=settings,
        held_out=ngrams,
        num_chunks=min(max(1, wanted), _MAX_CHUNKS, len(corpus)),
        fingerprint=made_from,
    )


def _clean_chunks(job: Job, *, num_workers: int) -> None:
    from lmjax.progress import ProgressBar

    chunks = range(job.num_chunks)
    todo = [chunk for chunk in chunks if job.read_tally(chunk) is None]
    total = len(job.corpus)
    done = total - sum(len(job.indices(chunk)) for chunk in todo)
    counts = map_in_processes(
        clean_chunk,
        todo,
        shared=job,
        num_workers=num_workers,
        killed=lambda count: (
            f"{job.directory}: a process was killed, probably because memory ran out; "
            f"run again to resume, with fewer --num_workers (now {count})"
        ),
    )
    with ProgressBar("cleaning", total=total, done=done, delay=_PROGRESS_DELAY) as bar:
        for count in counts:
            bar.advance(count)


def _note_copies(job: Job, copies: Copies, tally: Tally) -> np.ndarray:
    """Return which documents of the chunks stay; count the others."""
    numbers = np.arange(len(copies.exact))
    is_exact = copies.exact != numbers
    is_near = copies.near != numbers
    if job.settings.duplicates == "keep":
        is_exact[:] = False
    for rule, taken, leaders in (
        ("exact_duplicate", is_exact, copies.exact),
        ("near_duplicate", is_near, copies.near),
    ):
        rows = _Rows(job)
        for number in np.flatnonzero(taken).tolist():
            rows.note(rule, number, int(leaders[number]), copies, tally)
    return ~(is_exact | is_near)


class _Rows:
    """The documents of the chunks by their numbers."""

    def __init__(self, job: Job) -> None:
        self.job = job
        files = [job.file(chunk, ".npz") for chunk in range(job.num_chunks)]
        self.indices = np.concatenate([load_array(f, "indices") for f in files])
        self.sizes = np.concatenate([load_array(f, "sizes") for f in files])

    def note(
        self, rule: str, number: int, leader: int, copies: Copies, tally: Tally
    ) -> None:
        """Count a copy of a leader."""
        index, first = int(self.indices[number]), int(self.indices[leader])
        corpus, examples = self.job.corpus, tally.taken.get(rule, {})
        more: dict[str, Any] = {}
        text, value = "", 1.0
        if len(examples.get("examples", [])) < 3:
            text, value = corpus.read(index)[0], 1.0
            more = {"copy_of": corpus.where(first)}
            if rule == "near_duplicate":
                value = copies.similarity(number)
        tally.take(
            rule,
            int(self.sizes[number]),
            where=lambda: corpus.where(index),
            value=value,
            text=text,
            **more,
        )


def _write(job: Job, kept: np.ndarray, output: Path, kind: Output) -> int:
    """Write the documents that stay, and return the bytes of their text."""
    from lmjax.progress import ProgressBar

    num_bytes, start = 0, 0
    title = f"writing {output.name}"
    with (
        ProgressBar(title, total=len(kept), delay=_PROGRESS_DELAY) as bar,
        open_output(job.directory / output.name, kind) as out,
    ):
        for chunk in range(job.num_chunks):
            sizes = load_array(job.file(chunk, ".npz"), "sizes")
            stay = kept[start : start + len(sizes)]
            num_bytes += int(sizes[stay].sum())
            start += len(sizes)
            for line in _kept_lines(job, chunk, stay):
                out.write(kind.convert(line, field=job.corpus.config.field))
            bar.advance(len(sizes))
    (job.directory / output.name).replace(output)
    return num_bytes


def _kept_lines(job: Job, chunk: int, stay: np.ndarray) -> Iterator[bytes]:
    with contextlib.closing(job.file(chunk, ".jsonl").open("rb")) as lines:
        for line, stays in zip(lines, stay.tolist(), strict=True):
            if stays:
                yield line


def check_report(path: Path) -> None:
    """Raise a `UserError` if a report cannot be written to a path."""
    if not path.parent.is_dir() or path.is_dir():
        raise UserError(f"--report={path}: must be a file in a directory that exists")


def write_report(path: Path, cleaned: Cleaned) -> None:
    """Write the report as JSON.

    Raises:
      UserError: it cannot be written.
    """
    text = json.dumps(cleaned.to_json(), indent=2, ensure_ascii=False) + "\n"
    with write_errors(path), open_atomic(path) as out:
        out.write(text.encode())
