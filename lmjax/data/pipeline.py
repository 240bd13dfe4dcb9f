"""From a config to batches: sources, tokenizer, stores, windows, in this order.

Shapes: B rows of a batch, or this host's share of them; T tokens in a window.
"""

import atexit
import dataclasses
import logging
import lzma
import weakref
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmjax.config import Config, ConfigError, SourceConfig
from lmjax.data import order, packing, store_builder, tokenizer
from lmjax.data.directory import locked, one_line_errors
from lmjax.data.documents import Documents
from lmjax.data.sources import Split, open_source
from lmjax.data.token_store import TokenStore
from lmjax.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lmjax.types import HostBatch

_log = logging.getLogger(__name__)

SPLITS: tuple[Split, ...] = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run reads: a tokenizer, and for each split a store of each part."""

    tokenizer: Tokenizer
    stores: Mapping[str, Sequence[TokenStore]]


def prepare(
    config: Config, *, workdir: str | Path, keep_tokenizer: bool = False
) -> Prepared:
    """Make or reuse the tokenizer and the token stores of an experiment.

    Several processes may call this at once on one workdir: the first does the work.

    Args:
      config: the experiment.
      workdir: where tokenizer and stores are kept.
      keep_tokenizer: refuse to make the tokenizer anew over one that differs.

    Raises:
      ConfigError: the text, the tokenizer or the disk cannot be used.
    """
    documents = open_documents(config)
    made = prepare_tokenizer(
        config, workdir=workdir, documents=documents["train"], keep=keep_tokenizer
    )
    return _with_stores(config, workdir, documents, made)


def prepare_held_out(
    config: Config, made: Tokenizer, *, workdir: str | Path
) -> Prepared:
    """Make or reuse the stores of the held-out splits alone, for a given tokenizer.

    Raises:
      ConfigError: there is no held-out split, or its text cannot be used.
    """
    documents = open_documents(config, splits=("valid", "test"))
    if not documents:
        raise ConfigError("config.data: has neither a valid nor a test split")
    return _with_stores(config, workdir, documents, made)


def prepare_job(
    config: Config, *, workdir: str | Path, job: int, num_jobs: int
) -> Prepared | None:
    """Do one of several jobs' share of `prepare`; None while others are to finish.

    The jobs may run at once or one after another, on one file system; the tokenizer
    is made by the first of them.
    """
    documents = open_documents(config)
    made = prepare_tokenizer(config, workdir=workdir, documents=documents["train"])
    plans = []
    for name, directory, part in _places(config, workdir, documents, made):
        plan = store_builder.plan_store(directory, documents=part, tokenizer=made)
        share = range(plan.num_shards)[job::num_jobs]
        workers = config.data.num_store_workers
        store_builder.build_shards(plan, share, num_workers=workers, label=name)
        plans.append(plan)
    if not all(plan.complete for plan in plans):
        return None
    return _with_stores(config, workdir, documents, made)


def open_documents(
    config: Config, *, splits: Sequence[Split] = SPLITS
) -> dict[str, list[Documents]]:
    """Open the documents of each split there is: one item for each part.

    Raises:
      ConfigError: a part cannot be read, or has no train split.
    """
    opened: dict[str, list[Documents]] = {}
    for split in splits:
        for path, part in _parts(config).items():
            documents = open_source(part, split=split, path=path)
            if documents is not None:
                opened.setdefault(split, []).append(documents)
            elif split == "train":
                raise ConfigError(f"{path}.train_split = '': there must be one")
    return opened


def prepare_tokenizer(
    config: Config,
    *,
    workdir: str | Path,
    documents: Sequence[Documents],
    keep: bool = False,
) -> Tokenizer:
    """Return the tokenizer kept in WORKDIR/tokenizer, made anew if it is another's.

    Raises:
      ConfigError: it would have to be made anew, and `keep` forbids that.
    """
    directory = Path(workdir) / "tokenizer"
    trained = config.tokenizer.kind == "sentencepiece" and not config.tokenizer.path
    with one_line_errors(directory), locked(directory):
        if trained and (kept := tokenizer.read_manifest(directory)):
            recipe = tokenizer.recipe_fingerprint(
                config.tokenizer, documents=documents, seed=config.seed
            )
            if kept.get("made_from") == recipe:
                return tokenizer.load_tokenizer(directory)
            if keep:
                raise ConfigError(
                    f"{directory}: was trained on other text than config.data is now"
                )
            _log.warning("%s: made for other text or settings; made again", directory)
        made = tokenizer.make_tokenizer(
            config.tokenizer, documents=documents, seed=config.seed
        )
        made.save(directory)
    return made


def _with_stores(
    config: Config,
    workdir: str | Path,
    documents: Mapping[str, Sequence[Documents]],
    made: Tokenizer,
) -> Prepared:
    built = {
        name: store_builder.build_store(
            directory,
            documents=part,
            tokenizer=made,
            num_workers=config.data.num_store_workers,
            label=name,
        )
        for name, directory, part in _places(config, workdir, documents, made)
    }
    stores = {
        split: [built[name] for name, _ in _named(split, parts)]
        for split, parts in documents.items()
    }
    return Prepared(tokenizer=made, stores=stores)


def _places(
    config: Config,
    workdir: str | Path,
    documents: Mapping[str, Sequence[Documents]],
    made: Tokenizer,
) -> Iterator[tuple[str, Path, Documents]]:
    """Yield the name, directory and documents of each store."""
    for split, parts in documents.items():
        for name, part in _named(split, parts):
            place = _store_directory(config, workdir, name, part=part, tokenizer=made)
            yield name, place, part


def identity(prepared: Prepared) -> dict[str, str]:
    """Return hashes of what a run learns from, by the config's sections."""
    train = " ".join(store.made_from for store in prepared.stores["train"])
    return {
        "config.data": train,
        "config.tokenizer": prepared.tokenizer.fingerprint(),
    }


def train_batches(
    prepared: Prepared,
    config: Config,
    *,
    start_step: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator["HostBatch", None, None]:
    """Return this host's rows of the batches from `start_step` to the last step.

    Batches are cut ahead of time in a thread, or in `config.data.num_workers`
    processes; `close` stops them, and so does the end of the program.

    Raises:
      ConfigError: the batch does not divide among the hosts.
    """
    import grain  # brings jax along: not for those who only build stores

    source = TrainBatches(
        stores=tuple(prepared.stores["train"]),
        config=config,
        bos_id=prepared.tokenizer.bos_id,
        eos_id=prepared.tokenizer.eos_id,
        start_step=start_step,
        rows=_host_rows(
            config.batch_size, process_index, process_count, path="config.batch_size"
        ),
    )
    num_workers, ahead = config.data.num_workers, config.data.prefetch_batches
    batches = grain.MapDataset.source(source).to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
    )
    if num_workers:
        _let_grain_read_its_flags()
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=num_workers, per_worker_buffer_size=-(-ahead // num_workers)
            )
        )
    return _closed_at_exit(_copied(iter(batches)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainBatches:
    """A host's rows of the batch of each step from `start_step` on, to read at random.

    It pickles small: a process that receives it opens the stores itself.
    """

    stores: tuple[TokenStore, ...]
    config: Config
    bos_id: int | None
    eos_id: int
    start_step: int
    rows: slice

    def __len__(self) -> int:
        return max(0, self.config.num_steps - self.start_step)

    def __getitem__(self, index: int) -> "HostBatch":
        samples = sample_indices(self.config, step=self.start_step + int(index))
        part_B, start_B = locate(self.stores, self.config, samples=samples[self.rows])
        return _cut(
            self.stores,
            part_B,
            start_B,
            config=self.config,
            ids=(self.bos_id, self.eos_id),
            circular=True,
        )


def sample_indices(config: Config, *, step: int) -> np.ndarray:
    """Return the numbers of the samples in the global batch of a step, int64 (B,)."""
    return np.arange(config.batch_size, dtype=np.int64) + step * config.batch_size


def locate(
    stores: Sequence[TokenStore], config: Config, *, samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find training samples: each one's store, and where its window begins there.

    With `sample_indices` this tells what a step has seen.
    """
    weights = tuple(part.weight for part in _parts(config).values())
    part_B, index_B = order.deal(samples, weights=weights, seed=config.seed)
    start_B = np.zeros(len(samples), np.int64)
    for part in np.unique(part_B):
        here = part_B == part
        start_B[here] = packing.train_starts(
            index_B[here],
            num_tokens=stores[part].num_tokens,
            length=config.data.length,
            seed=order.part_seed(config.seed, int(part)),
        )
    return part_B, start_B


def eval_batches(
    stores: Sequence[TokenStore],
    config: Config,
    *,
    tokenizer: Tokenizer,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator["HostBatch"]:
    """Yield this host's rows of batches that hold each token of the stores once.

    The last batch is filled up with rows of padding, so all have one shape, and each
    host has as many. `config.eval.num_batches` stops early.
    """
    rows = _host_rows(
        config.eval.batch_size,
        process_index,
        process_count,
        path="config.eval.batch_size",
    )
    part_N, start_N = _eval_windows(stores, config)
    for batch in range(num_eval_batches(stores, config)):
        first = batch * config.eval.batch_size
        here = slice(first + rows.start, first + rows.stop)
        yield _cut(
            stores,
            part_N[here],
            start_N[here],
            config=config,
            ids=(tokenizer.bos_id, tokenizer.eos_id),
            circular=False,
        )


def num_eval_batches(stores: Sequence[TokenStore], config: Config) -> int:
    """Count the batches of `eval_batches`."""
    windows = sum(
        packing.num_windows(store.num_tokens, length=config.data.length)
        for store in stores
    )
    return min(
        -(-windows // config.eval.batch_size), config.eval.num_batches or windows
    )


def held_out_bytes(stores: Sequence[TokenStore]) -> int:
    """Count the bytes of the text in UTF-8: what bits per byte divides by."""
    return sum(store.num_bytes for store in stores)


def held_out_words(stores: Sequence[TokenStore]) -> int:
    """Count words, and the end of each document as one: for perplexity per word."""
    return sum(store.num_words + store.num_documents for store in stores)


def compressors(documents: Sequence[Documents]) -> dict[str, float]:
    """Return the bits per byte that `gzip -9` and `xz -9` need for all the text."""
    text = "".join(part[i] for part in documents for i in range(len(part))).encode()
    gzip = zlib.compress(text, 9, wbits=16 + zlib.MAX_WBITS)
    return {
        "gzip": 8 * len(gzip) / len(text),
        "xz": 8 * len(lzma.compress(text, preset=9)) / len(text),
    }


def _parts(config: Config) -> dict[str, SourceConfig]:
    """Return the sources by their paths in the config."""
    if config.data.source != "mixture":
        return {"config.data": config.data}
    return {f"config.data.mixture[{i}]": p for i, p in enumerate(config.data.mixture)}


def _named(split: str, parts: Sequence[Documents]) -> Iterator[tuple[str, Documents]]:
    for i, part in enumerate(parts):
        yield (split if len(parts) == 1 else f"{split}-{i}"), part


def _store_directory(
    config: Config,
    workdir: str | Path,
    name: str,
    *,
    part: Documents,
    tokenizer: Tokenizer,
) -> Path:
    """Return where a store is kept; experiments that share a place do not collide."""
    if not config.data.store:
        return Path(workdir) / "store" / name
    identity = store_builder.identity(part, tokenizer)[:12]
    return Path(config.data.store).expanduser() / f"{name}-{identity}"


def _host_rows(
    batch_size: int, process_index: int, process_count: int, *, path: str
) -> slice:
    if batch_size % process_count:
        raise ConfigError(
            f"{path} = {batch_size}: must be a multiple of {process_count} processes"
        )
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def _eval_windows(
    stores: Sequence[TokenStore], config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """Return the store and the start of each window; padding starts past the end."""
    length, batch_size = config.data.length, config.eval.batch_size
    starts = [np.arange(0, store.num_tokens, length) for store in stores]
    part_N = np.repeat(np.arange(len(stores)), [len(start) for start in starts])
    padding = -len(part_N) % batch_size
    past_end = np.full(padding, stores[0].num_tokens)
    return np.pad(part_N, (0, padding)), np.concatenate([*starts, past_end])


def _cut(
    stores: Sequence[TokenStore],
    part_B: np.ndarray,
    start_B: np.ndarray,
    *,
    config: Config,
    ids: tuple[int | None, int],
    circular: bool,
) -> "HostBatch":
    """Cut rows out of several stores, in the order of the rows."""
    rows = np.arange(len(part_B))
    cut = {
        int(part): packing.cut_windows(
            stores[part],
            start_B[part_B == part],
            length=config.data.length,
            bos_id=ids[0],
            eos_id=ids[1],
            isolate=config.data.isolate_documents,
            circular=circular,
        )
        for part in np.unique(part_B)
    }
    if len(cut) == 1:
        return next(iter(cut.values()))
    back = np.argsort(np.concatenate([rows[part_B == part] for part in cut]))
    names = next(iter(cut.values()))
    return {
        name: np.concatenate([batch[name] for batch in cut.values()])[back]
        for name in names
    }


def _copied(batches: Any) -> Generator["HostBatch", None, None]:
    """Copy batches out of the memory that loader processes share; stop them after."""

    def copy(batch: "HostBatch") -> "HostBatch":
        return {name: np.array(value) for name, value in batch.items()}

    try:
        yield from map(copy, batches)
    finally:
        batches.close()


def _closed_at_exit(
    batches: Generator["HostBatch", None, None],
) -> Generator["HostBatch", None, None]:
    """Have loader processes end before the interpreter does, if nobody ended them."""
    reference = weakref.ref(batches)

    def close() -> None:
        if (alive := reference()) is not None:
            alive.close()

    atexit.register(close)
    return batches


def _let_grain_read_its_flags() -> None:
    """Let grain's workers start where nobody parsed absl's flags, as in a notebook."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
