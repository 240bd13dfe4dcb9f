"""Tokenizers: their protocol, and the tables of kinds to build and to load."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lmjax.config.tokenizer import TokenizerConfig
from lmjax.data.sources.documents import Documents, expand_path
from lmjax.data.tokenizers import sentencepiece, words
from lmjax.data.tokenizers.files import MANIFEST, read_manifest
from lmjax.data.tokenizers.hf import directory as hf_directory
from lmjax.data.tokenizers.hf import pieces, settings, tokenizer
from lmjax.data.tokenizers.offsets import Encoding
from lmjax.data.tokenizers.plain import Bytes, Ids
from lmjax.data.tokenizers.sentencepiece import (
    MODEL,
    SentencePiece,
    sample_training_text,
)
from lmjax.errors import ConfigError, UserError
from lmjax.storage.cache import local_directory
from lmjax.storage.paths import open_path

__all__ = [
    "MANIFEST",
    "MODEL",
    "Bytes",
    "Ids",
    "SentencePiece",
    "Tokenizer",
    "find_tokenizer",
    "is_trained",
    "load_tokenizer",
    "make_tokenizer",
    "read_manifest",
    "recipe_fingerprint",
    "sample_training_text",
    "vocab_size",
]


class Tokenizer(Protocol):
    """Text to token ids and back; `SpecialIds` documents the special ids."""

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    mask_id: int | None
    stop_ids: tuple[int, ...]
    sentinel_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    pair_ids: tuple[int, ...]

    @property
    def separates_words(self) -> bool:
        """Whether pieces are whole words, with white space between any two."""

    @property
    def cleans_up(self) -> bool:
        """Whether decoded texts lose the spaces before punctuation."""

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, int32, without special ids around it."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode several texts."""

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode several texts, with the characters that each token covers."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids; BOS and EOS are dropped."""

    def id_to_piece(self, index: int) -> str:
        """Return a readable form of one id."""

    def word_starts(self) -> np.ndarray:
        """Return whether each id begins a word, bool (vocab_size,); special ids do."""

    def save(self, directory: str | Path) -> None:
        """Write the files that `load_tokenizer` reads."""

    def fingerprint(self) -> str:
        """Return a hash that is equal only for tokenizers that encode alike."""


def _load_bytes(_: Path, manifest: Mapping[str, Any]) -> Tokenizer:
    names = ("bos", "mask", "num_sentinels")
    return Bytes(**{name: manifest[name] for name in names if name in manifest})


def _load_sentencepiece(directory: Path, manifest: Mapping[str, Any]) -> Tokenizer:
    file = directory / MODEL
    return sentencepiece.open_model(
        file,
        name=str(file),
        bos=manifest["bos"],
        lossless=manifest["lossless"],
        recipe=manifest["made_from"],
    )


# To load a saved tokenizer, by the kind in its manifest.
_LOADERS: dict[str, Callable[[Path, Mapping[str, Any]], Tokenizer]] = {
    "bytes": _load_bytes,
    "ids": lambda _, manifest: Ids(
        manifest["vocab_size"], **manifest.get("special", {})
    ),
    "sentencepiece": _load_sentencepiece,
    "tokenizers": tokenizer.load,
    "pieces": pieces.load,
}


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Load a saved tokenizer, such as that of a workdir in `tokenizer/`.

    Raises:
      UserError: there is none, or its files are damaged.
    """
    local = local_directory(open_path(directory))
    manifest = read_manifest(local)
    if manifest is None:
        raise UserError(f"{directory}: holds no tokenizer ({MANIFEST} is missing)")
    return _load(local, manifest)


def find_tokenizer(directory: str | Path) -> TokenizerConfig | None:
    """Return a config for the tokenizer in a directory; None if there is none.

    The directory is one of Hugging Face, or of a saved tokenizer.
    """
    path = open_path(directory).expanduser()
    if not (path / MANIFEST).exists() and hf_directory.find_format(path) is None:
        return None
    return TokenizerConfig(kind="tokenizers", path=str(directory))


def make_tokenizer(
    config: TokenizerConfig,
    *,
    documents: Sequence[Documents] | None,
    seed: int,
) -> Tokenizer:
    """Open or train the tokenizer that a config describes. Training is deterministic.

    Args:
      config: the kind, and its file or the settings of its training.
      documents: the train split of each source; needed only for training.
      seed: of the training.

    Raises:
      ConfigError: the file or the vocabulary size cannot be used, or there is too
        little text.
    """
    if not is_trained(config):
        return _open_given(config)
    assert documents is not None, "training needs documents"
    recipe = recipe_fingerprint(config, documents=documents, seed=seed)
    if config.kind == "words":
        return words.train(config, documents, recipe=recipe)
    model = sentencepiece.train(config, documents, seed=seed)
    return SentencePiece(model, bos=config.bos, lossless=config.lossless, recipe=recipe)


def vocab_size(config: TokenizerConfig) -> int:
    """Return the number of ids, before any training; for words the maximum.

    Raises:
      ConfigError: `config.vocab_size` is not that of the given tokenizer.
    """
    return config.vocab_size if is_trained(config) else _open_given(config).vocab_size


def recipe_fingerprint(
    config: TokenizerConfig, *, documents: Sequence[Documents], seed: int
) -> str:
    """Hash everything that decides a trained tokenizer."""
    recipe = [_format_settings(config), [d.fingerprint() for d in documents], seed]
    if config.kind == "words":
        recipe.append(words.files_fingerprint(config))
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


# The leaves that decide a trained tokenizer. Never change the first list. A leaf added
# later belongs to the second one, with its default: it counts only where it is set, so
# that the recipes of tokenizers trained before stay the same.
_RECIPE_LEAVES = (
    "kind",
    "path",
    "algorithm",
    "vocab_size",
    "bos",
    "lossless",
    "num_training_bytes",
)
_LATER_RECIPE_LEAVES: dict[str, Any] = {
    "mask": False,
    "num_sentinels": 0,
    "split": "punctuation",
    "lowercase": False,
    "min_count": 1,
    "stop_words": "",
}


def _format_settings(config: TokenizerConfig) -> str:
    leaves = {name: getattr(config, name) for name in _RECIPE_LEAVES}
    for name, default in _LATER_RECIPE_LEAVES.items():
        if getattr(config, name) != default:
            leaves[name] = getattr(config, name)
    settings = ", ".join(f"{name}={value!r}" for name, value in leaves.items())
    return f"TokenizerConfig({settings})"


def is_trained(config: TokenizerConfig) -> bool:
    """Return whether the tokenizer is trained on the text, not given."""
    return config.kind == "words" or (
        config.kind == "sentencepiece" and not config.path
    )


def _open_given(config: TokenizerConfig) -> Tokenizer:
    """Open a tokenizer that needs no training, and check it against the config."""
    tokenizer, name = _OPENERS[config.kind](config)
    size = tokenizer.vocab_size
    if config.vocab_size not in (0, size):
        raise ConfigError(
            f"config.tokenizer.vocab_size = {config.vocab_size}: {name} has {size}"
        )
    if config.mask and tokenizer.mask_id is None:
        raise ConfigError(f"config.tokenizer.mask = True: {name} has no mask token")
    if config.num_sentinels > len(tokenizer.sentinel_ids):
        raise ConfigError(
            f"config.tokenizer.num_sentinels = {config.num_sentinels}: {name} has "
            f"{len(tokenizer.sentinel_ids)}"
        )
    return tokenizer


def _open_bytes(config: TokenizerConfig) -> tuple[Tokenizer, str]:
    tokenizer = Bytes(
        bos=config.bos, mask=config.mask, num_sentinels=config.num_sentinels
    )
    return tokenizer, "the bytes tokenizer"


def _open_sentencepiece(config: TokenizerConfig) -> tuple[Tokenizer, str]:
    """Open the SentencePiece file of `config.path`, and check its special pieces."""
    leaf = f"config.tokenizer.path = {config.path!r}"
    file = expand_path(config.path, leaf="config.tokenizer.path")
    tokenizer = sentencepiece.open_model(file, name=leaf, bos=config.bos)
    if config.bos and tokenizer.bos_id is None:
        raise ConfigError(
            f"config.tokenizer.bos = True: {config.path} has no BOS piece"
        )
    if tokenizer.eos_id is None:
        raise ConfigError(f"{leaf}: has no EOS piece")
    return tokenizer, config.path


def _open_hugging_face(config: TokenizerConfig) -> tuple[Tokenizer, str]:
    """Open the Hugging Face directory or file of `config.path`, or a saved tokenizer.

    Documents begin as its own model expects; without `config.bos`, with no token.
    """
    path = local_directory(expand_path(config.path, leaf="config.tokenizer.path"))
    manifest = read_manifest(path) if path.is_dir() else None
    if manifest is not None:
        kept = manifest if config.bos else {**manifest, "bos": False}
        return _load(path, kept), config.path
    files = hf_directory.read_tokenizer_files(path, name=config.path)
    settings.check_settings(files)
    settings.warn_of_class(files)
    build = pieces.build if files.is_sentencepiece else tokenizer.build
    return build(files, bos=config.bos), config.path


# To open a tokenizer that needs no training, with its name in errors.
_OPENERS: dict[str, Callable[[TokenizerConfig], tuple[Tokenizer, str]]] = {
    "bytes": _open_bytes,
    "ids": lambda config: (Ids(config.vocab_size), "the ids tokenizer"),
    "sentencepiece": _open_sentencepiece,
    "tokenizers": _open_hugging_face,
}


def _load(directory: Path, manifest: Mapping[str, Any]) -> Tokenizer:
    try:
        return _LOADERS[manifest["kind"]](directory, manifest)
    except UserError:
        raise
    except (KeyError, TypeError) as error:
        file = directory / MANIFEST
        raise UserError(f"{file}: cannot be used: {error!r}") from error
    except Exception as error:  # a damaged file may raise anything
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{directory}: cannot be used: {why}") from error
