"""The tokenizer of a GGUF file as files of a Hugging Face directory, and back.

Two kinds: "gpt2", BPE on bytes, whose way to split words has a name; and "llama", BPE
of SentencePiece, with scores. Unigram models are refused: llama.cpp spells no bytes
there.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.data.tokenizers.hf.convert import template_processing
from lmjax.data.tokenizers.hf.pieces import PieceTokenizer
from lmjax.data.tokenizers.hf.special import Template
from lmjax.data.tokenizers.hf.tokenizer import HFTokenizer
from lmjax.data.tokenizers.sentencepiece import (
    SPACE_MARK,
    SentencePiece,
    is_bpe,
    parse_proto,
)
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import UserError, nearest

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # of tokens
_PREFIX = "tokenizer.ggml."
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def _byte_level(*, splits_words: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": splits_words,
    }


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _words(digits: str) -> str:
    """Return how Llama 3 and Qwen 2 split words; they differ in numbers."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s"
        r"\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_DIGITS = {"type": "Digits", "individual_digits": True}
# `tokenizer.ggml.pre`: how the pre-tokenizer of a tokenizer.json splits words.
_PRE: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_byte_level(splits_words=True)],
    "smollm": [_DIGITS, _byte_level(splits_words=True)],
    "llama-bpe": [_split(_words(r"\p{N}{1,3}")), _byte_level(splits_words=False)],
    "qwen2": [_split(_words(r"\p{N}")), _byte_level(splits_words=False)],
}
_SAME_PRE = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "starcoder": "smollm"}
_NFC = ("qwen2",)  # normalize the text
_BEGINS = ("llama-bpe",)  # begin with BOS unless the file says otherwise


def to_files(fields: Mapping[str, Any], *, file: str) -> dict[str, bytes]:
    """Return the files of a tokenizer, by their names in a Hugging Face directory.

    Args:
      fields: the values of the keys of a GGUF file.
      file: how errors name it.

    Raises:
      UserError: the file has no tokenizer, or one of another kind.
    """
    own = _own_fields(fields)
    kind = own.get("model")
    if kind not in ("gpt2", "llama"):
        raise UserError(f"{file}: {_PREFIX}model = {kind!r}: allowed: 'gpt2', 'llama'")
    needed = ("merges",) if kind == "gpt2" else ("scores",)
    for key in ("tokens", "token_type", *needed):
        if not isinstance(own.get(key), list):
            raise UserError(f"{file}: {_PREFIX}{key}: is missing")
    lengths = {k: len(own[k]) for k in ("tokens", "token_type", "scores") if k in own}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{file}: {_PREFIX}*: lists of other lengths: {lengths}")
    tokens = own["tokens"]
    roles = {role: own.get(f"{name}_token_id") for role, name in _ROLES.items()}
    named = {
        f"{role}_token": tokens[i]
        for role, i in roles.items()
        if i is not None and 0 <= i < len(tokens)
    }
    settings: dict[str, Any] = {**named, "clean_up_tokenization_spaces": False}
    if "chat_template" in own:
        settings["chat_template"] = own["chat_template"]
    if kind == "llama":
        begins = bool(own.get("add_bos_token", True))
        settings |= {"tokenizer_class": "LlamaTokenizer", "add_bos_token": begins}
        settings["add_eos_token"] = bool(own.get("add_eos_token", False))
        settings["added_tokens_decoder"] = _spelled_tokens(own, named)
        content = {"tokenizer.model": _write_sentencepiece(own, named)}
    else:
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        parts = _byte_level_parts(own, named, file=file)
        content = {"tokenizer.json": json.dumps(parts, ensure_ascii=False).encode()}
    return {**content, "tokenizer_config.json": json.dumps(settings).encode()}


def _spelled_tokens(
    own: Mapping[str, Any], named: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Return the tokens without a role that a text can spell, such as <|im_start|>."""
    found = {}
    for i, (token, kind) in enumerate(
        zip(own["tokens"], own["token_type"], strict=True)
    ):
        if kind in (_CONTROL, _USER_DEFINED) and token not in named.values():
            added = _added_token(i, token, special=kind == _CONTROL)
            found[str(added.pop("id"))] = added
    return found


def _own_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    own = {k.removeprefix(_PREFIX): v for k, v in fields.items() if _PREFIX in k}
    if "tokenizer.chat_template" in fields:
        own["chat_template"] = fields["tokenizer.chat_template"]
    return own


def stop_ids(fields: Mapping[str, Any]) -> list[int]:
    """Return the ids that end a text or a turn."""
    own = _own_fields(fields)
    ids = [own.get("eos_token_id"), own.get("eot_token_id")]
    return list(dict.fromkeys(int(i) for i in ids if i is not None))


def _byte_level_parts(
    own: Mapping[str, Any], named: Mapping[str, str], *, file: str
) -> dict[str, Any]:
    """Return a tokenizer.json.

    Raises:
      UserError: the way to split words is not known.
    """
    pre = str(own.get("pre", "default"))
    pre = _SAME_PRE.get(pre, pre)
    if pre not in _PRE:
        raise UserError(
            f"{file}: {_PREFIX}pre = {pre!r}: allowed: {', '.join(_PRE)}"
            f"{nearest(pre, list(_PRE))}"
        )
    tokens, types = own["tokens"], own["token_type"]
    vocab = {t: i for i, t in enumerate(tokens) if types[i] != _UNUSED}
    added = [
        _added_token(i, tokens[i], special=kind == _CONTROL)
        for i, kind in enumerate(types)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    around = {
        end: [named[f"{end}_token"]]
        if own.get(f"add_{end}_token", end == "bos" and pre in _BEGINS)
        and f"{end}_token" in named
        else []
        for end in ("bos", "eos")
    }
    processor = template_processing(
        around["bos"], around["eos"], around["bos"], token_to_id=vocab.get
    )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre in _NFC else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE[pre]},
        "post_processor": processor if any(around.values()) else None,
        "decoder": _byte_level(splits_words=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": vocab,
            "merges": [merge.split(" ", 1) for merge in own["merges"]],
        },
    }


def _added_token(index: int, content: str, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, **flags, "special": special}


def _write_sentencepiece(own: Mapping[str, Any], named: Mapping[str, str]) -> bytes:
    """Return a serialized SentencePiece model."""
    proto = parse_proto(b"")
    columns = zip(own["tokens"], own["scores"], own["token_type"], strict=True)
    for text, score, kind in columns:
        proto.pieces.add(piece=text, score=score, type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type = trainer.BPE
    trainer.byte_fallback = _BYTE in own["token_type"]
    trainer.vocab_size = len(proto.pieces)
    for role in _ROLES:
        index = own.get(f"{_ROLES[role]}_token_id")
        setattr(trainer, f"{role}_id", -1)
        if index is not None and f"{role}_token" in named:
            setattr(trainer, f"{role}_id", int(index))
            setattr(trainer, f"{role}_piece", named[f"{role}_token"])
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(own.get("add_space_prefix", True))
    extra = bool(own.get("remove_extra_whitespaces", False))
    normalizer.remove_extra_whitespaces = extra
    normalizer.escape_whitespaces = True
    return bytes(proto.SerializeToString())


def from_tokenizer(
    saved: Tokenizer,
    template: Template,
    *,
    num_tokens: int,
    chat_template: str | None,
) -> dict[str, Any]:
    """Return the keys of a GGUF file for a tokenizer.

    Args:
      saved: the tokenizer.
      template: the ids around texts.
      num_tokens: of the model; it may have more than the tokenizer.
      chat_template: how messages become a text, in Jinja.

    Raises:
      UserError: the format cannot hold it.
    """
    if isinstance(saved, HFTokenizer):
        own = _from_json(json.loads(saved.serialized))
    elif isinstance(saved, SentencePiece):
        own = _from_sentencepiece(saved.model)
    elif isinstance(saved, PieceTokenizer) and not saved.vocabulary.target:
        own = _from_sentencepiece(saved.vocabulary.source)
        if own["tokens"] != list(saved.vocabulary.pieces):
            raise _error("has other pieces than its SentencePiece model")
    else:
        raise _error(f"is a {type(saved).__name__}, neither BPE nor SentencePiece")
    if template.suffix or template.prefix not in ((), (saved.bos_id,)):
        raise _error("writes other ids around a text than BOS before it")
    for i in range(len(own["tokens"]), num_tokens):
        own["tokens"].append(f"[PAD{i}]")
        own["token_type"].append(_UNUSED)
        if "scores" in own:
            own["scores"].append(-1e4)
    stops = [int(i) for i in saved.stop_ids]
    ids = {
        "bos": saved.bos_id,
        "eos": saved.eos_id if saved.eos_id is not None else next(iter(stops), None),
        "padding": saved.pad_id,
        "eot": next((i for i in stops if i != saved.eos_id), None),
    }
    own |= {f"{name}_token_id": int(i) for name, i in ids.items() if i is not None}
    own |= {"add_bos_token": bool(template.prefix), "add_eos_token": False}
    fields = {_PREFIX + key: value for key, value in own.items()}
    if chat_template is not None:
        fields["tokenizer.chat_template"] = chat_template
    return fields


def _error(why: str) -> UserError:
    return UserError(f"--to: GGUF cannot hold the tokenizer: it {why}")


def _from_json(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a tokenizer.json.

    Raises:
      UserError: it is of another kind, or splits words in an unknown way.
    """
    model = parsed["model"]
    if model["type"] != "BPE":
        raise _error(f"is of type {model['type']}, not BPE")
    vocab = dict(model["vocab"])
    added = parsed.get("added_tokens", ())
    vocab |= {token["content"]: token["id"] for token in added}
    tokens = [f"[PAD{i}]" for i in range(max(vocab.values()) + 1)]
    types = [_UNUSED] * len(tokens)
    for token, i in vocab.items():
        tokens[i], types[i] = token, _NORMAL
    for token in added:
        types[token["id"]] = _CONTROL if token["special"] else _USER_DEFINED
    own: dict[str, Any] = {"tokens": tokens, "token_type": types}
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    if model.get("byte_fallback"):
        return own | _scores(parsed, own, merges)
    joined = [" ".join(merge) for merge in merges]
    return own | {"model": "gpt2", "pre": _find_pre(parsed), "merges": joined}


def _find_pre(parsed: Mapping[str, Any]) -> str:
    """Return the name of the way that a tokenizer.json splits words.

    Raises:
      UserError: it has none.
    """
    pre = parsed.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    normalizer = (parsed.get("normalizer") or {}).get("type")
    for name, known in _PRE.items():
        wanted = "NFC" if name in _NFC else None
        if (
            _without_defaults(steps) == _without_defaults(known)
            and normalizer == wanted
        ):
            return name
    raise _error(
        f"splits words in another way than {', '.join(_PRE)}, the ones that lmjax "
        "knows in this format"
    )


def _without_defaults(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return pre-tokenizers without what has no effect on ids."""
    kept = [{k: v for k, v in step.items() if k != "trim_offsets"} for step in steps]
    return [{**step, "use_regex": True} | step for step in kept if step]


def _scores(
    parsed: Mapping[str, Any],
    own: Mapping[str, Any],
    merges: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """Return the fields of SentencePiece's BPE that was written as a tokenizer.json.

    Raises:
      UserError: it prepares texts in another way than Llama's.
    """
    steps = _walk([parsed.get("normalizer"), parsed.get("pre_tokenizer")])
    others = {str(step["type"]) for step in steps if not _marks_spaces(step)}
    if others:
        raise _error(f"prepares texts by {', '.join(sorted(others))}")
    types = list(own["token_type"])
    places = {token: i for i, token in enumerate(own["tokens"])}
    ranks = {
        left + right: rank for rank, (left, right) in reversed([*enumerate(merges)])
    }
    # What no merge makes, single characters, comes after all that one makes.
    scores = [-float(ranks.get(t, len(ranks) + i)) for i, t in enumerate(own["tokens"])]
    for i in range(256):
        if (place := places.get(f"<0x{i:02X}>")) is not None:
            types[place] = _BYTE
    fields: dict[str, Any] = {"model": "llama", "pre": "default", "scores": scores}
    unk = parsed["model"].get("unk_token")
    if unk in places:
        types[places[unk]] = _UNKNOWN
        fields["unknown_token_id"] = places[unk]
    begins = any(
        step["type"] == "Prepend" or step.get("prepend_scheme", "never") != "never"
        for step in steps
    )
    marked = [token.replace(" ", SPACE_MARK) for token in own["tokens"]]
    own_fields = {"tokens": marked, "token_type": types, "add_space_prefix": begins}
    return fields | own_fields


def _marks_spaces(step: Mapping[str, Any]) -> bool:
    """Return whether a step does no more than to write spaces as U+2581, or back."""
    if step["type"] == "Replace":
        return {step["pattern"].get("String"), step["content"]} == {" ", SPACE_MARK}
    return step["type"] in ("Metaspace", "Prepend", "Sequence")


def _walk(value: Any) -> list[Mapping[str, Any]]:
    """Return all objects with a type in a JSON value."""
    if isinstance(value, Mapping):
        nested = [part for v in value.values() for part in _walk(v)]
        return [value, *nested] if "type" in value else nested
    return [p for v in value for p in _walk(v)] if isinstance(value, list) else []


def _from_sentencepiece(model: bytes) -> dict[str, Any]:
    """Return the fields of a SentencePiece model.

    Raises:
      UserError: it is not of BPE, or normalizes characters.
    """
    if not is_bpe(model):
        raise _error("is a SentencePiece model that is not of BPE")
    proto = parse_proto(model)
    spec = proto.normalizer_spec
    if spec.precompiled_charsmap:
        raise _error(f"normalizes characters ({spec.name})")
    if spec.remove_extra_whitespaces:
        raise _error("drops spaces (remove_extra_whitespaces), as llama.cpp does not")
    pieces = proto.pieces
    if not proto.trainer_spec.byte_fallback:
        raise _error("has no pieces for bytes, which llama.cpp needs")
    return {
        "model": "llama",
        "pre": "default",
        "tokens": [p.piece for p in pieces],
        "scores": [float(p.score) for p in pieces],
        "token_type": [int(p.type) for p in pieces],
        "unknown_token_id": [int(p.type) for p in pieces].index(_UNKNOWN),
        "add_space_prefix": bool(spec.add_dummy_prefix),
    }
