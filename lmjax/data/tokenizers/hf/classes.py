"""What the tokenizer classes of transformers 5 make of a tokenizer.json.

transformers 5 takes a tokenizer.json as it is only for a generic class. The class of a
family takes its vocabulary and merges, and of some the ids around a text; the rest it
builds by itself, as tokenizer_config.json says.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmjax.data.tokenizers.hf.directory import HFTokenizerFiles

Json = dict[str, Any]
Roles = tuple[str, ...]
# From the tokenizer.json, tokenizer_config.json and the special tokens by role.
MakeParts = Callable[[Json, Mapping[str, Any], Mapping[str, str]], Json]

_MARK = "\u2581"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BERT = {
    "unk": "[UNK]",
    "sep": "[SEP]",
    "pad": "[PAD]",
    "cls": "[CLS]",
    "mask": "[MASK]",
}
_FAIRSEQ = {
    "bos": "<s>",
    "eos": "</s>",
    "unk": "<unk>",
    "sep": "</s>",
    "pad": "<pad>",
    "cls": "<s>",
    "mask": "<mask>",
}
_GPT2 = dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>")


@dataclasses.dataclass(frozen=True)
class TokenizerClass:
    """A class of a family.

    Attributes:
      model: the type of its model in a tokenizer.json.
      tokens: its special tokens by role, where the settings name no other.
      parts: makes the parts of a tokenizer.json that it does not take from the file.
      template: the roles of the tokens before, after and between texts; None: those of
        the file.
      more_tokens: those that it adds, if the settings name none without a role.
    """

    model: str
    tokens: Mapping[str, str]
    parts: MakeParts
    template: tuple[Roles, Roles, Roles] | None = None
    more_tokens: Sequence[str] = ()


def _bert(parsed: Json, config: Mapping[str, Any], tokens: Mapping[str, str]) -> Json:
    return {
        "normalizer": bert_normalizer(config),
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "unk_token": tokens["unk"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
    }


def bert_normalizer(config: Mapping[str, Any]) -> Json:
    """Return the normalizer of BERT, as tokenizer_config.json sets it."""
    return {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
        "strip_accents": config.get("strip_accents"),
        "lowercase": bool(config.get("do_lower_case", True)),
    }


def _byte_level(
    parsed: Json, config: Mapping[str, Any], tokens: Mapping[str, str]
) -> Json:
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    prefix = bool(config.get("add_prefix_space", False))
    return {
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "add_prefix_space": prefix},
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
        },
    }


def _gpt_neox(*args: Any) -> Json:
    return _byte_level(*args) | {"normalizer": {"type": "NFC"}}


def _qwen2(*args: Any) -> Json:
    words = {"Regex": _QWEN2}
    split = {"type": "Split", "pattern": words, "behavior": "Isolated", "invert": False}
    parts = _byte_level(*args)
    byte_level = parts["pre_tokenizer"] | {"use_regex": False}
    steps = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    return parts | {"normalizer": {"type": "NFC"}, "pre_tokenizer": steps}


def _llama(parsed: Json, config: Mapping[str, Any], tokens: Mapping[str, str]) -> Json:
    prefix = config.get("add_prefix_space")
    prefix = True if prefix is None else bool(prefix)
    scheme = "always" if config.get("legacy", False) else "first"
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix
    return {
        "normalizer": None,
        "pre_tokenizer": _metaspace(scheme if prefix else "never", split=False),
        "decoder": _sentencepiece_decoder(*strip),
        "model": {"unk_token": None, "fuse_unk": True, "byte_fallback": True},
    }


def _gemma(parsed: Json, config: Mapping[str, Any], tokens: Mapping[str, str]) -> Json:
    space = {"String": " "}
    return {
        "normalizer": {"type": "Replace", "pattern": space, "content": _MARK},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": space,
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "decoder": _sentencepiece_decoder(),
        "model": {"unk_token": tokens["unk"], "fuse_unk": True, "byte_fallback": True},
    }


def _unigram(
    parsed: Json, config: Mapping[str, Any], tokens: Mapping[str, str]
) -> Json:
    """Return the parts of T5 and XLM-R; their file gives the rules for characters."""
    normalizer = parsed.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    rules = [step for step in steps if step.get("type") == "Precompiled"]
    prefix = config.get("add_prefix_space", True)
    space = _metaspace("always" if prefix else "never", split=True)
    words = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]}
    pieces = [piece for piece, _ in parsed["model"]["vocab"]]
    unk = pieces.index(tokens["unk"]) if tokens["unk"] in pieces else 0
    return {
        "normalizer": rules[0] if rules else None,
        "pre_tokenizer": words,
        "decoder": space,
        "model": {"unk_id": unk, "byte_fallback": False},
    }


def _t5(parsed: Json, config: Mapping[str, Any], tokens: Mapping[str, str]) -> Json:
    always = {**config, "add_prefix_space": True}
    parts = _unigram(parsed, always, tokens)
    return parts | {"model": parts["model"] | {"unk_id": 2}}


def _xlm_roberta(*args: Any) -> Json:
    parts = _unigram(*args)
    return parts | {"model": parts["model"] | {"unk_id": 3}}


def _mbart(*args: Any) -> Json:
    return _t5(*args) | {"normalizer": None, "model": {"unk_id": 3}}


def _pegasus(*args: Any) -> Json:
    parts = _t5(*args)
    rules = [parts["normalizer"] or _replace(r"\n", " "), _replace(" {2,}", " ")]
    return _unigram(*args) | {
        "normalizer": {"type": "Sequence", "normalizers": rules},
        "pre_tokenizer": _metaspace("always", split=True),
    }


def _replace(pattern: str, content: str) -> Json:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _metaspace(scheme: str, *, split: bool) -> Json:
    options = {"prepend_scheme": scheme, "split": split}
    return {"type": "Metaspace", "replacement": _MARK, **options}


def _sentencepiece_decoder(*more: Json) -> Json:
    space = {"type": "Replace", "pattern": {"String": _MARK}, "content": " "}
    steps = [space, {"type": "ByteFallback"}, {"type": "Fuse"}, *more]
    return {"type": "Sequence", "decoders": steps}


_MBART_LANGUAGES = (
    *("ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN"),
    *("hi_IN", "it_IT", "ja_XX", "kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP"),
    *("nl_XX", "ro_RO", "ru_RU", "si_LK", "tr_TR", "vi_VN", "zh_CN"),
)
_XLMR_TEMPLATE = (("bos",), ("eos",), ("eos", "eos"))
CLASSES: dict[str, TokenizerClass] = {
    "bert": TokenizerClass("WordPiece", _BERT, _bert, (("cls",), ("sep",), ("sep",))),
    "roberta": TokenizerClass(
        "BPE", _FAIRSEQ, _byte_level, (("cls",), ("sep",), ("sep", "sep"))
    ),
    "gpt2": TokenizerClass("BPE", _GPT2, _byte_level),
    "gptneox": TokenizerClass(
        "BPE", {**_GPT2, "pad": "<|padding|>"}, _gpt_neox, ((), (), ())
    ),
    "qwen2": TokenizerClass(
        "BPE", dict.fromkeys(("eos", "unk", "pad"), "<|endoftext|>"), _qwen2
    ),
    "t5": TokenizerClass(
        "Unigram",
        {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
        _t5,
        ((), ("eos",), ("eos",)),
        more_tokens=[f"<extra_id_{i}>" for i in range(100)],
    ),
    "llama": TokenizerClass(
        "BPE", {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}, _llama
    ),
    "gemma": TokenizerClass(
        "BPE",
        {
            "bos": "<bos>",
            "eos": "<eos>",
            "unk": "<unk>",
            "pad": "<pad>",
            "mask": "<mask>",
        },
        _gemma,
    ),
    "xlmroberta": TokenizerClass("Unigram", _FAIRSEQ, _xlm_roberta, _XLMR_TEMPLATE),
    "camembert": TokenizerClass(
        "Unigram",
        _FAIRSEQ,
        _unigram,
        _XLMR_TEMPLATE,
        more_tokens=["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"],
    ),
    "mbart": TokenizerClass(
        "Unigram",
        _FAIRSEQ,
        _mbart,
        ((), ("eos", "language"), ()),
        more_tokens=_MBART_LANGUAGES,
    ),
    "pegasus": TokenizerClass(
        "Unigram",
        {"eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask_2>"},
        _pegasus,
        ((), ("eos",), ()),
        more_tokens=["<mask_1>", *(f"<unk_{i}>" for i in range(2, 103))],
    ),
}
# Other names of these classes, and the class of a family whose settings name none:
# as in AutoTokenizer's table.
SAME_CLASSES = {"distilbert": "bert", "electra": "bert", "bart": "roberta"}
SAME_CLASSES |= {"codellama": "llama"}
_BY_FAMILY = {
    **dict.fromkeys(("bert", "distilbert", "electra", "mobilebert"), "bert"),
    **dict.fromkeys(("roberta", "bart", "longformer"), "roberta"),
    **dict.fromkeys(("gpt2", "gptj", "gptneo", "opt", "phi"), "gpt2"),
    **dict.fromkeys(("t5", "mt5"), "t5"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3text"), "gemma"),
    **dict.fromkeys(("gptneox", "olmo"), "gptneox"),
    "qwen3": "qwen2",
    "xlmroberta": "xlmroberta",
    "camembert": "camembert",
    "mbart": "mbart",
    "pegasus": "pegasus",
}
# Families whose class does not depend on the settings; "": the generic one.
_FORCED = {"qwen2": "qwen2", "phi3": "", "modernbert": "", "mistral": "", "olmo2": ""}


def find_class(files: HFTokenizerFiles, parsed: Json) -> TokenizerClass | None:
    """Return the class that AutoTokenizer reads a tokenizer.json with.

    None for the generic class, and for classes that are not known here: the file is
    taken as it is.
    """
    family = files.model_type
    settings = (files.config, files.settings["config.json"])
    named = next(
        (s["tokenizer_class"] for s in settings if s.get("tokenizer_class")), ""
    )
    name = str(named).removesuffix("Fast").removesuffix("Tokenizer").lower()
    name = SAME_CLASSES.get(name, name) if named else _BY_FAMILY.get(family, "")
    if name == "llama" and "ByteLevel" in str(parsed.get("pre_tokenizer")):
        name = ""
    return CLASSES.get(_FORCED.get(family, name))
