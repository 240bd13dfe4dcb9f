"""Text to token ids and back: SentencePiece, trained here or given, or plain bytes."""

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sentencepiece

from lmjax.config import ConfigError, TokenizerConfig
from lmjax.data.documents import Documents, estimate_bytes

MANIFEST = "lmjax_tokenizer.json"
MODEL = "sentencepiece.model"

# SentencePiece writes a space as U+2581, so a U+2581 of the text would come back as
# a space; a lossless tokenizer spells it by its bytes instead.
_SPACE_MARK = "\u2581"
_SILENT = 3  # SentencePiece's log level: fatal errors only
_CHUNK = 4096  # characters of training text in one of SentencePiece's "sentences"
_READ_AHEAD = 8  # training reads up to so many times the text it keeps


class Tokenizer(Protocol):
    """What the rest of the house needs to know of a tokenizer."""

    vocab_size: int
    bos_id: int | None
    eos_id: int

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, int32, without BOS and EOS."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode several texts."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids; BOS and EOS are dropped."""

    def id_to_piece(self, index: int) -> str:
        """Return how one id is written, for people to read."""

    def save(self, directory: str | Path) -> None:
        """Write what `load_tokenizer` reads."""

    def fingerprint(self) -> str:
        """Return a hash that is equal for tokenizers which encode alike."""


class Bytes:
    """Each byte of the UTF-8 text is a token; then EOS, and BOS if there is one."""

    def __init__(self, *, bos: bool) -> None:
        self.eos_id = 256
        self.bos_id = 257 if bos else None
        self.vocab_size = 257 + bos

    def encode(self, text: str) -> np.ndarray:
        """Return the bytes of a text as int32 ids."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode several texts."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text; bytes that are not UTF-8 become U+FFFD."""
        array = np.asarray(ids, np.int64)
        return array[array < 256].astype(np.uint8).tobytes().decode(errors="replace")

    def id_to_piece(self, index: int) -> str:
        """Return `<0x41>` and the like."""
        return {256: "</s>", 257: "<s>"}.get(index, f"<0x{index:02X}>")

    def save(self, directory: str | Path) -> None:
        """Write the manifest."""
        _write_manifest(directory, kind="bytes", bos=self.bos_id is not None)

    def fingerprint(self) -> str:
        """Return the kind and the size, which say all."""
        return f"bytes-{self.vocab_size}"


class SentencePiece:
    """A SentencePiece model.

    Args:
      model: the serialized model.
      bos: documents begin with the model's BOS.
      lossless: the model keeps white space and has a piece for each byte, so that
        `decode(encode(text)) == text` for every text.
      made_from: a hash of what it was trained on; "" when it was given.
    """

    def __init__(
        self, model: bytes, *, bos: bool, lossless: bool = False, made_from: str = ""
    ) -> None:
        self.model = model
        self.lossless = lossless
        self.made_from = made_from
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = int(self._processor.vocab_size())
        self.eos_id = int(self._processor.eos_id())
        self.bos_id = int(self._processor.bos_id()) if bos else None

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, int32, without BOS and EOS."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode several texts, in one thread."""
        if self.lossless and any(_SPACE_MARK in text for text in texts):
            return [self._encode_around_space_marks(text) for text in texts]
        return self._encode(texts)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids; BOS and EOS are dropped."""
        return self._processor.decode(np.asarray(ids, np.int64).tolist())

    def id_to_piece(self, index: int) -> str:
        """Return how one id is written, for people to read."""
        return self._processor.id_to_piece(int(index))

    def save(self, directory: str | Path) -> None:
        """Write the model, then the manifest that makes it count."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / MODEL).write_bytes(self.model)
        _write_manifest(
            directory,
            kind="sentencepiece",
            bos=self.bos_id is not None,
            lossless=self.lossless,
            made_from=self.made_from,
        )

    def fingerprint(self) -> str:
        """Hash the model."""
        return hashlib.sha256(self.model + bytes([self.lossless])).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        bos = self.bos_id is not None
        return _rebuild, (self.model, bos, self.lossless, self.made_from)

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._processor.encode(list(texts), num_threads=1)
        return [np.array(ids, np.int32) for ids in encoded]

    def _encode_around_space_marks(self, text: str) -> np.ndarray:
        pieces = [f"<0x{byte:02X}>" for byte in _SPACE_MARK.encode()]
        mark = np.array(self._processor.piece_to_id(pieces), np.int32)
        first, *rest = self._encode(text.split(_SPACE_MARK))
        return np.concatenate([first, *(part for ids in rest for part in (mark, ids))])


def _rebuild(model: bytes, bos: bool, lossless: bool, made_from: str) -> SentencePiece:
    return SentencePiece(model, bos=bos, lossless=lossless, made_from=made_from)


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Load the tokenizer that a workdir keeps in `tokenizer/`.

    Raises:
      ConfigError: there is none, or its files are damaged.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise ConfigError(f"{directory}: holds no tokenizer ({MANIFEST} is missing)")
    if manifest["kind"] == "bytes":
        return Bytes(bos=manifest["bos"])
    file = Path(directory) / MODEL
    return _open_model(
        file,
        name=str(file),
        bos=manifest["bos"],
        lossless=manifest["lossless"],
        made_from=manifest["made_from"],
    )


def make_tokenizer(
    config: TokenizerConfig,
    *,
    documents: Sequence[Documents] | None,
    seed: int,
) -> Tokenizer:
    """Make the tokenizer that a config describes; the same one every time.

    Args:
      config: bytes, a SentencePiece file, or how to train one.
      documents: the train split of each part of the data; needed only for training.
      seed: fixes what chance there is in training.

    Raises:
      ConfigError: the file or the size cannot be used, or the text is too little.
    """
    if config.kind == "bytes":
        vocab_size(config)
        return Bytes(bos=config.bos)
    if config.path:
        return _given(config)
    assert documents is not None, "training needs documents"
    model = _train(config, documents, seed=seed)
    made_from = recipe_fingerprint(config, documents=documents, seed=seed)
    return SentencePiece(
        model, bos=config.bos, lossless=config.lossless, made_from=made_from
    )


def vocab_size(config: TokenizerConfig) -> int:
    """Return the number of ids, known before any training.

    Raises:
      ConfigError: `vocab_size` contradicts the bytes or the file.
    """
    if config.kind == "bytes":
        return _agreed_size(config, Bytes(bos=config.bos), name="the bytes tokenizer")
    return _given(config).vocab_size if config.path else config.vocab_size


def recipe_fingerprint(
    config: TokenizerConfig, *, documents: Sequence[Documents], seed: int
) -> str:
    """Hash all that decides what training gives."""
    recipe = [repr(config), [part.fingerprint() for part in documents], seed]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


def read_manifest(directory: str | Path) -> dict[str, Any] | None:
    """Return what `save` noted; None where no tokenizer is."""
    file = Path(directory) / MANIFEST
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error


def _write_manifest(directory: str | Path, **fields: Any) -> None:
    Path(directory).mkdir(parents=True, exist_ok=True)
    partial = Path(directory) / f"{MANIFEST}.partial"
    partial.write_text(json.dumps({"version": 1, **fields}, indent=2) + "\n")
    partial.replace(Path(directory) / MANIFEST)


def _given(config: TokenizerConfig) -> SentencePiece:
    """Open the SentencePiece file of `config.path`, and check what it must have."""
    leaf = f"config.tokenizer.path = {config.path!r}"
    tokenizer = _open_model(Path(config.path).expanduser(), name=leaf, bos=config.bos)
    _agreed_size(config, tokenizer, name=config.path)
    if tokenizer.bos_id == -1:
        raise ConfigError(
            f"config.tokenizer.bos = True: {config.path} has no such piece"
        )
    if tokenizer.eos_id == -1:
        raise ConfigError(f"{leaf}: has no piece that ends a text")
    return tokenizer


def _agreed_size(config: TokenizerConfig, tokenizer: Tokenizer, *, name: str) -> int:
    size = tokenizer.vocab_size
    if config.vocab_size not in (0, size):
        raise ConfigError(
            f"config.tokenizer.vocab_size = {config.vocab_size}: {name} has {size}"
        )
    return size


def _open_model(file: Path, *, name: str, **options: Any) -> SentencePiece:
    try:
        return SentencePiece(file.read_bytes(), **options)
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from error
    except RuntimeError as error:
        raise ConfigError(f"{name}: not a SentencePiece model") from error


def _train(config: TokenizerConfig, parts: Sequence[Documents], *, seed: int) -> bytes:
    sentencepiece.set_random_generator_seed(seed)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=training_text(
                parts, num_bytes=config.num_training_bytes, seed=seed
            ),
            model_writer=model,
            vocab_size=config.vocab_size,
            model_type=config.algorithm,
            unk_id=0,
            bos_id=1 if config.bos else -1,
            eos_id=1 + config.bos,
            pad_id=-1,
            num_threads=16,  # fixed: the sums of unigram training depend on it
            max_sentence_length=1 << 20,
            minloglevel=_SILENT,
            **_trainer_options(config),
        )
    except RuntimeError as error:
        raise ConfigError(_why_untrained(config, str(error))) from error
    trained = SentencePiece(model.getvalue(), bos=config.bos).vocab_size
    if trained != config.vocab_size:
        raise ConfigError(_too_large(config, trained))
    return model.getvalue()


# Every character is kept, and comes back.
_LOSSLESS: dict[str, Any] = {
    "normalization_rule_name": "identity",
    "byte_fallback": True,
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,
}
# Pieces may hold line ends with the indentation that follows, or several words: a
# quarter fewer tokens in source code. Unigram training would take minutes with these.
_ACROSS_WORDS: dict[str, Any] = {
    "split_by_whitespace": False,
    "split_by_unicode_script": False,
}
# SentencePiece's own ways. Words are told apart by white space alone: no character
# is too rare, and a "<unk>" that the text spells out is a word like any other.
_USUAL: dict[str, dict[str, Any]] = {
    "unigram": {},
    "bpe": {},
    "char": {},
    "word": {
        "normalization_rule_name": "identity",
        "character_coverage": 1.0,
        "unk_piece": "<unknown>",
    },
}


def _trainer_options(config: TokenizerConfig) -> dict[str, Any]:
    if not config.lossless:
        return _USUAL[config.algorithm]
    return _LOSSLESS | (_ACROSS_WORDS if config.algorithm == "bpe" else {})


def training_text(
    parts: Sequence[Documents], *, num_bytes: int, seed: int
) -> Iterator[str]:
    """Yield about `num_bytes` of text, spread evenly over all documents of all parts.

    Text comes in chunks that end at a line end where they can. Of very many
    documents only evenly spaced ones are read.
    """
    share = num_bytes / max(1, sum(map(estimate_bytes, parts)))
    visited = min(1.0, share * _READ_AHEAD)
    chance = np.random.default_rng(seed)
    for documents in parts:
        count = max(1, round(len(documents) * visited))
        for i in np.linspace(0, len(documents) - 1, count).astype(np.int64):
            for chunk in _chunks(documents[int(i)]):
                if chance.random() < share / visited:
                    yield chunk


def _chunks(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        stop = text.find("\n", start + _CHUNK) + 1 or len(text)
        stop = min(stop, start + 2 * _CHUNK)
        yield text[start:stop]
        start = stop


def _why_untrained(config: TokenizerConfig, message: str) -> str:
    """Say in the user's terms what SentencePiece says in its own."""
    if match := re.search(r"set it to a value <= (\d+)", message):
        return _too_large(config, int(match[1]))
    where = f"config.tokenizer.vocab_size = {config.vocab_size}"
    if match := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"{where}: the characters of the text alone need at least {match[1]}"
    if "sentences_.empty()" in message:
        return "config.tokenizer: no text to train on"
    return f"{where}: SentencePiece cannot train it: {message}"


def _too_large(config: TokenizerConfig, largest: int) -> str:
    return (
        f"config.tokenizer.vocab_size = {config.vocab_size}: the training text gives "
        f"at most {largest}"
    )
