"""Text to token ids and back: the kinds of tokenizers, how one is made and loaded."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lmjax.config.tokenizer import TokenizerConfig
from lmjax.data.sources.documents import Documents, expanded
from lmjax.data.tokenizers import sentencepiece, words
from lmjax.data.tokenizers.files import MANIFEST, read_manifest
from lmjax.data.tokenizers.hf import directory as hf_directory
from lmjax.data.tokenizers.hf import pieces, tokenizer
from lmjax.data.tokenizers.offsets import Encoded
from lmjax.data.tokenizers.plain import Bytes, Ids
from lmjax.data.tokenizers.sentencepiece import MODEL, SentencePiece, training_text
from lmjax.errors import ConfigError

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
    "training_text",
    "vocab_size",
]


class Tokenizer(Protocol):
    """What the rest of the house needs to know of a tokenizer.

    `special_ids.SpecialIds` tells what each of the ids is.
    """

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

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, int32, without special ones around it."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode several texts."""

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode several texts, and say which characters each token stands for."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids; BOS and EOS are dropped."""

    def id_to_piece(self, index: int) -> str:
        """Return how one id is written, for people to read."""

    def word_starts(self) -> np.ndarray:
        """Return which ids begin a word, bool (vocab_size,); special ones do."""

    def save(self, directory: str | Path) -> None:
        """Write what `load_tokenizer` reads."""

    def fingerprint(self) -> str:
        """Return a hash that is equal for tokenizers which encode alike."""


def _open_bytes(_: Path, manifest: Mapping[str, Any]) -> Tokenizer:
    names = ("bos", "mask", "num_sentinels")
    return Bytes(**{name: manifest[name] for name in names if name in manifest})


def _open_sentencepiece(directory: Path, manifest: Mapping[str, Any]) -> Tokenizer:
    file = directory / MODEL
    names = ("bos", "lossless", "made_from")
    return sentencepiece.open_model(
        file, name=str(file), **{n: manifest[n] for n in names}
    )


# How what `save` wrote is read again, by the kind that the manifest notes.
_OPEN: dict[str, Callable[[Path, Mapping[str, Any]], Tokenizer]] = {
    "bytes": _open_bytes,
    "ids": lambda _, manifest: Ids(
        manifest["vocab_size"], **manifest.get("special", {})
    ),
    "sentencepiece": _open_sentencepiece,
    "tokenizers": tokenizer.load,
    "pieces": pieces.load,
}


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Load the tokenizer that a workdir keeps in `tokenizer/`.

    Raises:
      ConfigError: there is none, or its files are damaged.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise ConfigError(f"{directory}: holds no tokenizer ({MANIFEST} is missing)")
    return _opened(Path(directory), manifest)


def find_tokenizer(directory: str | Path) -> TokenizerConfig | None:
    """Return a config for the tokenizer of a Hugging Face directory; None: it has none.

    `make_tokenizer` opens it. A directory that `save` wrote will do as well.
    """
    path = Path(directory).expanduser()
    if not (path / MANIFEST).exists() and hf_directory.find_layout(path) is None:
        return None
    return TokenizerConfig(kind="tokenizers", path=str(directory))


def make_tokenizer(
    config: TokenizerConfig,
    *,
    documents: Sequence[Documents] | None,
    seed: int,
) -> Tokenizer:
    """Make the tokenizer that a config describes; the same one every time.

    Args:
      config: bytes, ids, a file or a directory, or how to train a SentencePiece model
        or count words.
      documents: the train split of each part of the data; needed only for training.
      seed: fixes what chance there is in training.

    Raises:
      ConfigError: the file or the size cannot be used, or the text is too little.
    """
    if not is_trained(config):
        return _given(config)
    assert documents is not None, "training needs documents"
    made_from = recipe_fingerprint(config, documents=documents, seed=seed)
    if config.kind == "words":
        return words.train(config, documents, made_from=made_from)
    model = sentencepiece.train(config, documents, seed=seed)
    return SentencePiece(
        model, bos=config.bos, lossless=config.lossless, made_from=made_from
    )


def vocab_size(config: TokenizerConfig) -> int:
    """Return the number of ids, known before any training; of words the most.

    Raises:
      ConfigError: `vocab_size` contradicts the bytes or the file.
    """
    return config.vocab_size if is_trained(config) else _given(config).vocab_size


def recipe_fingerprint(
    config: TokenizerConfig, *, documents: Sequence[Documents], seed: int
) -> str:
    """Hash all that decides what training gives."""
    recipe = [_spelled(config), [part.fingerprint() for part in documents], seed]
    if config.kind == "words":
        recipe.append(words.files_fingerprint(config))
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


# What decides what training gives: leaves of the config, which no other leaf joins by
# itself. Those that tokenizers once did not have count only where they are set, so that
# those trained before are still known for what they are.
_TRAINED_BY = (
    "kind",
    "path",
    "algorithm",
    "vocab_size",
    "bos",
    "lossless",
    "num_training_bytes",
)
_TRAINED_BY_LATER: dict[str, Any] = {
    "mask": False,
    "num_sentinels": 0,
    "split": "punctuation",
    "lowercase": False,
    "min_count": 1,
    "stop_words": "",
}


def _spelled(config: TokenizerConfig) -> str:
    leaves = {name: getattr(config, name) for name in _TRAINED_BY}
    for name, unset in _TRAINED_BY_LATER.items():
        if getattr(config, name) != unset:
            leaves[name] = getattr(config, name)
    written = ", ".join(f"{name}={value!r}" for name, value in leaves.items())
    return f"TokenizerConfig({written})"


def is_trained(config: TokenizerConfig) -> bool:
    """Return whether the tokenizer is made of the text, not given."""
    return config.kind == "words" or (
        config.kind == "sentencepiece" and not config.path
    )


def _given(config: TokenizerConfig) -> Tokenizer:
    """Make what needs no training, and check that it has what is asked for."""
    made, name = _MAKE[config.kind](config)
    size = made.vocab_size
    if config.vocab_size not in (0, size):
        raise ConfigError(
            f"config.tokenizer.vocab_size = {config.vocab_size}: {name} has {size}"
        )
    if config.mask and made.mask_id is None:
        raise ConfigError(f"config.tokenizer.mask = True: {name} has no mask token")
    if config.num_sentinels > len(made.sentinel_ids):
        raise ConfigError(
            f"config.tokenizer.num_sentinels = {config.num_sentinels}: {name} has "
            f"{len(made.sentinel_ids)}"
        )
    return made


def _make_bytes(config: TokenizerConfig) -> tuple[Tokenizer, str]:
    made = Bytes(bos=config.bos, mask=config.mask, num_sentinels=config.num_sentinels)
    return made, "the bytes tokenizer"


def _make_sentencepiece(config: TokenizerConfig) -> tuple[Tokenizer, str]:
    """Open the SentencePiece file of `config.path`, and check what it must have."""
    leaf = f"config.tokenizer.path = {config.path!r}"
    file = expanded(config.path, leaf="config.tokenizer.path")
    made = sentencepiece.open_model(file, name=leaf, bos=config.bos)
    if config.bos and made.bos_id is None:
        raise ConfigError(
            f"config.tokenizer.bos = True: {config.path} has no such piece"
        )
    if made.eos_id is None:
        raise ConfigError(f"{leaf}: has no piece that ends a text")
    return made, config.path


def _make_hugging_face(config: TokenizerConfig) -> tuple[Tokenizer, str]:
    """Open the Hugging Face directory or file of `config.path`, or a saved tokenizer.

    Documents begin as its own model's do; without `config.bos`, with nothing.
    """
    path = expanded(config.path, leaf="config.tokenizer.path")
    manifest = read_manifest(path) if path.is_dir() else None
    if manifest is not None:
        kept = manifest if config.bos else {**manifest, "bos": False}
        return _opened(path, kept), config.path
    origin = hf_directory.open_pretrained(path, name=config.path)
    room = pieces if origin.layout in hf_directory.PIECES else tokenizer
    return room.make(origin, bos=config.bos), config.path


_MAKE: dict[str, Callable[[TokenizerConfig], tuple[Tokenizer, str]]] = {
    "bytes": _make_bytes,
    "ids": lambda config: (Ids(config.vocab_size), "the ids tokenizer"),
    "sentencepiece": _make_sentencepiece,
    "tokenizers": _make_hugging_face,
}


def _opened(directory: Path, manifest: Mapping[str, Any]) -> Tokenizer:
    try:
        return _OPEN[manifest["kind"]](directory, manifest)
    except (KeyError, TypeError) as error:
        file = directory / MANIFEST
        raise ConfigError(f"{file}: cannot be used: {error!r}") from error
