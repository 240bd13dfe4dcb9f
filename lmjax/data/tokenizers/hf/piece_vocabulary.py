"""The ids that Hugging Face tokenizers give to the pieces of SentencePiece models."""

import dataclasses
import re
from collections.abc import Sequence

import sentencepiece

from lmjax.data.tokenizers.hf.added import (
    ROLES,
    has_room,
    list_added_tokens,
    list_role_free_tokens,
    warn_left_out,
)
from lmjax.data.tokenizers.hf.directory import HFTokenizerFiles, token_text

# The roles of the tokens before, after and between texts, by family.
_TEMPLATES: dict[str, tuple[tuple[str, ...], ...]] = {
    "": ((), (), ()),
    **dict.fromkeys(("t5", "mt5", "umt5"), ((), ("eos",), ("eos",))),
    **dict.fromkeys(("marian", "marianmt"), ((), ("eos",), ())),
    **dict.fromkeys(
        ("llama", "codellama", "mistral", "gemma", "gemma2"), (("bos",), (), ("bos",))
    ),
    **dict.fromkeys(("xlmroberta", "camembert"), (("bos",), ("eos",), ("eos",) * 2)),
}
_FAIRSEQ = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
_FAIRSEQ |= {"mask": "<mask>", "cls": "<s>", "sep": "</s>"}
_NUM_SENTINELS = 100  # of T5, by default


@dataclasses.dataclass(frozen=True, kw_only=True)
class PieceVocabulary:
    """The SentencePiece models of a tokenizer, and its vocabulary.

    Attributes:
      source: the model that splits text into pieces.
      target: the model that joins pieces to text, if it is another.
      pieces: all pieces by id; "" for an unused id.
      unk: the piece for unknown pieces.
      spelled: the special tokens that are recognised in a text.
    """

    source: bytes
    target: bytes | None = None
    pieces: Sequence[str]
    unk: str
    spelled: Sequence[str]

    def piece_ids(self) -> dict[str, int]:
        """Return the ids of the pieces; the lowest one of a repeated piece."""
        enumerated = reversed(list(enumerate(self.pieces)))
        return {piece: index for index, piece in enumerated if piece}


def read_vocabulary(
    files: HFTokenizerFiles,
) -> tuple[PieceVocabulary, list[tuple[str, ...]]]:
    """Return the vocabulary of a tokenizer, and its tokens around texts.

    The latter are those before a text, after it, and between two texts.

    Raises:
      UserError: a file is damaged, or the family is not known.
    """
    family = "marian" if len(files.format) == 3 else files.family
    if family not in _TEMPLATES:
        raise files.unknown_family_error()
    source = _open_model(files, files.format[0])
    if family == "marian":
        _open_model(files, files.format[1])
        pieces, tokens = _read_marian_pieces(files), dict(_FAIRSEQ)
    else:
        pieces, tokens = _number_pieces(files, family, source)
    for role in tokens:
        tokens[role] = files.special_token(role) or tokens[role]
    given = [files.special_token(role) for role in ROLES]
    for token in (*given, *list_role_free_tokens(files)):
        if token and token not in pieces and family != "marian":
            if has_room(files, len(pieces)):
                pieces.append(token)
            else:
                warn_left_out(token)
    if tokens["unk"] not in pieces:
        raise files.error(files.format[-1], f"has no {tokens['unk']!r}")
    spelled = {*tokens.values(), *_list_role_free(files), *_filter_sentinels(pieces)}
    spelled |= {token for token in given if token}
    vocabulary = PieceVocabulary(
        source=files.contents[files.format[0]],
        target=files.contents[files.format[1]] if family == "marian" else None,
        pieces=pieces,
        unk=tokens["unk"],
        spelled=sorted(spelled & set(pieces)),
    )
    template = [
        tuple(tokens.get(role, "") for role in roles) for roles in _TEMPLATES[family]
    ]
    return vocabulary, template


def _open_model(
    files: HFTokenizerFiles, name: str
) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=files.contents[name])
    except RuntimeError as error:
        raise files.error(name, "not a SentencePiece model") from error


def _read_marian_pieces(files: HFTokenizerFiles) -> list[str]:
    if files.config.get("separate_vocabs"):
        raise files.error(
            "tokenizer_config.json", "separate_vocabs = true is not supported"
        )
    vocab = files.read_json("vocab.json")
    if not all(type(i) is int and 0 <= i < 2 * len(vocab) for i in vocab.values()):
        raise files.error("vocab.json", "not a vocabulary of pieces and ids")
    return _insert_pieces([], [(index, piece) for piece, index in vocab.items()])


def _number_pieces(
    files: HFTokenizerFiles, family: str, model: sentencepiece.SentencePieceProcessor
) -> tuple[list[str], dict[str, str]]:
    """Return the pieces by their ids, and the special tokens by their roles."""
    pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
    if family == "xlmroberta":
        pieces = ["<s>", "<pad>", "</s>", "<unk>", *pieces[3:], "<mask>"]
        return pieces, dict(_FAIRSEQ)
    if family == "camembert":
        unused = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>"]
        return [*unused, *pieces, "<mask>"], dict(_FAIRSEQ)
    ids = {
        "bos": model.bos_id(),
        "eos": model.eos_id(),
        "unk": model.unk_id(),
        "pad": model.pad_id(),
    }
    tokens = {role: pieces[index] for role, index in ids.items() if index >= 0}
    if family == "t5" or "extra_ids" in files.config:
        count = _count_sentinels(files)
        sentinels = [f"<extra_id_{i}>" for i in reversed(range(count))]
        known = set(pieces)
        pieces += [sentinel for sentinel in sentinels if sentinel not in known]
    added = [(i, str(token_text(token))) for i, token in list_added_tokens(files)]
    return _insert_pieces(pieces, added), tokens


def _count_sentinels(files: HFTokenizerFiles) -> int:
    count = files.config.get("extra_ids")
    if isinstance(count, int):
        return count
    if files.model_type in ("mt5", "umt5"):
        return 0
    return len(_filter_sentinels(_list_role_free(files))) or _NUM_SENTINELS


def _filter_sentinels(tokens: Sequence[str]) -> list[str]:
    return [token for token in tokens if re.fullmatch(r"<extra_id_\d+>", token)]


def _list_role_free(files: HFTokenizerFiles) -> list[str]:
    """Return the special and added tokens that have no role."""
    tokens = list_role_free_tokens(files)
    return [*tokens, *(str(token_text(token)) for _, token in list_added_tokens(files))]


def _insert_pieces(pieces: list[str], more: Sequence[tuple[int, str]]) -> list[str]:
    """Return the pieces with others at given ids; "" for unused ids."""
    size = max([len(pieces), *(index + 1 for index, _ in more)])
    result = pieces + [""] * (size - len(pieces))
    for index, piece in more:
        result[index] = piece
    return result
