"""Conversion of the files of a Hugging Face tokenizer to one tokenizer.json.

That of transformers' class for this family; WordPiece's vocab.txt (BERT); and the
byte-level BPE of GPT-2 and RoBERTa.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lmjax.data.tokenizers.hf.added import add_tokens
from lmjax.data.tokenizers.hf.classes import (
    CLASSES,
    TokenizerClass,
    bert_normalizer,
    find_class,
)
from lmjax.data.tokenizers.hf.directory import HFTokenizerFiles
from lmjax.data.tokenizers.hf.library import FILE, parse_tokenizer

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


def build_tokenizer_json(
    files: HFTokenizerFiles,
) -> tuple[bytes, Mapping[str, str]]:
    """Return a tokenizer.json that says all that the files of a directory say.

    It is the file of the directory where its settings add nothing to that. The second
    value are the special tokens by role, where the settings name no other.

    Raises:
      UserError: a file is damaged, or the family is not known.
    """
    if files.format != (FILE,):
        wordpiece = files.format == ("vocab.txt",)
        convert = _convert_wordpiece if wordpiece else _convert_byte_level
        content = json.dumps(convert(files), ensure_ascii=False).encode()
        return _add_tokens(content, files, None), {}
    content = files.contents[FILE]
    core = parse_tokenizer(content, name=str(files.path / FILE))
    parsed = json.loads(core.to_str())
    chosen = find_class(files, parsed)
    if chosen is None:
        return _add_tokens(content, files, None), {}
    tokens = _find_tokens(files, chosen.tokens)
    rebuilt = json.dumps(_rebuild(chosen, parsed, files, tokens), ensure_ascii=False)
    content = _add_tokens(rebuilt.encode(), files, chosen)
    if chosen.template is None:
        return content, chosen.tokens
    parsed = json.loads(content)
    tokens["language"] = files.config.get("src_lang") or "en_XX"
    around = (map(tokens.__getitem__, roles) for roles in chosen.template)
    find = _find_ids(parsed)
    parsed["post_processor"] = template_processing(*around, token_to_id=find)
    return json.dumps(parsed, ensure_ascii=False).encode(), chosen.tokens


def _rebuild(
    chosen: TokenizerClass,
    parsed: dict[str, Any],
    files: HFTokenizerFiles,
    tokens: Mapping[str, str],
) -> dict[str, Any]:
    """Return a tokenizer.json with the parts that a class has of its own.

    Raises:
      UserError: its model is not of the kind that the class reads.
    """
    kind = parsed["model"]["type"]
    if kind != chosen.model:
        why = f"a model of type {kind!r}; its tokenizer_class reads {chosen.model!r}"
        raise files.error(FILE, why)
    parts = chosen.parts(parsed, files.config, tokens)
    listed = files.config.get("added_tokens_decoder") is not None
    added = [] if listed else parsed["added_tokens"]  # those of the settings count
    model = {**parsed["model"], **parts["model"]}
    return {**parsed, **parts, "model": model, "added_tokens": added}


def _add_tokens(
    content: bytes, files: HFTokenizerFiles, chosen: TokenizerClass | None
) -> bytes:
    """Return a tokenizer.json with the tokens of the settings; unchanged without."""
    core = parse_tokenizer(content, name=str(files.path / files.format[0]))
    before = core.to_str()
    defaults = {} if chosen is None else chosen.tokens
    more = () if chosen is None else chosen.more_tokens
    if chosen is CLASSES["t5"]:
        more = more[: files.config.get("extra_ids")]
    add_tokens(core, files, defaults=defaults, extra=more)
    after = core.to_str()
    return content if after == before else after.encode()


def _convert_wordpiece(files: HFTokenizerFiles) -> dict[str, Any]:
    if files.family not in _WORD_PIECE:
        raise files.unknown_family_error()
    pieces = files.read_text("vocab.txt").removesuffix("\n").split("\n")
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokens = _find_tokens(files, CLASSES["bert"].tokens)
    for role in ("unk", "cls", "sep"):
        if tokens[role] not in vocab:
            raise files.error("vocab.txt", f"has no {tokens[role]!r}")
    return _assemble(
        files,
        vocab=vocab,
        tokens=tokens,
        normalizer=bert_normalizer(files.config),
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=template_processing(
            [tokens["cls"]], [tokens["sep"]], [tokens["sep"]], token_to_id=vocab.get
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


def template_processing(
    prefix: Iterable[str],
    suffix: Iterable[str],
    between: Iterable[str],
    *,
    token_to_id: Callable[[str], int | None],
    types: bool = False,
) -> dict[str, Any]:
    """Return the post-processor that puts tokens around texts and pairs.

    Args:
      prefix: the tokens before a text.
      suffix: those after it.
      between: those between two texts.
      token_to_id: the vocabulary.
      types: the second text of a pair, and what is after it, have type 1.
    """
    used: dict[str, int | None] = {}

    def special(tokens: Iterable[str], kind: int = 0) -> list[dict[str, Any]]:
        used.update({token: token_to_id(token) for token in tokens})
        return [{"SpecialToken": {"id": token, "type_id": kind}} for token in tokens]

    prefix, suffix, between = [*prefix], [*suffix], [*between]
    kinds = (("A", 0), ("B", int(types)))
    a, b = ({"Sequence": {"id": name, "type_id": kind}} for name, kind in kinds)
    before, after = special(prefix), special(suffix)
    last = special(suffix, int(types))
    return {
        "type": "TemplateProcessing",
        "single": [*before, a, *after],
        "pair": [*before, a, *special(between), b, *last],
        "special_tokens": {
            token: {"id": token, "ids": [index], "tokens": [token]}
            for token, index in used.items()
            if index is not None
        },
    }


def _find_ids(parsed: Mapping[str, Any]) -> Callable[[str], int | None]:
    """Return the vocabulary of a tokenizer.json, as a function."""
    vocab = parsed["model"]["vocab"]
    if isinstance(vocab, list):
        vocab = {piece: index for index, (piece, _) in enumerate(vocab)}
    vocab |= {token["content"]: token["id"] for token in parsed["added_tokens"]}
    return vocab.get


def _convert_byte_level(files: HFTokenizerFiles) -> dict[str, Any]:
    vocab_file, merges_file = files.format
    vocab = files.read_json(vocab_file)
    if not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise files.error(vocab_file, "not a vocabulary of pieces and ids")
    if "\u0120" not in vocab:  # the piece of a space
        raise files.error(vocab_file, "not a byte-level vocabulary such as GPT-2's")
    roberta = _is_roberta(files, vocab)
    defaults = CLASSES["roberta" if roberta else "gpt2"].tokens
    tokens = _find_tokens(files, defaults)
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
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **added[i]} for i in sorted(added)],
        **parts,
    }


def _describe_token(token: str) -> dict[str, Any]:
    """Return a special token as tokenizer.json has it."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": token, **flags, "special": True}
