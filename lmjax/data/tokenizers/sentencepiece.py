"""SentencePiece models (Kudo and Richardson, 2018): trained here, or from a file."""

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
from lmjax.data.tokenizers.offsets import (
    Encoding,
    concatenate_encodings,
    make_encoding,
    widen_byte_offsets,
)
from lmjax.data.tokenizers.special_ids import SpecialIds, not_none
from lmjax.errors import ConfigError, UserError

MODEL = "sentencepiece.model"

# SentencePiece writes a space as U+2581, so a U+2581 of the text would be decoded as a
# space; a lossless tokenizer encodes its bytes instead.
SPACE_MARK = "\u2581"
# The scores of pieces trained here are multiples of 1 / 64: sums of up to 2^18 are
# exact in float32, so that other programs decide alike between equal sums.
SCORE_UNITS = 64
_MASKS = ("<mask>", "[MASK]")
_SILENT = 3  # SentencePiece's log level: fatal errors only
_CHUNK = 4096  # characters of training text in one of SentencePiece's "sentences"
_OVERSAMPLING = 8  # at most so many times the text that training keeps is read


class SentencePiece(SpecialIds):
    """A SentencePiece model.

    Args:
      model: the serialized model.
      bos: documents begin with the model's BOS.
      lossless: the model keeps white space and has a piece for each byte, so that
        `decode(encode(text)) == text` for every text.
      recipe: fingerprint of the text and settings of its training; "" if it was not
        trained here.
    """

    def __init__(
        self, model: bytes, *, bos: bool, lossless: bool = False, recipe: str = ""
    ) -> None:
        self.model = model
        self.lossless = lossless
        self.recipe = recipe
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = int(self._processor.vocab_size())
        bos_id = _optional_id(self._processor.bos_id()) if bos else None
        eos_id = _optional_id(self._processor.eos_id())
        self.unk_id = int(self._processor.unk_id())
        super().__init__(
            bos_id=bos_id,
            eos_id=eos_id,
            pad_id=_optional_id(self._processor.pad_id()),
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
            return [self._encode_space_marks(text).ids for text in texts]
        ids = self._processor.encode(list(texts), num_threads=1)
        return [np.array(ids_T, np.int32) for ids_T in ids]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode several texts, with the characters that each token covers."""
        if self.lossless and any(SPACE_MARK in text for text in texts):
            return [self._encode_space_marks(text) for text in texts]
        return [encoding for _, encoding in encode_pieces(self._processor, texts)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids; BOS and EOS are dropped."""
        return self._processor.decode(np.asarray(ids, np.int64).tolist())

    def id_to_piece(self, index: int) -> str:
        """Return the piece of one id."""
        return self._processor.id_to_piece(int(index))

    def word_starts(self) -> np.ndarray:
        """Return True for pieces that begin with white space, and control pieces."""
        return np.array([self._starts_word(i) for i in range(self.vocab_size)], bool)

    def save(self, directory: str | Path) -> None:
        """Write the model, then the manifest."""
        write_files(directory, {MODEL: self.model})
        write_manifest(
            directory,
            kind="sentencepiece",
            bos=self.bos_id is not None,
            lossless=self.lossless,
            made_from=self.recipe,
        )

    def fingerprint(self) -> str:
        """Hash the model, and whether its BOS is unused."""
        unused = (
            self.bos_id is None and _optional_id(self._processor.bos_id()) is not None
        )
        hashed = self.model + bytes([self.lossless]) + b"no BOS" * unused
        return hashlib.sha256(hashed).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        bos = self.bos_id is not None
        return _rebuild, (self.model, bos, self.lossless, self.recipe)

    def _control(self, piece: str) -> int | None:
        """Return the id of a control symbol; None for a text piece of that spelling."""
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

    def _encode_space_marks(self, text: str) -> Encoding:
        """Encode a text, each U+2581 in it as bytes."""
        pieces = [f"<0x{byte:02X}>" for byte in SPACE_MARK.encode()]
        mark = make_encoding(
            self._processor.piece_to_id(pieces), [(-1, 0)] * len(pieces)
        )
        texts, begin = text.split(SPACE_MARK), 0
        encodings: list[tuple[int, Encoding]] = []
        pairs = zip(texts, encode_pieces(self._processor, texts), strict=True)
        for part, (_, encoding) in pairs:
            encodings += [(begin, mark)] * (begin > 0) + [(begin, encoding)]
            begin += len(part) + 1
        return concatenate_encodings(encodings)


def encode_pieces(
    processor: sentencepiece.SentencePieceProcessor, texts: Sequence[str]
) -> Iterator[tuple[list[str], Encoding]]:
    """Yield the pieces of each text, with their ids and offsets."""
    kind: Any = "offset_mapping"
    for mapping in processor.encode(list(texts), return_type=kind, num_threads=1):
        ids, offsets = make_encoding(mapping["ids"], mapping["offsets"])
        is_byte = np.zeros(len(ids), bool)
        empty = np.flatnonzero(offsets[:, 0] == offsets[:, 1])
        is_byte[empty] = [processor.is_byte(int(i)) for i in ids[empty]]
        yield mapping["pieces"], Encoding(ids, widen_byte_offsets(offsets, is_byte))


def _optional_id(index: int) -> int | None:
    return None if index < 0 else int(index)


def _rebuild(model: bytes, bos: bool, lossless: bool, recipe: str) -> SentencePiece:
    return SentencePiece(model, bos=bos, lossless=lossless, recipe=recipe)


def open_model(file: Path, *, name: str, **options: Any) -> SentencePiece:
    """Open a SentencePiece file.

    Args:
      file: the file.
      name: its name in errors: a path, or a leaf of the config.
      options: of `SentencePiece`.

    Raises:
      UserError: it cannot be read, or is no SentencePiece model.
    """
    try:
        return SentencePiece(file.read_bytes(), **options)
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}") from error
    except RuntimeError as error:
        raise UserError(f"{name}: not a SentencePiece model") from error


def train(config: TokenizerConfig, sources: Sequence[Documents], *, seed: int) -> bytes:
    """Train the model that a config describes, and return it serialized.

    Raises:
      ConfigError: the vocabulary size is not possible, or there is no text.
    """
    sentencepiece.set_random_generator_seed(seed)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sample_training_text(
                sources, num_bytes=config.num_training_bytes, seed=seed
            ),
            model_writer=model,
            vocab_size=config.vocab_size,
            model_type=config.algorithm,
            unk_id=0,
            bos_id=1 if config.bos else -1,
            eos_id=1 + config.bos,
            pad_id=-1,
            control_symbols=_control_symbols(config),
            num_threads=16,  # fixed: the result of unigram training depends on it
            max_sentence_length=1 << 20,
            minloglevel=_SILENT,
            **_trainer_options(config),
        )
    except RuntimeError as error:
        raise ConfigError(_explain_failure(config, str(error))) from error
    trained = SentencePiece(model.getvalue(), bos=config.bos).vocab_size
    if trained != config.vocab_size:
        raise ConfigError(_explain_too_large(config, trained))
    return _round_scores(model.getvalue())


def _round_scores(model: bytes) -> bytes:
    """Return a model with scores that are multiples of 1 / `SCORE_UNITS`."""
    proto = parse_proto(model)
    for piece in proto.pieces:
        piece.score = round(piece.score * SCORE_UNITS) / SCORE_UNITS
    return bytes(proto.SerializeToString())


def parse_proto(model: bytes) -> Any:
    """Return a serialized model as a `ModelProto`."""
    from sentencepiece import sentencepiece_model_pb2

    module: Any = sentencepiece_model_pb2
    return module.ModelProto.FromString(model)


def is_bpe(model: bytes) -> bool:
    """Return whether a serialized model is of BPE."""
    spec = parse_proto(model).trainer_spec
    return bool(spec.model_type == spec.BPE)


# Every character of the text is decoded again.
_LOSSLESS: dict[str, Any] = {
    "normalization_rule_name": "identity",
    "byte_fallback": True,
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,
}
# Pieces may hold line ends with the indentation that follows, or several words: a
# quarter fewer tokens in source code. Unigram training would take minutes.
_ACROSS_WORDS: dict[str, Any] = {
    "split_by_whitespace": False,
    "split_by_unicode_script": False,
}
# SentencePiece's own settings. Words are separated by white space alone: no character
# is too rare, and a "<unk>" in the text is a word like any other.
_LOSSY: dict[str, dict[str, Any]] = {
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
        return _LOSSY[config.algorithm]
    return _LOSSLESS | (_ACROSS_WORDS if config.algorithm == "bpe" else {})


def _control_symbols(config: TokenizerConfig) -> list[str]:
    sentinels = [f"<extra_id_{i}>" for i in range(config.num_sentinels)]
    return ["<mask>"] * config.mask + sentinels


def sample_training_text(
    sources: Sequence[Documents], *, num_bytes: int, seed: int
) -> Iterator[str]:
    """Yield about `num_bytes` of text, spread evenly over all documents of all sources.

    The text is yielded in chunks, which end at a line end if possible. If there are
    very many documents, only evenly spaced ones are read.
    """
    share = num_bytes / max(1, sum(map(estimate_bytes, sources)))
    visited = min(1.0, share * _OVERSAMPLING)
    rng = np.random.default_rng(seed)
    for documents in sources:
        count = max(1, round(len(documents) * visited))
        for i in np.linspace(0, len(documents) - 1, count).astype(np.int64):
            for chunk in _split_into_chunks(documents[int(i)]):
                if rng.random() < share / visited:
                    yield chunk


def _split_into_chunks(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        stop = text.find("\n", start + _CHUNK) + 1 or len(text)
        stop = min(stop, start + 2 * _CHUNK)
        yield text[start:stop]
        start = stop


def _explain_failure(config: TokenizerConfig, message: str) -> str:
    """Return an error message of SentencePiece in terms of the config."""
    if match := re.search(r"set it to a value <= (\d+)", message):
        return _explain_too_large(config, int(match[1]))
    where = f"config.tokenizer.vocab_size = {config.vocab_size}"
    if match := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"{where}: the characters of the text alone need at least {match[1]}"
    if "sentences_.empty()" in message:
        return "config.tokenizer: no text to train on"
    return f"{where}: SentencePiece cannot train it: {message}"


def _explain_too_large(config: TokenizerConfig, largest: int) -> str:
    return (
        f"config.tokenizer.vocab_size = {config.vocab_size}: the training text gives "
        f"at most {largest}"
    )
