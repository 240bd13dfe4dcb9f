"""Tokenizers as files of a Hugging Face directory.

transformers reads them as lmjax does: a tokenizer.json with the pieces and the ids
around a text, and a tokenizer_config.json with its class and its special tokens. The
original files of an imported tokenizer are written again where they say the same.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from lmjax.data.tokenizers.hf import from_sentencepiece, tokenizer
from lmjax.data.tokenizers.hf.convert import template_processing
from lmjax.data.tokenizers.hf.directory import files_in_memory
from lmjax.data.tokenizers.hf.library import FILE
from lmjax.data.tokenizers.hf.pieces import PieceTokenizer
from lmjax.data.tokenizers.hf.special import Template
from lmjax.data.tokenizers.hf.tokenizer import HFTokenizer
from lmjax.data.tokenizers.plain import Bytes
from lmjax.data.tokenizers.sentencepiece import SentencePiece
from lmjax.data.tokenizers.special_ids import not_none
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import UserError

CONFIG = "tokenizer_config.json"
_CLASS = "PreTrainedTokenizerFast"
_NEVER_IN_TEXT = 0xFF  # a byte that UTF-8 does not have
# Settings of an imported tokenizer that a tokenizer.json replaces.
_REPLACED = (
    "added_tokens_decoder",
    "tokenizer_class",
    "add_bos_token",
    "add_eos_token",
    "auto_map",
)


@dataclasses.dataclass(frozen=True)
class Export:
    """The files of a tokenizer by name, and for which texts they give other ids."""

    files: Mapping[str, bytes]
    differences: tuple[str, ...] = ()
    is_generic: bool = False  # for any family, as no class of transformers has it


def export(
    saved: Tokenizer,
    *,
    template: Template,
    model_config: Mapping[str, Any],
    token_types: bool,
) -> Export:
    """Return the files of a tokenizer for a directory.

    Args:
      saved: the tokenizer.
      template: the ids around texts.
      model_config: the config.json beside them.
      token_types: the model tells the two texts of a pair apart.

    Raises:
      UserError: a tokenizer.json cannot hold the tokenizer.
    """
    if _say_the_same(saved, template, model_config):
        return Export(getattr(saved, "files", {}))
    parts, differences, settings = _parts(saved)
    tokens = _special_tokens(saved)
    parts["added_tokens"] = _added_tokens(saved, parts, tokens.values())
    ids = {token["content"]: token["id"] for token in parts["added_tokens"]}
    parts["post_processor"] = template_processing(
        *(map(saved.id_to_piece, part) for part in template),
        token_to_id=ids.get,
        types=token_types,
    )
    names_of_inputs = ["input_ids", *["token_type_ids"] * token_types, "attention_mask"]
    settings |= tokens | {
        "additional_special_tokens": [saved.id_to_piece(i) for i in saved.sentinel_ids],
        "clean_up_tokenization_spaces": saved.cleans_up,
        "model_input_names": names_of_inputs,
        "tokenizer_class": _CLASS,
    }
    content = {"version": "1.0", "truncation": None, "padding": None, **parts}
    files = {FILE: _to_bytes(content), CONFIG: _to_bytes(settings, indent=2)}
    templates = getattr(saved, "files", {})
    kept = {n: c for n, c in templates.items() if n.startswith("chat_template.")}
    return Export(files | kept, tuple(differences), is_generic=True)


def choose_pad_id(saved: Tokenizer) -> int | None:
    """Return an id for padding: its own, or one that no text has, or the end's."""
    if saved.pad_id is not None:
        return saved.pad_id
    if isinstance(saved, Bytes):
        return _NEVER_IN_TEXT
    return next(iter(not_none(unknown_id(saved), saved.eos_id)), None)


def unknown_id(saved: Tokenizer) -> int | None:
    """Return the id of unknown pieces, if there is one."""
    if isinstance(saved, SentencePiece):
        return saved.unk_id
    if isinstance(saved, PieceTokenizer):
        return saved.vocabulary.piece_ids()[saved.vocabulary.unk]
    if isinstance(saved, HFTokenizer):
        model = json.loads(saved.serialized)["model"]
        unk = model.get("unk_token")
        return model["vocab"].get(unk) if unk else model.get("unk_id")
    return None


def _say_the_same(
    saved: Tokenizer, template: Template, model_config: Mapping[str, Any]
) -> bool:
    """Return whether the original files, beside this config.json, mean the same.

    transformers 5 reads SentencePiece models in its own way: only Marian's, of which
    there are two, are kept.
    """
    if isinstance(saved, PieceTokenizer) and saved.vocabulary.target:
        return bool(model_config["model_type"] == "marian")
    if not isinstance(saved, HFTokenizer) or not saved.files:
        return False
    try:
        files = files_in_memory(saved.files, model_config=model_config)
        read = tokenizer.build(files, bos=True)
    except UserError:
        return False
    if len(files.format) == 2 and read.mask_id is not None:
        return False  # RoBERTa's mask takes the space before it; there it would not
    around = Template(read.prefix_ids, read.suffix_ids, read.pair_ids)
    return around == template and read.encodes_like(saved)


def _parts(saved: Tokenizer) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """Return the parts of a tokenizer.json, differences, and settings."""
    split = {"split_special_tokens": True}  # texts do not spell special tokens
    if isinstance(saved, Bytes):
        return _byte_parts(saved), [], split
    if isinstance(saved, SentencePiece):
        parts, differences = from_sentencepiece.convert(
            saved.model, lossless=saved.lossless
        )
        return parts, differences, split
    if isinstance(saved, PieceTokenizer):
        if saved.vocabulary.target:
            raise UserError(
                "tokenizer: has a vocabulary for two SentencePiece models, as Marian; "
                "no other family can hold it"
            )
        parts, differences = from_sentencepiece.convert(
            saved.vocabulary.source, lossless=False, names=saved.vocabulary.pieces
        )
        return parts, differences, _own_settings(saved.files)
    assert isinstance(saved, HFTokenizer)
    settings = _own_settings(saved.files)
    if saved.split_special_tokens:
        settings |= split
    return json.loads(saved.serialized), [], settings


def _own_settings(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the settings of an imported tokenizer that stay."""
    config = json.loads(files.get(CONFIG, b"{}"))
    kept = ("chat_template", "model_max_length", "padding_side", "truncation_side")
    return {name: config[name] for name in kept if name in config}


def _byte_parts(saved: Bytes) -> dict[str, Any]:
    """Return a vocabulary of bytes, to which all characters fall back."""
    vocab = {saved.id_to_piece(i): i for i in range(saved.vocab_size)}
    decoders = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    model = {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": True}
    return {
        "normalizer": None,
        "pre_tokenizer": None,
        "model": {"dropout": None, "unk_token": None, "fuse_unk": False, **model},
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _special_tokens(saved: Tokenizer) -> dict[str, str]:
    """Return the special tokens by their keys in tokenizer_config.json."""
    ids = {
        "bos_token": saved.bos_id,
        "eos_token": saved.eos_id,
        "unk_token": unknown_id(saved),
        "pad_token": choose_pad_id(saved),
        "mask_token": saved.mask_id,
    }
    return {key: saved.id_to_piece(i) for key, i in ids.items() if i is not None}


def _added_tokens(
    saved: Tokenizer, parts: Mapping[str, Any], special: Iterable[str]
) -> list[dict[str, Any]]:
    """Return the added tokens: those that are there, and the special ones."""
    added = {token["id"]: token for token in parts.get("added_tokens", ())}
    if isinstance(saved, SentencePiece):
        for i, name in from_sentencepiece.find_user_defined(saved.model):
            added[i] = {"id": i, **_describe(name, special=False)}
    names = [*special, *map(saved.id_to_piece, saved.sentinel_ids)]
    for part in (saved.prefix_ids, saved.suffix_ids, saved.pair_ids):
        names += map(saved.id_to_piece, part)
    if isinstance(saved, PieceTokenizer):
        names += saved.vocabulary.spelled
    for i, name in _find_ids(saved, names):
        added.setdefault(i, {"id": i, **_describe(name)})
    return [added[i] for i in sorted(added)]


def _find_ids(saved: Tokenizer, names: Iterable[str]) -> Iterable[tuple[int, str]]:
    wanted = set(names)
    for i in range(saved.vocab_size):
        if (name := saved.id_to_piece(i)) in wanted:
            yield i, name


def _describe(name: str, *, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": name, **flags, "special": special}


def _to_bytes(value: Mapping[str, Any], **options: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, **options) + "\n").encode()
