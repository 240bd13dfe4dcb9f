"""SentencePiece as Hugging Face directories use it: pieces have ids of their own.

T5 puts sentinels after the model's pieces, XLM-R moves them by one, Marian has a
vocabulary for two models: one that cuts the source, and one that joins the target.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from lmjax.data.tokenizers.files import read_file, write_files, write_manifest
from lmjax.data.tokenizers.hf.directory import Origin
from lmjax.data.tokenizers.hf.piece_layouts import Layout, read_layout
from lmjax.data.tokenizers.hf.special import special_ids
from lmjax.data.tokenizers.offsets import Encoding, concatenate_encodings, make_encoding
from lmjax.data.tokenizers.sentencepiece import SPACE_MARK, encode_pieces
from lmjax.data.tokenizers.special_ids import SpecialIds, not_none, without_bos
from lmjax.errors import ConfigError

PIECES = "pieces.json"
SOURCE = "source.model"
TARGET = "target.model"
_LANGUAGE = re.compile(">>.*?<<", re.DOTALL)


class Pieces(SpecialIds):
    """SentencePiece models, and a vocabulary of its own.

    Args:
      layout: the models and the vocabulary.
      special: its special ids.
      files: the files it came with, by name, to be exported again.
    """

    def __init__(
        self, layout: Layout, *, special: SpecialIds, files: Mapping[str, bytes]
    ) -> None:
        super().__init__(**special.special_ids())
        self.layout = layout
        self.files = files
        self.vocab_size = len(layout.pieces)
        self._cut = _processor(layout.source)
        self._join = _processor(layout.target) if layout.target else self._cut
        self._ids = layout.ids()
        self._spelled = re.compile(
            "|".join(map(re.escape, sorted(layout.spelled, key=len, reverse=True)))
            or "(?!)"
        )
        self._dropped = {self._ids[token] for token in layout.spelled}
        self._dropped |= {*self.stop_ids, *not_none(self.bos_id, self.pad_id)}

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, int32; special tokens that it spells are those."""
        pieces: list[str] = []
        for _, part, spelled in self._parts(text):
            pieces += [part] if spelled else self._cut.encode(part, out_type=str)
        return np.array(self._numbers(pieces), np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode several texts."""
        return [self.encode(text) for text in texts]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode several texts, and say which characters each token stands for."""
        return [concatenate_encodings(self._located(text)) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids; special ones are dropped."""
        array = np.asarray(ids, np.int64).tolist()
        pieces = [self.id_to_piece(i) for i in array if i not in self._dropped]
        text = self._join.decode_pieces(pieces).replace(SPACE_MARK, " ")
        return text.strip() if self.layout.target else text

    def id_to_piece(self, index: int) -> str:
        """Return how one id is written; "" where the vocabulary has a gap."""
        return self.layout.pieces[index] if 0 <= index < self.vocab_size else ""

    def word_starts(self) -> np.ndarray:
        """Return the pieces that begin with a space, and the special ones."""
        starts = [piece.startswith(SPACE_MARK) for piece in self.layout.pieces]
        for index in self._dropped:
            starts[index] = True
        return np.array(starts, bool)

    def for_targets(self) -> "Pieces":
        """Return the tokenizer that cuts what is translated to, as it should be cut."""
        layout = self.layout
        swapped = dataclasses.replace(layout, source=layout.target or layout.source)
        return Pieces(swapped, special=self, files=self.files)

    def save(self, directory: str | Path) -> None:
        """Write the models, the vocabulary and the files they came with."""
        layout = self.layout
        models = {SOURCE: layout.source}
        if layout.target:
            models[TARGET] = layout.target
        text = json.dumps(layout.pieces, ensure_ascii=False)
        write_files(directory, {**self.files, **models, PIECES: text.encode()})
        write_manifest(
            directory,
            kind="pieces",
            special=self.special_ids(),
            unk=layout.unk,
            spelled=layout.spelled,
            target=bool(layout.target),
            files=sorted(self.files),
        )

    def fingerprint(self) -> str:
        """Hash the models, the vocabulary, and the special ids."""
        layout, special = self.layout, self.special_ids()
        rest = repr([layout.pieces, layout.unk, layout.spelled, special])
        hashed = [layout.source, layout.target or b"", rest.encode()]
        return hashlib.sha256(b"\0".join(hashed)).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        # For a worker process, which encodes: what only exports need stays behind.
        return _rebuild, (self.layout, self.special_ids())

    def _located(self, text: str) -> Iterator[tuple[int, Encoding]]:
        """Yield where each part of a text begins, and its tokens."""
        for begin, part, spelled in self._parts(text):
            if spelled:
                yield begin, make_encoding(self._numbers([part]), [(0, len(part))])
                continue
            for pieces, found in encode_pieces(self._cut, [part]):
                yield begin, make_encoding(self._numbers(pieces), found.offsets)

    def _parts(self, text: str) -> Iterator[tuple[int, str, bool]]:
        """Yield where each part of a text begins, it, and whether it is one token."""
        end = 0
        for match in self._spelled.finditer(text):
            yield from self._plain(end, text[end : match.start()])
            yield match.start(), match[0], True
            end = match.end()
        yield from self._plain(end, text[end:])

    def _plain(self, begin: int, text: str) -> Iterator[tuple[int, str, bool]]:
        if self.layout.target and (language := _LANGUAGE.match(text)):
            yield begin, language[0], True
            begin, text = begin + language.end(), text[language.end() :]
        yield begin, text, False

    def _numbers(self, pieces: Sequence[str]) -> list[int]:
        unk_id = self._ids[self.layout.unk]
        return [self._ids.get(piece, unk_id) for piece in pieces]


def make(origin: Origin, *, bos: bool) -> Pieces:
    """Open the tokenizer of a Hugging Face directory.

    Args:
      origin: its files.
      bos: documents begin as its own model's do; else with nothing.

    Raises:
      ConfigError: a file is damaged, or laid out in a way not known here.
    """
    layout, wrap = read_layout(origin)
    ids = layout.ids()
    prefix, suffix, pair = (
        tuple(ids[token] for token in tokens if token in ids) for tokens in wrap
    )
    special = special_ids(
        origin,
        token_to_id=ids.get,
        wrap=(prefix, suffix, pair),
        size=len(layout.pieces),
    )
    return Pieces(
        layout, special=special if bos else without_bos(special), files=origin.files
    )


def load(directory: Path, manifest: Mapping[str, Any]) -> Pieces:
    """Load what `Pieces.save` wrote."""
    special = SpecialIds(**manifest["special"])
    try:
        layout = Layout(
            source=read_file(directory / SOURCE),
            target=read_file(directory / TARGET) if manifest["target"] else None,
            pieces=json.loads(read_file(directory / PIECES)),
            unk=manifest["unk"],
            spelled=manifest["spelled"],
        )
        return Pieces(
            layout,
            special=special if manifest.get("bos", True) else without_bos(special),
            files={name: read_file(directory / name) for name in manifest["files"]},
        )
    except RuntimeError as error:
        raise ConfigError(f"{directory}: not a SentencePiece model") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{directory / PIECES}: not JSON: {error}") from error


def _rebuild(layout: Layout, special: Mapping[str, Any]) -> Pieces:
    return Pieces(layout, special=SpecialIds(**special), files={})


def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)
