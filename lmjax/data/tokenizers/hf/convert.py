"""Conversion of older formats of Hugging Face tokenizers to a tokenizer.json.

WordPiece's vocab.txt (BERT) and the byte-level BPE of GPT-2 and RoBERTa.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from lmjax.data.tokenizers.hf.directory import HFTokenizerFiles, token_text

# Families whose tokenizers have these formats; "": the files name no family.
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


def build_tokenizer_json(files: HFTokenizerFiles) -> bytes:
    """Return the tokenizer.json of a directory, converted from older files if need be.

    Raises:
      UserError: a file is damaged, or the family is not known.
    """
    if files.format == ("tokenizer.json",):
        return files.contents["tokenizer.json"]
    convert = (
        _convert_wordpiece if files.format == ("vocab.txt",) else _convert_byte_level
    )
    return json.dumps(convert(files), ensure_ascii=False).encode()


def _convert_wordpiece(files: HFTokenizerFiles) -> dict[str, Any]:
    if files.family not in _WORD_PIECE:
        raise files.unknown_family_error()
    pieces = files.read_text("vocab.txt").removesuffix("\n").split("\n")
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokens = _find_tokens(files, _BERT_TOKENS)
    for role in ("unk", "cls", "sep"):
        if tokens[role] not in vocab:
            raise files.error("vocab.txt", f"has no {tokens[role]!r}")
    return _assemble(
        files,
        vocab=vocab,
        tokens=tokens,
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": files.config.get("tokenize_chinese_chars", True),
            "strip_accents": files.config.get("strip_accents"),
            "lowercase": files.config.get("do_lower_case", True),
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=_add_cls_and_sep(
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


def _add_cls_and_sep(*, cls: tuple[str, int], sep: tuple[str, int]) -> dict[str, Any]:
    """Return the post-processor that adds [CLS] and [SEP] to texts and pairs."""
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


def _convert_byte_level(files: HFTokenizerFiles) -> dict[str, Any]:
    vocab_file, merges_file = files.format
    vocab = files.read_json(vocab_file)
    if not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise files.error(vocab_file, "not a vocabulary of pieces and ids")
    if "\u0120" not in vocab:  # the piece of a space
        raise files.error(vocab_file, "not a byte-level vocabulary such as GPT-2's")
    roberta = _is_roberta(files, vocab)
    tokens = _find_tokens(files, _ROBERTA_TOKENS if roberta else _GPT2_TOKENS)
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": bool(files.config.get("add_prefix_space", False)),
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
    return _assemble(
        files,
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
            "merges": _read_merges(files, merges_file, vocab),
        },
    )


def _is_roberta(files: HFTokenizerFiles, vocab: Mapping[str, int]) -> bool:
    """Return whether texts are between <s> and </s>; GPT-2 adds no tokens."""
    if files.family not in _GPT2 | _ROBERTA | {""}:
        raise files.unknown_family_error()
    if files.family:
        return files.family in _ROBERTA
    return {"<s>", "</s>"} <= vocab.keys() and "<|endoftext|>" not in vocab


def _read_merges(
    files: HFTokenizerFiles, name: str, vocab: Mapping[str, int]
) -> list[str]:
    lines = files.read_text(name).split("\n")
    if lines[0].startswith("#version"):
        del lines[0]
    merges = [line for line in lines if line]
    for merge in merges:
        parts = merge.split(" ")
        if len(parts) != 2 or "".join(parts) not in vocab:
            raise files.error(name, f"not a merge of two pieces: {merge!r}")
    return merges


def _find_tokens(
    files: HFTokenizerFiles, defaults: Mapping[str, str]
) -> dict[str, str]:
    """Return the special tokens by role: of the settings, else the defaults."""
    return {role: files.special_token(role) or t for role, t in defaults.items()}


def _assemble(
    files: HFTokenizerFiles,
    *,
    vocab: Mapping[str, int],
    tokens: Mapping[str, str],
    **parts: Any,
) -> dict[str, Any]:
    """Return a tokenizer.json: the special and added tokens, and `parts`."""
    added = {vocab[t]: _describe_token(t) for t in tokens.values() if t in vocab}
    mask = tokens.get("mask", "")
    if mask in vocab and parts["model"]["type"] == "BPE":
        added[vocab[mask]]["lstrip"] = True  # RoBERTa's includes the space before it
    for i, token in list_added_tokens(files, special=tokens.values()):
        added[i] = _describe_token(token)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **added[i]} for i in sorted(added)],
        **parts,
    }


def list_added_tokens(
    files: HFTokenizerFiles, *, special: Collection[str] = ()
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (id, description) of the tokens that the settings add to the vocabulary.

    Args:
      files: of the tokenizer.
      special: the tokens of added_tokens.json that are special.
    """
    for token, index in files.settings["added_tokens.json"].items():
        yield int(index), {"content": token, "special": token in special}
    decoder = files.config.get("added_tokens_decoder") or {}
    for index, token in decoder.items():
        if token_text(token):
            yield int(index), token


def _describe_token(token: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return a token as tokenizer.json has it; a text is a special token."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    if isinstance(token, str):
        return {"content": token, **flags, "special": True}
    return {"content": token["content"], **flags, "special": False} | {
        name: bool(token[name]) for name in (*flags, "special") if name in token
    }
