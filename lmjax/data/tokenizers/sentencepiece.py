"""SentencePiece models: trained here, or given."""

import hashlib
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from lmjax.config.tokenizer import TokenizerConfig
from lmjax.data.sources.documents import Documents, estimate_bytes
from lmjax.data.tokenizers.files import write_files, write_manifest
from lmjax.data.tokenizers.offsets import Encoded, encoded, joined, with_whole_bytes
from lmjax.data.tokenizers.special_ids import SpecialIds, not_none
from lmjax.errors import ConfigError

MODEL = "sentencepiece.model"

# SentencePiece writes a space as U+2581, so a U+2581 of the text would come back as
# a space; a lossless tokenizer spells it by its bytes instead.
SPACE_MARK = "\u2581"
_MASKS = ("<mask>", "[MASK]")
_SILENT = 3  # SentencePiece's log level: fatal errors only
_CHUNK = 4096  # characters of training text in one of SentencePiece's "sentences"
_READ_AHEAD = 8  # training reads up to so many times the text it keeps


class SentencePiece(SpecialIds):
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
        bos_id = _found(self._processor.bos_id()) if bos else None
        eos_id = _found(self._processor.eos_id())
        super().__init__(
            bos_id=bos_id,
            eos_id=eos_id,
            pad_id=_found(self._processor.pad_id()),
            mask_id=next(iter(not_none(*map(self._control, _MASKS))), None),
            sentinel_ids=tuple(self._sentinels()),
            prefix_ids=not_none(bos_id),
            suffix_ids=not_none(eos_id),
            pair_ids=not_none(eos_id),
        )

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, int32, without BOS and EOS."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode several texts, in one thread."""
        if self.lossless and any(SPACE_MARK in text for text in texts):
            return [self._around_space_marks(text).ids for text in texts]
        ids = self._processor.encode(list(texts), num_threads=1)
        return [np.array(ids_T, np.int32) for ids_T in ids]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode several texts, and say which characters each token stands for."""
        if self.lossless and any(SPACE_MARK in text for text in texts):
            return [self._around_space_marks(text) for text in texts]
        return [found for _, found in cut(self._processor, texts)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids; BOS and EOS are dropped."""
        return self._processor.decode(np.asarray(ids, np.int64).tolist())

    def id_to_piece(self, index: int) -> str:
        """Return how one id is written, for people to read."""
        return self._processor.id_to_piece(int(index))

    def word_starts(self) -> np.ndarray:
        """Return the pieces that begin with a space or a line end, and control ones."""
        return np.array([self._starts_word(i) for i in range(self.vocab_size)], bool)

    def save(self, directory: str | Path) -> None:
        """Write the model, then the manifest that makes it count."""
        write_files(directory, {MODEL: self.model})
        write_manifest(
            directory,
            kind="sentencepiece",
            bos=self.bos_id is not None,
            lossless=self.lossless,
            made_from=self.made_from,
        )

    def fingerprint(self) -> str:
        """Hash the model, and whether its BOS is left out."""
        unused = self.bos_id is None and _found(self._processor.bos_id()) is not None
        hashed = self.model + bytes([self.lossless]) + b"no BOS" * unused
        return hashlib.sha256(hashed).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        bos = self.bos_id is not None
        return _rebuild, (self.model, bos, self.lossless, self.made_from)

    def _control(self, piece: str) -> int | None:
        """Return the id of a control symbol; a piece of text may be spelled like it."""
        index = int(self._processor.piece_to_id(piece))
        return index if self._processor.is_control(index) else None

    def _sentinels(self) -> Iterator[int]:
        for i in itertools.count():
            if (index := self._control(f"<extra_id_{i}>")) is None:
                return
            yield index

    def _starts_word(self, index: int) -> bool:
        first = self.id_to_piece(index)[:1]
        if self._processor.is_control(index) or self._processor.is_unknown(index):
            return True
        return first == SPACE_MARK or first.isspace()

    def _around_space_marks(self, text: str) -> Encoded:
        pieces = [f"<0x{byte:02X}>" for byte in SPACE_MARK.encode()]
        mark = encoded(self._processor.piece_to_id(pieces), [(-1, 0)] * len(pieces))
        texts, begin = text.split(SPACE_MARK), 0
        parts: list[tuple[int, Encoded]] = []
        for part, (_, found) in zip(texts, cut(self._processor, texts), strict=True):
            parts += [(begin, mark)] * (begin > 0) + [(begin, found)]
            begin += len(part) + 1
        return joined(parts)


def cut(
    processor: sentencepiece.SentencePieceProcessor, texts: Sequence[str]
) -> Iterator[tuple[list[str], Encoded]]:
    """Yield the pieces of each text as they are written, their ids and offsets."""
    kind: Any = "offset_mapping"
    for found in processor.encode(list(texts), return_type=kind, num_threads=1):
        ids, offsets = encoded(found["ids"], found["offsets"])
        is_byte = np.zeros(len(ids), bool)
        empty = np.flatnonzero(offsets[:, 0] == offsets[:, 1])
        is_byte[empty] = [processor.is_byte(int(i)) for i in ids[empty]]
        yield found["pieces"], Encoded(ids, with_whole_bytes(offsets, is_byte))


def _found(index: int) -> int | None:
    return None if index < 0 else int(index)


def _rebuild(model: bytes, bos: bool, lossless: bool, made_from: str) -> SentencePiece:
    return SentencePiece(model, bos=bos, lossless=lossless, made_from=made_from)


def open_model(file: Path, *, name: str, **options: Any) -> SentencePiece:
    """Open a SentencePiece file; options as the class takes them.

    Raises:
      ConfigError: it cannot be read, or is something else; `name` is named.
    """
    try:
        return SentencePiece(file.read_bytes(), **options)
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from error
    except RuntimeError as error:
        raise ConfigError(f"{name}: not a SentencePiece model") from error


def train(config: TokenizerConfig, parts: Sequence[Documents], *, seed: int) -> bytes:
    """Train the model that a config describes, and return it serialized.

    Raises:
      ConfigError: the size cannot be had, or there is no text.
    """
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
            control_symbols=_control_symbols(config),
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


def _control_symbols(config: TokenizerConfig) -> list[str]:
    sentinels = [f"<extra_id_{i}>" for i in range(config.num_sentinels)]
    return ["<mask>"] * config.mask + sentinels


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
