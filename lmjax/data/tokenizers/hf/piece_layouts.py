"""How Hugging Face directories number the pieces of SentencePiece models."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import sentencepiece

from lmjax.data.tokenizers.hf.convert import added_tokens
from lmjax.data.tokenizers.hf.directory import Origin, content

# The roles of what stands before, after and between texts, by family.
_WRAPS: dict[str, tuple[tuple[str, ...], ...]] = {
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
_NUM_SENTINELS = 100  # T5's, where no file says how many


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The models of a tokenizer and its vocabulary.

    Attributes:
      source: the SentencePiece model that cuts text.
      target: the one that joins pieces, where that is another.
      pieces: all pieces by their ids.
      unk: the piece for what is not among them.
      spelled: special tokens that a text may spell.
    """

    source: bytes
    target: bytes | None = None
    pieces: Sequence[str]
    unk: str
    spelled: Sequence[str]

    def ids(self) -> dict[str, int]:
        """Return the ids of the pieces; the first one's, where two are equal."""
        numbered = reversed(list(enumerate(self.pieces)))
        return {piece: index for index, piece in numbered if piece}


def read_layout(origin: Origin) -> tuple[Layout, list[tuple[str, ...]]]:
    """Return the layout of a directory, and the tokens that stand around texts.

    Raises:
      ConfigError: a file is damaged, or the family's layout is not known here.
    """
    family = "marian" if len(origin.layout) == 3 else origin.family
    if family not in _WRAPS:
        raise origin.unknown()
    source = _opened(origin, origin.layout[0])
    if family == "marian":
        _opened(origin, origin.layout[1])
        pieces, tokens = _marian(origin), dict(_FAIRSEQ)
    else:
        pieces, tokens = _numbered(origin, family, source)
    for role in tokens:
        tokens[role] = origin.token(role) or tokens[role]
    if tokens["unk"] not in pieces:
        raise origin.damaged(origin.layout[-1], f"has no {tokens['unk']!r}")
    spelled = {*tokens.values(), *_additional(origin), *_extra_ids(pieces)}
    layout = Layout(
        source=origin.files[origin.layout[0]],
        target=origin.files[origin.layout[1]] if family == "marian" else None,
        pieces=pieces,
        unk=tokens["unk"],
        spelled=sorted(spelled & set(pieces)),
    )
    wrap = [tuple(tokens.get(role, "") for role in part) for part in _WRAPS[family]]
    return layout, wrap


def _opened(origin: Origin, name: str) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=origin.files[name])
    except RuntimeError as error:
        raise origin.damaged(name, "not a SentencePiece model") from error


def _marian(origin: Origin) -> list[str]:
    if origin.config.get("separate_vocabs"):
        raise origin.damaged("tokenizer_config.json", "two vocabularies: unsupported")
    vocab = origin.json_object("vocab.json")
    if not all(type(i) is int and 0 <= i < 2 * len(vocab) for i in vocab.values()):
        raise origin.damaged("vocab.json", "not a vocabulary of pieces and ids")
    return _placed([], [(index, piece) for piece, index in vocab.items()])


def _numbered(
    origin: Origin, family: str, model: sentencepiece.SentencePieceProcessor
) -> tuple[list[str], dict[str, str]]:
    """Return the pieces by their ids, and the tokens that have a role."""
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
    if family == "t5" or "extra_ids" in origin.config:
        count = _num_sentinels(origin)
        sentinels = [f"<extra_id_{i}>" for i in reversed(range(count))]
        known = set(pieces)
        pieces += [sentinel for sentinel in sentinels if sentinel not in known]
    added = [(i, str(content(token))) for i, token in added_tokens(origin, ())]
    return _placed(pieces, added), tokens


def _num_sentinels(origin: Origin) -> int:
    said = origin.config.get("extra_ids")
    if isinstance(said, int):
        return said
    if origin.model_type in ("mt5", "umt5"):
        return 0
    return len(list(_extra_ids(_additional(origin)))) or _NUM_SENTINELS


def _extra_ids(tokens: Sequence[str]) -> Iterator[str]:
    return (token for token in tokens if re.fullmatch(r"<extra_id_\d+>", token))


def _additional(origin: Origin) -> list[str]:
    """Return the special tokens that have no role."""
    found = []
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            tokens = origin.settings[name].get(key) or []
            listed = tokens.values() if isinstance(tokens, dict) else tokens
            found += [text for token in listed if (text := content(token))]
    return [*found, *(str(content(token)) for _, token in added_tokens(origin, ()))]


def _placed(pieces: list[str], more: Sequence[tuple[int, str]]) -> list[str]:
    """Return the pieces with others at their ids; "" where there is a gap."""
    size = max([len(pieces), *(index + 1 for index, _ in more)])
    placed = pieces + [""] * (size - len(pieces))
    for index, piece in more:
        placed[index] = piece
    return placed
