"""From a config to token stores: sources, tokenizer, stores, in this order."""

import dataclasses
import logging
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lmjax.config.data import SourceConfig
from lmjax.config.experiment import Config
from lmjax.data import example_datasets
from lmjax.data.datasets import Datasets, Store, source_parts
from lmjax.data.features.dataset import ExamplePart
from lmjax.data.features.registry import make_features
from lmjax.data.lm import objectives
from lmjax.data.sources.documents import Documents, expanded
from lmjax.data.sources.registry import Split, open_splits
from lmjax.data.stores import example_store, manifest
from lmjax.data.stores.token_store import TokenStore
from lmjax.data.stores.token_store_builder import (
    build_shards,
    build_token_store,
    kept_identity,
    plan_store,
    store_identity,
)
from lmjax.data.tokenizers import files, tokenizer
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError
from lmjax.fileio import locked, one_line_errors

_log = logging.getLogger(__name__)

SPLITS: tuple[Split, ...] = ("train", "valid", "test")


def with_vocabulary(config: Config) -> Config:
    """Return the config with the tokenizer's vocabulary where the model names none.

    And with the labels of the training data, where the task has some and names none.

    Raises:
      ConfigError: the model's own is too small for the tokenizer, or for what its
        decoder begins with, or there are no labels.
    """
    config = example_datasets.resolve_labels(config)
    own, size = config.model.vocab_size, tokenizer.vocab_size(config.tokenizer)
    if own and own < size:
        raise ConfigError(
            f"config.model.vocab_size = {own}: must be at least the tokenizer's {size}"
        )
    model = dataclasses.replace(config.model, vocab_size=own or size)
    if (last := max(model.decoder_prefix_ids, default=0)) >= model.vocab_size:
        leaf = "start_id" if last == model.decoder_prefix_ids[0] else "opening"
        raise ConfigError(
            f"config.model.{leaf}: {last} must be below config.model.vocab_size = "
            f"{model.vocab_size}"
        )
    return dataclasses.replace(config, model=model)


def prepare(
    config: Config, *, workdir: str | Path, keep_tokenizer: bool = False
) -> Datasets:
    """Make or reuse the tokenizer and the token stores of an experiment.

    Several processes may call this at once on one workdir: the first does the work.

    Args:
      config: the experiment.
      workdir: where tokenizer and stores are kept.
      keep_tokenizer: a run goes on: load the tokenizer that is kept, and refuse to
        replace a store. Nothing is written before it is known that all is the same.

    Raises:
      ConfigError: the text, the tokenizer or the disk cannot be used, or the tokenizer
        lacks an id that the objective needs.
    """
    documents = open_documents(config)
    if keep_tokenizer:
        made = _kept_tokenizer(config, workdir, documents)
    else:
        made = prepare_tokenizer(config, workdir=workdir, documents=documents["train"])
    if not example_datasets.reads_examples(config):
        objectives.build(config, made)  # has the ids it needs, before the work begins
    datasets = _with_stores(config, workdir, documents, made)
    manifest.note(workdir, datasets.stores)
    return datasets


def prepare_held_out(
    config: Config, made: Tokenizer, *, workdir: str | Path
) -> Datasets:
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
) -> Datasets | None:
    """Do one of several jobs' share of `prepare`; None while others are to finish.

    The jobs may run at once or one after another, on one file system; the tokenizer
    is made by the first of them.
    """
    if example_datasets.reads_examples(config):  # too few to be shared out
        return prepare(config, workdir=workdir) if job == 0 else None
    documents = open_documents(config)
    made = prepare_tokenizer(config, workdir=workdir, documents=documents["train"])
    plans = []
    for name, directory, part in _places(config, workdir, documents, made):
        plan = plan_store(directory, documents=part, tokenizer=made)
        share = range(plan.num_shards)[job::num_jobs]
        workers = config.data.num_store_workers
        build_shards(plan, share, num_workers=workers, label=name)
        plans.append(plan)
    if not all(plan.complete for plan in plans):
        return None
    datasets = _with_stores(config, workdir, documents, made)
    manifest.note(workdir, datasets.stores)
    return datasets


def open_documents(
    config: Config, *, splits: Sequence[Split] = SPLITS
) -> dict[str, list[Documents]]:
    """Open the documents, or examples, of each split there is: an item for each part.

    Raises:
      ConfigError: a part cannot be read, or has no train split.
    """
    if config.data.source == "none":
        raise ConfigError(
            "config.data.source = 'none': an imported model has no text; give "
            "--config.data.source, and what it needs"
        )
    opened: dict[str, list[Documents]] = {}
    if example_datasets.reads_examples(config):
        opened |= {
            split: [part]
            for split, part in example_datasets.open_splits(
                config, splits=splits
            ).items()
        }
        return opened
    for path, part in source_parts(config).items():
        found = open_splits(part, splits=splits, path=path)
        if "train" in splits and "train" not in found:
            raise ConfigError(f"{path}.train_split = '': there must be one")
        for split, documents in found.items():
            opened.setdefault(split, []).append(documents)
    return opened


def prepare_tokenizer(
    config: Config,
    *,
    workdir: str | Path,
    documents: Sequence[Documents],
) -> Tokenizer:
    """Return the tokenizer kept in WORKDIR/tokenizer, made anew if it is another's."""
    directory = Path(workdir) / "tokenizer"
    with one_line_errors(directory), locked(directory):
        trained = tokenizer.is_trained(config.tokenizer)
        if trained and (kept := files.read_manifest(directory)):
            recipe = tokenizer.recipe_fingerprint(
                config.tokenizer, documents=documents, seed=config.seed
            )
            if kept.get("made_from") == recipe:
                return tokenizer.load_tokenizer(directory)
            _log.warning("%s: made for other text or settings; made again", directory)
        made = tokenizer.make_tokenizer(
            config.tokenizer, documents=documents, seed=config.seed
        )
        made.save(directory)
    return made


def _kept_tokenizer(
    config: Config, workdir: str | Path, documents: Mapping[str, Sequence[Documents]]
) -> Tokenizer:
    """Return the tokenizer of a run that goes on; make it again only if it was lost.

    Raises:
      ConfigError: it, or the text of a store, is not what the config now has.
    """
    directory = Path(workdir) / "tokenizer"
    if files.read_manifest(directory) is not None:
        made = _same_tokenizer(config, directory, documents["train"])
        _refuse_other_stores(config, workdir, documents, made)
        return made
    made = tokenizer.make_tokenizer(
        config.tokenizer, documents=documents["train"], seed=config.seed
    )
    _refuse_other_stores(config, workdir, documents, made)
    with one_line_errors(directory), locked(directory):
        made.save(directory)
    return made


def _same_tokenizer(
    config: Config, directory: Path, documents: Sequence[Documents]
) -> Tokenizer:
    """Load the tokenizer that is kept, and compare it with the config's."""
    kept = tokenizer.load_tokenizer(directory)
    if tokenizer.is_trained(config.tokenizer):
        noted = (files.read_manifest(directory) or {}).get("made_from")
        same = noted == tokenizer.recipe_fingerprint(
            config.tokenizer, documents=documents, seed=config.seed
        )
        behind = "the text behind config.tokenizer"
    else:
        given = tokenizer.make_tokenizer(config.tokenizer, documents=None, seed=0)
        same = given.fingerprint() == kept.fingerprint()
        behind = f"config.tokenizer.path = {config.tokenizer.path!r}"
    if not same:
        raise ConfigError(f"{directory}: {behind} {_NOT_THE_SAME}")
    return kept


def _refuse_other_stores(
    config: Config,
    workdir: str | Path,
    documents: Mapping[str, Sequence[Documents]],
    made: Tokenizer,
) -> None:
    """Raise if the store of a run that goes on holds other text than there is now."""
    for _, directory, part in _places(config, workdir, documents, made):
        kept = kept_identity(directory)
        if kept and kept != _identity(part, made):
            raise ConfigError(
                f"{directory}: the text behind config.data {_NOT_THE_SAME}"
            )


_NOT_THE_SAME = (
    "is not what this run was trained on (take it back, or choose another --workdir)"
)


def _with_stores(
    config: Config,
    workdir: str | Path,
    documents: Mapping[str, Sequence[Documents]],
    made: Tokenizer,
) -> Datasets:
    built = {
        name: _build(config, directory, part, made, label=name)
        for name, directory, part in _places(config, workdir, documents, made)
    }
    stores = {
        split: [built[name] for name, _ in _named(split, parts)]
        for split, parts in documents.items()
    }
    return Datasets(tokenizer=made, stores=stores)


def _build(
    config: Config, directory: Path, part: Documents, made: Tokenizer, *, label: str
) -> Store:
    if isinstance(part, ExamplePart):
        return example_store.build_example_store(
            directory, part=part, tokenizer=made, label=label
        )
    return build_token_store(
        directory,
        documents=part,
        tokenizer=made,
        num_workers=config.data.num_store_workers,
        label=label,
    )


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


def identity(datasets: Datasets) -> dict[str, str]:
    """Return hashes of what a run learns from, by the config's sections."""
    train = " ".join(store.made_from for store in datasets.stores["train"])
    return {
        "config.data": train,
        "config.tokenizer": datasets.tokenizer.fingerprint(),
    }


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


def holds_out(config: Config) -> bool:
    """Return whether a run has a valid split: all have, but by choice those of TFDS."""
    parts = source_parts(config).values()
    return any(part.source != "tfds" or part.valid_split for part in parts)


def same_text(a: Config, b: Config) -> bool:
    """Return whether two configs read the same documents, however they cut them.

    Examples are kept as they were cut.
    """
    names = [field.name for field in dataclasses.fields(SourceConfig)] + ["mixture"]
    if any(getattr(a.data, name) != getattr(b.data, name) for name in names):
        return False
    if not example_datasets.reads_examples(b):
        return True
    return make_features(a).identity() == make_features(b).identity()


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
    name = f"{name}-{_identity(part, tokenizer)[:12]}"
    return expanded(config.data.store, leaf="config.data.store") / name


def _identity(part: Documents, tokenizer: Tokenizer) -> str:
    """Hash what decides what is in a store."""
    if isinstance(part, ExamplePart):
        return part.identity(tokenizer)
    return store_identity(part, tokenizer)
