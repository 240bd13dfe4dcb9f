"""SentencePiece models as parts of a tokenizer.json of the `tokenizers` library.

The pieces are spelled with spaces instead of U+2581, so that a U+2581 of the text is a
character like any other. Control pieces and bytes cannot be spelled in a text.
"""

import base64
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lmjax.data.tokenizers.sentencepiece import (
    SCORE_UNITS,
    SPACE_MARK,
    parse_proto,
)
from lmjax.errors import UserError

UNIGRAM, BPE, WORD = 1, 2, 3  # ModelType of sentencepiece_model.proto
_NORMAL, _UNKNOWN, _USER_DEFINED, _UNUSED = 1, 2, 4, 5  # types of pieces
_LOW = -1e4  # below the score of any text as short as a special piece
# Normalizations that compose characters, and those of them that drop U+0001.
_COMPOSING = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")
_DROPPED = "\x01"
_NOT_IN_TEXTS = "\uffff"  # a noncharacter


class Pieces(NamedTuple):
    """The pieces of a model, in the order of their ids: texts, scores and types."""

    texts: list[str]
    scores: list[float]
    types: list[int]

    def normal(self) -> set[str]:
        """Return the pieces that texts are split into."""
        pairs = zip(self.texts, self.types, strict=True)
        return {text for text, kind in pairs if kind in (_NORMAL, _USER_DEFINED)}


def convert(
    model: bytes, *, lossless: bool, names: Sequence[str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return `normalizer`, `pre_tokenizer`, `model` and `decoder` of a tokenizer.json.

    Args:
      model: the serialized SentencePiece model.
      lossless: a U+2581 of the text is encoded as bytes, not as a space.
      names: the pieces by id, where the vocabulary is not that of the model itself.

    Returns:
      The parts; and in words, for which texts the ids differ.

    Raises:
      UserError: the model has a setting that tokenizer.json cannot hold.
    """
    proto = parse_proto(model)
    spec, kind = proto.normalizer_spec, proto.trainer_spec.model_type
    if proto.trainer_spec.treat_whitespace_as_suffix or not spec.escape_whitespaces:
        raise UserError(
            "tokenizer: SentencePiece's treat_whitespace_as_suffix and "
            "escape_whitespaces = false: a tokenizer.json cannot hold them"
        )
    pieces = _list_pieces(proto, names)
    steps = list(_normalizers(spec, pieces, lossless=lossless))
    unknown = _unknown_characters(pieces) if kind == UNIGRAM else ""
    if kind == WORD:
        pieces = _end_words(pieces, steps)
    splits: list[dict[str, Any]] = []
    if unknown and proto.trainer_spec.byte_fallback:
        splits.append(_split(rf"[{re.escape(unknown)}]", "Isolated"))
    elif unknown:
        steps.append(_replace({"Regex": rf"[{re.escape(unknown)}]"}, SPACE_MARK))
    decoders: list[dict[str, Any]] = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if kind == WORD:
        decoders.append(_replace({"String": SPACE_MARK}, ""))
    if spec.add_dummy_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    parts = {
        "normalizer": _sequence("normalizers", steps),
        "pre_tokenizer": _sequence("pretokenizers", splits),
        "model": _model(proto.trainer_spec, pieces),
        "decoder": _sequence("decoders", decoders),
    }
    return parts, list(_differences(proto, pieces))


def find_user_defined(model: bytes) -> list[tuple[int, str]]:
    """Return id and piece of those that are found in a text before all others."""
    pieces = enumerate(parse_proto(model).pieces)
    return [
        (index, piece.piece.replace(SPACE_MARK, " "))
        for index, piece in pieces
        if piece.type == _USER_DEFINED
    ]


def _list_pieces(proto: Any, names: Sequence[str] | None) -> Pieces:
    """Return the pieces by their ids; those that only `names` has are special."""
    own = {p.piece: p for p in proto.pieces}
    texts, scores, types = [], [], []
    for name in [p.piece for p in proto.pieces] if names is None else names:
        piece = own.get(name)
        kind = piece.type if piece is not None else 0
        split = kind in (_NORMAL, _USER_DEFINED)
        texts.append(name.replace(SPACE_MARK, " ") if split else name)
        scores.append(float(piece.score) if piece is not None and split else _LOW)
        types.append(kind)
    return Pieces(texts, scores, types)


def _normalizers(
    spec: Any, pieces: Pieces, *, lossless: bool
) -> Iterator[dict[str, Any]]:
    """Yield what SentencePiece does with a text before it splits it."""
    if spec.precompiled_charsmap:
        yield from _charsmap(spec, pieces)
    if spec.remove_extra_whitespaces:
        yield _replace({"Regex": rf"\A +|[ {SPACE_MARK}]+\z"}, "")
        yield _replace({"Regex": " {2,}"}, " ")
    if not lossless:
        yield _replace({"String": SPACE_MARK}, " ")
    if spec.add_dummy_prefix:
        yield {"type": "Prepend", "prepend": " "}


def _charsmap(spec: Any, pieces: Pieces) -> Iterator[dict[str, Any]]:
    """Yield the replacement of characters.

    SentencePiece replaces the longest sequence of characters that has a rule. The
    library does so for whole grapheme clusters, of which it drops what is behind the
    shortest match. So compositions are left to NFC, and clusters are taken apart.
    """
    if spec.name in _COMPOSING:
        if not _has_marks_out_of_order(pieces):
            yield {"type": "NFC"}
        if spec.name.startswith("nmt"):  # its rules drop U+0001
            inside = r"(?!\A)(?=[\p{M}" + "\u200c\u200d])"
            pattern = rf"(?<=\r)(?=\n)|{inside}"
            yield _replace({"Regex": pattern}, _DROPPED)
    charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
    yield {"type": "Precompiled", "precompiled_charsmap": charsmap}


def _has_marks_out_of_order(pieces: Pieces) -> bool:
    """Return whether there are pieces of marks that people type in another order.

    Those are the marks with a class of their own, such as vowels of Arabic; NFC would
    put them in order.
    """
    single = (text for text in pieces.normal() if len(text) == 1)
    return any(9 < unicodedata.combining(text) < 200 for text in single)


def _unknown_characters(pieces: Pieces) -> str:
    """Return the characters of special pieces that no other piece has.

    If a text spells a special piece that has none of these, its other pieces have a
    better score.
    """
    normal = pieces.normal()
    special = set("".join(text for text in pieces.texts if text not in normal))
    return "".join(sorted(special - normal))


def _end_words(pieces: Pieces, steps: list[dict[str, Any]]) -> Pieces:
    """Return whole words as pieces of a unigram model, in which U+2581 ends a word.

    So no word is the beginning of another, and unknown words in a row become one id.
    """
    normal = pieces.normal()
    for special in set(pieces.texts) - normal:  # nothing that a text can spell
        steps.append(_replace({"String": special}, _NOT_IN_TEXTS * len(special)))
    steps.append(_replace({"Regex": r"(?<=[^ ])(?= |\z)"}, SPACE_MARK))
    texts = [text + SPACE_MARK * (text in normal) for text in pieces.texts]
    return pieces._replace(texts=texts)


def _model(spec: Any, pieces: Pieces) -> dict[str, Any]:
    if spec.model_type in (UNIGRAM, WORD):
        pairs = zip(pieces.texts, pieces.scores, strict=True)
        return {
            "type": "Unigram",
            "unk_id": _unknown_id(pieces),
            "vocab": [list(pair) for pair in pairs],
            "byte_fallback": bool(spec.byte_fallback),
        }
    vocab: dict[str, int] = {}
    for index, text in enumerate(pieces.texts):
        vocab.setdefault(text, index)
    unk = pieces.texts[_unknown_id(pieces)]
    merges = _merges(pieces) if spec.model_type == BPE else []
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": bool(spec.byte_fallback),
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }


def _unknown_id(pieces: Pieces) -> int:
    return pieces.types.index(_UNKNOWN)


def _merges(pieces: Pieces) -> list[tuple[str, str]]:
    """Return all pairs of pieces that make a piece, the best piece first."""
    normal = pieces.normal()
    made = sorted(
        (-score, index, text)
        for index, (text, score) in enumerate(
            zip(pieces.texts, pieces.scores, strict=True)
        )
        if text in normal
    )
    return [
        (text[:i], text[i:])
        for _, _, text in made
        for i in range(len(text) - 1, 0, -1)
        if text[:i] in normal and text[i:] in normal
    ]


def _differences(proto: Any, pieces: Pieces) -> Iterator[str]:
    """Yield for which texts the ids differ from SentencePiece's."""
    spec = proto.normalizer_spec
    if spec.precompiled_charsmap and spec.name not in _COMPOSING:
        yield f"texts to which the normalization {spec.name!r} applies"
    elif spec.precompiled_charsmap:
        yield "combining marks and Hangul letters that are not in Unicode's form NFC"
    fractions = {score * SCORE_UNITS % 1 for score in pieces.scores}
    if proto.trainer_spec.model_type == UNIGRAM and fractions != {0.0}:
        yield "runs of characters with several equally probable splits"
    if _UNUSED in pieces.types:
        yield "texts with an unused piece"


def _sequence(name: str, steps: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return {"type": "Sequence", name: list(steps)} if steps else None


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _split(pattern: str, behavior: str) -> dict[str, Any]:
    pattern_json = {"Regex": pattern}
    return {
        "type": "Split",
        "pattern": pattern_json,
        "behavior": behavior,
        "invert": False,
    }
