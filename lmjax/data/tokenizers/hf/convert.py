"""Older layouts of Hugging Face tokenizers, rewritten as a tokenizer.json.

WordPiece's vocab.txt (BERT) and the byte-level BPE of GPT-2 and RoBERTa.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from lmjax.data.tokenizers.hf.directory import Origin, content

# Families whose tokenizers these layouts are; "": whoever does not say.
_WORD_PIECE = {
    "",
    "bert",
    "convbert",
    "distilbert",
    "electra",
    "layoutlm",
    "mobilebert",
    "squeezebert",
}
_GPT2 = {"gpt2", "gptneo", "gptj", "gptbigcode", "opt"}
_ROBERTA = {"roberta", "bart", "longformer", "led", "mvp"}
_BERT_TOKENS = {
    "unk": "[UNK]",
    "sep": "[SEP]",
    "pad": "[PAD]",
    "cls": "[CLS]",
    "mask": "[MASK]",
}
_GPT2_TOKENS = dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>") | {"pad": ""}
_ROBERTA_TOKENS = {
    "bos": "<s>",
    "eos": "</s>",
    "unk": "<unk>",
    "sep": "</s>",
    "pad": "<pad>",
    "cls": "<s>",
    "mask": "<mask>",
}


def tokenizer_json(origin: Origin) -> bytes:
    """Return the tokenizer.json of a directory: its own, or one made of what it has.

    Raises:
      ConfigError: a file is damaged, or another family's.
    """
    if origin.layout == ("tokenizer.json",):
        return origin.files["tokenizer.json"]
    if origin.layout == ("vocab.txt",):
        made = _word_piece(origin)
    else:
        made = _byte_level(origin)
    return json.dumps(made, ensure_ascii=False).encode()


def _word_piece(origin: Origin) -> dict[str, Any]:
    if origin.family not in _WORD_PIECE:
        raise origin.unknown()
    pieces = origin.text("vocab.txt").removesuffix("\n").split("\n")
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokens = _tokens(origin, _BERT_TOKENS)
    for role in ("unk", "cls", "sep"):
        if tokens[role] not in vocab:
            raise origin.damaged("vocab.txt", f"has no {tokens[role]!r}")
    return _whole(
        origin,
        vocab=vocab,
        tokens=tokens,
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": origin.config.get("tokenize_chinese_chars", True),
            "strip_accents": origin.config.get("strip_accents"),
            "lowercase": origin.config.get("do_lower_case", True),
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=_around_texts(
            cls=(tokens["cls"], vocab[tokens["cls"]]),
            sep=(tokens["sep"], vocab[tokens["sep"]]),
        ),
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        model={
            "type": "WordPiece",
            "unk_token": tokens["unk"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    )


def _around_texts(*, cls: tuple[str, int], sep: tuple[str, int]) -> dict[str, Any]:
    """Return what puts [CLS] and [SEP] around a text and between two."""
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    before, after = (
        {"SpecialToken": {"id": token, "type_id": 0}} for token, _ in (cls, sep)
    )
    return {
        "type": "TemplateProcessing",
        "single": [before, first, after],
        "pair": [before, first, after, second, after],
        "special_tokens": {
            token: {"id": token, "ids": [index], "tokens": [token]}
            for token, index in (cls, sep)
        },
    }


def _byte_level(origin: Origin) -> dict[str, Any]:
    vocab_file, merges_file = origin.layout
    vocab = origin.json_object(vocab_file)
    _check_vocab(origin, vocab_file, vocab)
    roberta = _like_roberta(origin, vocab)
    tokens = _tokens(origin, _ROBERTA_TOKENS if roberta else _GPT2_TOKENS)
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": bool(origin.config.get("add_prefix_space", False)),
        "trim_offsets": True,
        "use_regex": True,
    }
    post_processor = byte_level
    if roberta:
        ends = {
            role: [tokens[role], vocab.get(tokens[role])] for role in ("sep", "cls")
        }
        post_processor = byte_level | {"type": "RobertaProcessing", **ends}
        del post_processor["use_regex"]
    return _whole(
        origin,
        vocab=vocab,
        tokens=tokens,
        normalizer=None,
        pre_tokenizer=byte_level,
        post_processor=post_processor,
        decoder=byte_level,
        model={
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": vocab,
            "merges": _merges(origin, merges_file, vocab),
        },
    )


def _check_vocab(origin: Origin, name: str, vocab: Mapping[str, Any]) -> None:
    if not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise origin.damaged(name, "not a vocabulary of pieces and ids")
    if "\u0120" not in vocab:  # how a space is written
        raise origin.damaged(name, "not a byte-level vocabulary, as GPT-2's is")


def _like_roberta(origin: Origin, vocab: Mapping[str, int]) -> bool:
    """Return whether texts stand between <s> and </s>; GPT-2 puts nothing around."""
    if origin.family not in _GPT2 | _ROBERTA | {""}:
        raise origin.unknown()
    if origin.family:
        return origin.family in _ROBERTA
    return {"<s>", "</s>"} <= vocab.keys() and "<|endoftext|>" not in vocab


def _merges(origin: Origin, name: str, vocab: Mapping[str, int]) -> list[str]:
    lines = origin.text(name).split("\n")
    if lines[0].startswith("#version"):
        del lines[0]
    merges = [line for line in lines if line]
    for merge in merges:
        parts = merge.split(" ")
        if len(parts) != 2 or "".join(parts) not in vocab:
            raise origin.damaged(name, f"not a merge of two pieces: {merge!r}")
    return merges


def _tokens(origin: Origin, usual: Mapping[str, str]) -> dict[str, str]:
    return {role: origin.token(role) or token for role, token in usual.items()}


def _whole(
    origin: Origin, *, vocab: Mapping[str, int], tokens: Mapping[str, str], **parts: Any
) -> dict[str, Any]:
    """Return a tokenizer.json: its parts, after the tokens that a text may spell."""
    added = {vocab[t]: _added(t) for t in tokens.values() if t in vocab}
    mask = tokens.get("mask", "")
    if mask in vocab and parts["model"]["type"] == "BPE":
        added[vocab[mask]]["lstrip"] = True  # RoBERTa's takes the space before it
    added |= {i: _added(token) for i, token in added_tokens(origin, tokens.values())}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **added[i]} for i in sorted(added)],
        **parts,
    }


def added_tokens(
    origin: Origin, special: Collection[str]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield ids of tokens that the files of settings add, and how each is written."""
    for token, index in origin.settings["added_tokens.json"].items():
        yield int(index), {"content": token, "special": token in special}
    decoder = origin.config.get("added_tokens_decoder") or {}
    for index, token in decoder.items():
        if content(token):
            yield int(index), token


def _added(token: str | Mapping[str, Any]) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    if isinstance(token, str):
        return {"content": token, **flags, "special": True}
    return {"content": token["content"], **flags, "special": False} | {
        name: bool(token[name]) for name in (*flags, "special") if name in token
    }
