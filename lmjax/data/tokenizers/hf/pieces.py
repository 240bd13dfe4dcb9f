"""SentencePiece tokenizers of Hugging Face, whose ids are not those of the model.

T5 adds sentinels after the pieces of the model, XLM-R shifts them by one. Marian has
one vocabulary for two models: one splits the source, the other joins the target.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from lmjax.data.tokenizers.files import read_file, write_files, write_manifest
from lmjax.data.tokenizers.hf.directory import HFTokenizerFiles
from lmjax.data.tokenizers.hf.piece_vocabulary import (
    PieceVocabulary,
    read_vocabulary,
)
from lmjax.data.tokenizers.hf.special import Template, find_special_ids
from lmjax.data.tokenizers.offsets import Encoding, concatenate_encodings, make_encoding
from lmjax.data.tokenizers.sentencepiece import SPACE_MARK, encode_pieces, is_bpe
from lmjax.data.tokenizers.spaces import clean_up
from lmjax.data.tokenizers.special_ids import SpecialIds, not_none, without_bos
from lmjax.errors import UserError

PIECES = "pieces.json"
SOURCE = "source.model"
TARGET = "target.model"
_LANGUAGE = re.compile(">>.*?<<", re.DOTALL)


class PieceTokenizer(SpecialIds):
    """A tokenizer of SentencePiece models with a vocabulary of its own.

    Args:
      vocabulary: the models and the pieces.
      special: the special ids.
      files: the original files by name, for exports.
      cleans_up: decoded texts lose spaces.
    """

    def __init__(
        self,
        vocabulary: PieceVocabulary,
        *,
        special: SpecialIds,
        files: Mapping[str, bytes],
        cleans_up: bool = False,
    ) -> None:
        super().__init__(**special.special_ids())
        self._cleans_up = cleans_up
        self.vocabulary = vocabulary
        self.files = files
        self.vocab_size = len(vocabulary.pieces)
        self._source = _load_model(vocabulary.source)
        self._target = self._source
        if vocabulary.target:
            self._target = _load_model(vocabulary.target)
        self._ids = vocabulary.piece_ids()
        self._spelled = re.compile(
            "|".join(map(re.escape, sorted(vocabulary.spelled, key=len, reverse=True)))
            or "(?!)"  # matches nothing
        )
        self._dropped = {self._ids[token] for token in vocabulary.spelled}
        self._dropped |= {*self.stop_ids, *not_none(self.bos_id, self.pad_id)}

    @property
    def cleans_up(self) -> bool:
        """Return whether decoded texts lose spaces."""
        return self._cleans_up

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, int32, with the special tokens that it spells."""
        pieces: list[str] = []
        for _, part, is_token in self._split_special(text):
            pieces += [part] if is_token else self._source.encode(part, out_type=str)
        return np.array(self._look_up(pieces), np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode several texts."""
        return [self.encode(text) for text in texts]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode several texts, with the characters that each token covers."""
        return [concatenate_encodings(self._encode_parts(text)) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids; special ids are dropped."""
        array = np.asarray(ids, np.int64).tolist()
        pieces = [self.id_to_piece(i) for i in array if i not in self._dropped]
        text = self._target.decode_pieces(pieces).replace(SPACE_MARK, " ")
        text = text.strip() if self.vocabulary.target else text
        return clean_up(text) if self._cleans_up else text

    def id_to_piece(self, index: int) -> str:
        """Return the piece of an id; "" for an unused id."""
        return self.vocabulary.pieces[index] if 0 <= index < self.vocab_size else ""

    def word_starts(self) -> np.ndarray:
        """Return which ids begin a word (or are special), bool (vocab_size,)."""
        starts = [piece.startswith(SPACE_MARK) for piece in self.vocabulary.pieces]
        for index in self._dropped:
            starts[index] = True
        return np.array(starts, bool)

    def save(self, directory: str | Path) -> None:
        """Write the models, the vocabulary, the original files and the manifest."""
        vocabulary = self.vocabulary
        models = {SOURCE: vocabulary.source}
        if vocabulary.target:
            models[TARGET] = vocabulary.target
        text = json.dumps(vocabulary.pieces, ensure_ascii=False)
        write_files(directory, {**self.files, **models, PIECES: text.encode()})
        write_manifest(
            directory,
            kind="pieces",
            special=self.special_ids(),
            unk=vocabulary.unk,
            spelled=vocabulary.spelled,
            target=bool(vocabulary.target),
            files=sorted(self.files),
            **({"cleans_up": True} if self._cleans_up else {}),
        )

    def fingerprint(self) -> str:
        """Return a hash of the models, the vocabulary and the special ids."""
        vocabulary, special = self.vocabulary, self.special_ids()
        rest = repr([vocabulary.pieces, vocabulary.unk, vocabulary.spelled, special])
        content = [vocabulary.source, vocabulary.target or b"", rest.encode()]
        return hashlib.sha256(b"\0".join(content)).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        # For worker processes, which only encode: `files` stay behind.
        return _rebuild, (self.vocabulary, self.special_ids())

    def _encode_parts(self, text: str) -> Iterator[tuple[int, Encoding]]:
        """Yield (first character, tokens) of each part of a text."""
        for begin, part, is_token in self._split_special(text):
            if is_token:
                yield begin, make_encoding(self._look_up([part]), [(0, len(part))])
                continue
            for pieces, tokens in encode_pieces(self._source, [part]):
                yield begin, make_encoding(self._look_up(pieces), tokens.offsets)

    def _split_special(self, text: str) -> Iterator[tuple[int, str, bool]]:
        """Split a text at its special tokens.

        Yields (first character, part, whether it is a special token).
        """
        end = 0
        for match in self._spelled.finditer(text):
            yield from self._split_language(end, text[end : match.start()])
            yield match.start(), match[0], True
            end = match.end()
        yield from self._split_language(end, text[end:])

    def _split_language(self, begin: int, text: str) -> Iterator[tuple[int, str, bool]]:
        """Split off the target language at the start of a text of Marian: `>>fra<<`."""
        if self.vocabulary.target and (language := _LANGUAGE.match(text)):
            yield begin, language[0], True
            begin, text = begin + language.end(), text[language.end() :]
        yield begin, text, False

    def _look_up(self, pieces: Sequence[str]) -> list[int]:
        unk_id = self._ids[self.vocabulary.unk]
        return [self._ids.get(piece, unk_id) for piece in pieces]


def build(files: HFTokenizerFiles, *, bos: bool) -> PieceTokenizer:
    """Build the tokenizer of a Hugging Face directory.

    Args:
      files: of the tokenizer.
      bos: begin texts with BOS if the files say so; else never.

    Raises:
      UserError: a file is damaged, or the family is not known.
    """
    vocabulary, tokens = read_vocabulary(files)
    ids = vocabulary.piece_ids()
    prefix, suffix, pair = (
        tuple(ids[token] for token in part if token in ids) for part in tokens
    )
    special = find_special_ids(
        files,
        token_to_id=ids.get,
        template=Template(prefix, suffix, pair),
        size=len(vocabulary.pieces),
    )
    return PieceTokenizer(
        vocabulary,
        special=special if bos else without_bos(special),
        files=files.contents,
        cleans_up=files.cleans_up("BPE" if is_bpe(vocabulary.source) else "Unigram"),
    )


def load(directory: Path, manifest: Mapping[str, Any]) -> PieceTokenizer:
    """Load what `PieceTokenizer.save` wrote.

    Raises:
      UserError: a file is missing or damaged.
    """
    special = SpecialIds(**manifest["special"])
    try:
        vocabulary = PieceVocabulary(
            source=read_file(directory / SOURCE),
            target=read_file(directory / TARGET) if manifest["target"] else None,
            pieces=json.loads(read_file(directory / PIECES)),
            unk=manifest["unk"],
            spelled=manifest["spelled"],
        )
        return PieceTokenizer(
            vocabulary,
            special=special if manifest.get("bos", True) else without_bos(special),
            files={name: read_file(directory / name) for name in manifest["files"]},
            cleans_up=manifest.get("cleans_up", False),
        )
    except RuntimeError as error:
        raise UserError(f"{directory}: not a SentencePiece model") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{directory / PIECES}: not JSON: {error}") from error


def _rebuild(vocabulary: PieceVocabulary, special: Mapping[str, Any]) -> PieceTokenizer:
    return PieceTokenizer(vocabulary, special=SpecialIds(**special), files={})


def _load_model(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)
