"""Which settings of a tokenizer's directory can be read, and which are not heeded."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from lmjax.data.tokenizers.hf.added import ROLES
from lmjax.data.tokenizers.hf.classes import CLASSES, SAME_CLASSES
from lmjax.data.tokenizers.hf.directory import HFTokenizerFiles, token_text

log = logging.getLogger(__name__)

_CONFIG, _MAP, _ADDED = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# Short names of classes that take a tokenizer.json as it is.
_GENERIC = ("", "pretrained", "tokenizersbackend", "auto", "mistralcommon")


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_token(value: Any) -> bool:
    return value == "" or token_text(value) is not None


def _is_numbered(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        key.isdecimal() and _is_token(token) for key, token in value.items()
    )


def _are_tokens(value: Any) -> bool:
    tokens = value.values() if isinstance(value, Mapping) else value
    return isinstance(value, Mapping | list) and all(map(_is_token, tokens))


_Kind = tuple[Callable[[Any], bool], str]
_FLAG: _Kind = (_is_flag, "true or false")
_TOKEN: _Kind = (_is_token, 'a text, or an object with "content"')
_TOKENS: _Kind = (_are_tokens, "a list of tokens, or an object")
_SPECIAL = {
    **{f"{role}_token": _TOKEN for role in ROLES},
    "additional_special_tokens": _TOKENS,
    "extra_special_tokens": _TOKENS,
}
# What each setting that is read must be, if it is there and not null.
_KINDS: dict[str, _Kind] = {
    **_SPECIAL,
    "added_tokens_decoder": (_is_numbered, "an object of ids and tokens"),
    "extra_ids": (_is_count, "a whole number"),
    "src_lang": (_is_text, "a text"),
    "tokenizer_class": (_is_text, "a text"),
    **dict.fromkeys(
        (
            "add_bos_token",
            "add_eos_token",
            "add_prefix_space",
            "clean_up_tokenization_spaces",
            "do_lower_case",
            "legacy",
            "split_special_tokens",
            "strip_accents",
            "tokenize_chinese_chars",
        ),
        _FLAG,
    ),
}


def check_settings(files: HFTokenizerFiles) -> None:
    """Check that the settings of a tokenizer are of the kinds that they must be.

    Raises:
      UserError: one is not; it is named, with its value.
    """
    for name, kinds in ((_CONFIG, _KINDS), (_MAP, _SPECIAL)):
        for key, (is_allowed, expected) in kinds.items():
            value = files.settings[name].get(key)
            if value is not None and not is_allowed(value):
                why = f"{key} = {_shorten(value)}: expected {expected}"
                raise files.error(name, why)
    for token, index in files.settings[_ADDED].items():
        if not _is_count(index):
            why = f"{token!r} = {_shorten(index)}: expected an id"
            raise files.error(_ADDED, why)


def warn_of_class(files: HFTokenizerFiles) -> None:
    """Log that a tokenizer's class is not known here, or is code of its own."""
    own_code = files.config.get("auto_map")
    if isinstance(own_code, Mapping) and own_code.get("AutoTokenizer"):
        log.warning(
            "tokenizer: auto_map = %s: such code is not run; %s is read without",
            own_code["AutoTokenizer"],
            files.format[0],
        )
    elif files.format == ("tokenizer.json",) and not _is_known(files.class_name):
        log.warning(
            "tokenizer: tokenizer_class = %r: not known here; tokenizer.json is read "
            "as it is",
            files.config["tokenizer_class"],
        )


def _is_known(name: str) -> bool:
    return name in (*_GENERIC, *CLASSES, *SAME_CLASSES)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
