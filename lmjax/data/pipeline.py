"""From a config to datasets: open the sources, then the tokenizer, then the stores.

`prepare` is the whole story; the other public functions are for evaluation, for jobs
that share the work, and for questions about a config.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lmjax.config.data import SourceConfig
from lmjax.config.experiment import Config
from lmjax.data import example_datasets
from lmjax.data.datasets import Datasets, Store, source_configs
from lmjax.data.features.dataset import ExamplePart
from lmjax.data.features.registry import make_features
from lmjax.data.lm import objectives
from lmjax.data.sources.documents import Documents, expand_path
from lmjax.data.sources.find import Split
from lmjax.data.sources.registry import open_splits
from lmjax.data.stores.example_store import build_example_store
from lmjax.data.stores.run_stores import write_run_stores
from lmjax.data.stores.store_manifest import read_fingerprint
from lmjax.data.stores.token_store import TokenStore
from lmjax.data.stores.token_store_builder import (
    build_shards,
    build_token_store,
    plan_store,
    store_fingerprint,
)
from lmjax.data.tokenizers import files
from lmjax.data.tokenizers import tokenizer as tokenizers
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError, UserError
from lmjax.fileio import lock, write_errors
from lmjax.storage.paths import open_path

_log = logging.getLogger(__name__)

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
# For each split the documents, or examples, of each source.
Sources = Mapping[str, Sequence[Documents]]


def prepare(config: Config, *, workdir: str | Path, resume: bool = False) -> Datasets:
    """Build the tokenizer and the stores of an experiment, or reuse them.

    Several processes may call this at once on one workdir: the first does the work.

    Args:
      config: the experiment.
      workdir: holds the tokenizer and, unless `config.data.store` is set, the stores.
      resume: the workdir has a trained run: raise unless tokenizer and text are those
        that it was trained on, before anything is written.

    Raises:
      ConfigError: the config does not fit the text or the tokenizer.
      UserError: a file cannot be read or written, or resuming is not possible.
    """
    sources = open_sources(config)
    if resume:
        tokenizer = _resume_tokenizer(config, workdir, sources)
    else:
        tokenizer = _prepare_tokenizer(config, workdir, sources["train"])
    if not example_datasets.reads_examples(config):
        objectives.build(config, tokenizer)  # raises before the work begins
    datasets = _build_stores(config, workdir, sources, tokenizer)
    write_run_stores(workdir, datasets.stores)
    return datasets


def prepare_held_out(
    config: Config, tokenizer: Tokenizer, *, workdir: str | Path
) -> Datasets:
    """Build the stores of the held-out splits alone, for a given tokenizer.

    Raises:
      ConfigError: there is no held-out split, or its text cannot be used.
    """
    sources = open_sources(config, splits=("valid", "test"))
    if not sources:
        raise ConfigError("config.data: has neither a valid nor a test split")
    return _build_stores(config, workdir, sources, tokenizer)


def prepare_job(
    config: Config, *, workdir: str | Path, job: int, num_jobs: int
) -> Datasets | None:
    """Do one job's share of `prepare`; None while shares of other jobs are missing.

    The jobs may run at once or one after another, on one file system. The first one
    builds the tokenizer.
    """
    if example_datasets.reads_examples(config):  # too few to be divided
        return prepare(config, workdir=workdir) if job == 0 else None
    sources = open_sources(config)
    tokenizer = _prepare_tokenizer(config, workdir, sources["train"])
    plans = []
    for store in _locate_stores(config, workdir, sources, tokenizer):
        plan = plan_store(
            store.directory, documents=store.documents, tokenizer=tokenizer
        )
        share = range(plan.num_shards)[job::num_jobs]
        workers = config.data.num_store_workers
        build_shards(plan, share, num_workers=workers, label=store.name)
        plans.append(plan)
    if not all(plan.is_complete for plan in plans):
        return None
    datasets = _build_stores(config, workdir, sources, tokenizer)
    write_run_stores(workdir, datasets.stores)
    return datasets


def open_sources(
    config: Config, *, splits: Sequence[Split] = SPLITS
) -> dict[str, list[Documents]]:
    """Open the documents, or examples, of those splits that the sources have.

    Returns:
      For each split a list with the documents of each source of a mixture, or one.

    Raises:
      ConfigError: a source cannot be opened, or has no train split.
    """
    if config.data.source == "none":
        raise ConfigError(
            "config.data.source = 'none': an imported model has no text; give "
            "--config.data.source, and its path"
        )
    if example_datasets.reads_examples(config):
        parts = example_datasets.open_splits(config, splits=splits)
        return {split: [part] for split, part in parts.items()}
    sources: dict[str, list[Documents]] = {}
    for path, source in source_configs(config).items():
        opened = open_splits(source, splits=splits, path=path)
        if "train" in splits and "train" not in opened:
            raise ConfigError(f"{path}.train_split = '': needs a value")
        for split, documents in opened.items():
            sources.setdefault(split, []).append(documents)
    return sources


def _prepare_tokenizer(
    config: Config, workdir: str | Path, documents: Sequence[Documents]
) -> Tokenizer:
    """Load the tokenizer of a workdir; build it if it is missing or another one."""
    directory = open_path(workdir) / "tokenizer"
    with write_errors(directory), lock(directory):
        if tokenizers.is_trained(config.tokenizer):
            saved = _load_saved_tokenizer(directory)
            if saved is not None and _is_made_from(config, documents, directory):
                return saved
            if saved is not None:
                _log.warning(
                    "%s: trained on other text or with other settings; built again",
                    directory,
                )
        tokenizer = tokenizers.make_tokenizer(
            config.tokenizer, documents=documents, seed=config.seed
        )
        tokenizer.save(directory)
    return tokenizer


def _resume_tokenizer(
    config: Config, workdir: str | Path, sources: Sources
) -> Tokenizer:
    """Load the tokenizer of a trained run; build it again if lost or damaged.

    Raises:
      UserError: the tokenizer, or the text of a store, is not that of the run.
    """
    directory = open_path(workdir) / "tokenizer"
    tokenizer = _load_saved_tokenizer(directory)
    exists = tokenizer is not None
    if tokenizer is not None:
        _check_same_tokenizer(config, directory, sources["train"], tokenizer)
    else:
        tokenizer = tokenizers.make_tokenizer(
            config.tokenizer, documents=sources["train"], seed=config.seed
        )
    for store in _locate_stores(config, workdir, sources, tokenizer):
        existing = read_fingerprint(store.directory)
        if existing and existing != _fingerprint(store.documents, tokenizer):
            raise UserError(f"{store.directory}: the text of config.data {_CHANGED}")
    if not exists:
        with write_errors(directory), lock(directory):
            tokenizer.save(directory)
    return tokenizer


def _load_saved_tokenizer(directory: Path) -> Tokenizer | None:
    """Load the tokenizer of a workdir; None if it was lost, or is damaged."""
    try:
        if files.read_manifest(directory) is None:
            return None
        return tokenizers.load_tokenizer(directory)
    except UserError as error:
        _log.warning("%s: damaged, will be built again: %s", directory, error)
        return None


def _check_same_tokenizer(
    config: Config,
    directory: Path,
    documents: Sequence[Documents],
    tokenizer: Tokenizer,
) -> None:
    """Raise unless the config describes the tokenizer that `directory` holds."""
    if tokenizers.is_trained(config.tokenizer):
        same = _is_made_from(config, documents, directory)
        subject = "the text or the settings of config.tokenizer"
    else:
        given = tokenizers.make_tokenizer(config.tokenizer, documents=None, seed=0)
        same = given.fingerprint() == tokenizer.fingerprint()
        subject = f"config.tokenizer.path = {config.tokenizer.path!r}"
    if not same:
        raise UserError(f"{directory}: {subject} {_CHANGED}")


_CHANGED = "is not what this run was trained on; restore it, or use another --workdir"


def _is_made_from(
    config: Config, documents: Sequence[Documents], directory: Path
) -> bool:
    """Return whether a saved tokenizer was trained on this text in this way."""
    recipe = tokenizers.recipe_fingerprint(
        config.tokenizer, documents=documents, seed=config.seed
    )
    return (files.read_manifest(directory) or {}).get("made_from") == recipe


@dataclasses.dataclass(frozen=True)
class _StoreLocation:
    """A store that exists, or is to be built."""

    split: str
    name: str
    directory: Path
    documents: Documents


def _locate_stores(
    config: Config, workdir: str | Path, sources: Sources, tokenizer: Tokenizer
) -> Iterator[_StoreLocation]:
    """Yield the stores of a run: one for each split and source."""
    for split, opened in sources.items():
        for i, documents in enumerate(opened):
            name = split if len(opened) == 1 else f"{split}-{i}"
            directory = open_path(workdir) / "store" / name
            if config.data.store:  # experiments that share it must not collide
                root = expand_path(config.data.store, leaf="config.data.store")
                fingerprint = _fingerprint(documents, tokenizer)
                directory = root / f"{name}-{fingerprint[:12]}"
            yield _StoreLocation(split, name, directory, documents)


def _build_stores(
    config: Config, workdir: str | Path, sources: Sources, tokenizer: Tokenizer
) -> Datasets:
    stores: dict[str, list[Store]] = {split: [] for split in sources}
    for store in _locate_stores(config, workdir, sources, tokenizer):
        if isinstance(store.documents, ExamplePart):
            built: Store = build_example_store(
                store.directory,
                part=store.documents,
                tokenizer=tokenizer,
                label=store.name,
            )
        else:
            built = build_token_store(
                store.directory,
                documents=store.documents,
                tokenizer=tokenizer,
                num_workers=config.data.num_store_workers,
                label=store.name,
            )
        stores[store.split].append(built)
    return Datasets(tokenizer=tokenizer, stores=stores)


def _fingerprint(documents: Documents, tokenizer: Tokenizer) -> str:
    """Hash everything that decides the content of a store."""
    if isinstance(documents, ExamplePart):
        return documents.identity(tokenizer)
    return store_fingerprint(documents, tokenizer)


def fingerprints(datasets: Datasets) -> dict[str, str]:
    """Return the fingerprints of the training data, by the sections of the config."""
    train = " ".join(store.fingerprint for store in datasets.stores["train"])
    return {
        "config.data": train,
        "config.tokenizer": datasets.tokenizer.fingerprint(),
    }


def resolve_vocabulary(config: Config) -> Config:
    """Return the config with the vocabulary size, and the labels, that it leaves open.

    The size is the tokenizer's, the labels are those of the training data.

    Raises:
      ConfigError: the vocabulary of the model is too small for the tokenizer or for
        the first tokens of its decoder, or there are no labels.
    """
    config = example_datasets.resolve_labels(config)
    own, size = config.model.vocab_size, tokenizers.vocab_size(config.tokenizer)
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


def has_valid_split(config: Config) -> bool:
    """Return whether a run has a valid split: only TFDS sources may have none."""
    sources = source_configs(config).values()
    return any(source.source != "tfds" or source.valid_split for source in sources)


def reads_same_text(a: Config, b: Config) -> bool:
    """Return whether two configs read the same documents, or encode the same examples.

    Windows of text may be cut differently; examples are stored as they are cut.
    """
    names = [field.name for field in dataclasses.fields(SourceConfig)] + ["mixture"]
    if any(getattr(a.data, name) != getattr(b.data, name) for name in names):
        return False
    if not example_datasets.reads_examples(b):
        return True
    return make_features(a).identity() == make_features(b).identity()


def count_bytes(stores: Sequence[TokenStore]) -> int:
    """Count the bytes of the text in UTF-8, the unit of bits per byte."""
    return sum(store.num_bytes for store in stores)


def count_words(stores: Sequence[TokenStore]) -> int:
    """Count words, and the end of each document as one: for perplexity per word."""
    return sum(store.num_words + store.num_documents for store in stores)
