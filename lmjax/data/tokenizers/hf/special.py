"""The special ids of a tokenizer, from the files of a Hugging Face directory."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from lmjax.data.tokenizers.hf.directory import HFTokenizerFiles
from lmjax.data.tokenizers.special_ids import SpecialIds, not_none

TokenToId = Callable[[str], int | None]

# The tokens that usually have a role, where no file names one.
_USUAL_TOKENS = {
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[SEP]"),
    "pad": ("<pad>", "[PAD]"),
    "mask": ("<mask>", "[MASK]"),
}


class Template(NamedTuple):
    """The special ids that a tokenizer adds to texts."""

    prefix: tuple[int, ...] = ()  # before a text
    suffix: tuple[int, ...] = ()  # after a text
    pair: tuple[int, ...] = ()  # between two texts


def find_special_ids(
    files: HFTokenizerFiles,
    *,
    token_to_id: TokenToId,
    template: Template,
    size: int,
    defaults: Mapping[str, str] | None = None,
    padding: str | None = None,
) -> SpecialIds:
    """Return the special ids of a tokenizer.

    In order of precedence: the settings of the tokenizer, those of the model and of
    generation, the token after a text, the usual tokens.

    Args:
      files: of the tokenizer.
      token_to_id: its vocabulary.
      template: the ids that it adds to texts.
      size: of the vocabulary; the model's settings may have larger ids.
      defaults: the special tokens of its class by role.
      padding: the token that a tokenizer.json pads with, if it says so. It counts where
        neither the settings nor the class name one.
    """

    def candidates(role: str) -> Iterator[int]:
        own = (files.special_token(role), (defaults or {}).get(role))
        for token in (*own, *_USUAL_TOKENS[role]):
            if token and (index := token_to_id(token)) is not None:
                yield index

    prefix, suffix, pair = _apply_bos_eos_settings(files, token_to_id, template)
    eos, sep = (_find_declared(files, token_to_id, role) for role in ("eos", "sep"))
    model_eos = [i for i in _find_model_ids(files, "eos") if i < size]
    usual = [*candidates("eos")]
    own = usual[:1] if (defaults or {}).get("eos") else []
    all_eos = [*eos, *model_eos, *sep, *own, *suffix[-1:], *usual]
    pad = _find_declared(files, token_to_id, "pad")
    if not pad and padding and "pad" not in (defaults or {}):
        pad = not_none(token_to_id(padding))
    model_pad = (i for i in _find_model_ids(files, "pad") if i < size)
    return SpecialIds(
        bos_id=next(iter(prefix), None),
        eos_id=next(iter(all_eos), None),
        pad_id=next(itertools.chain(pad, model_pad, candidates("pad")), None),
        mask_id=next(candidates("mask"), None),
        stop_ids=tuple(dict.fromkeys([*all_eos[:1], *model_eos])),
        sentinel_ids=tuple(_find_sentinels(token_to_id)),
        prefix_ids=prefix,
        suffix_ids=suffix,
        pair_ids=pair,
    )


def _find_declared(
    files: HFTokenizerFiles, token_to_id: TokenToId, role: str
) -> tuple[int, ...]:
    """Return the id that the settings of the tokenizer give a role, or ()."""
    token = files.special_token(role)
    return not_none(token_to_id(token)) if token else ()


def _find_model_ids(files: HFTokenizerFiles, role: str) -> Iterable[int]:
    """Yield the ids of a role in generation_config.json and config.json."""
    for name in ("generation_config.json", "config.json"):
        value: Any = files.settings[name].get(f"{role}_token_id")
        for i in value if isinstance(value, list) else [value]:
            if type(i) is int and i >= 0:
                yield i


def _apply_bos_eos_settings(
    files: HFTokenizerFiles, token_to_id: TokenToId, template: Template
) -> Template:
    """Add or remove BOS and EOS as `add_bos_token` and `add_eos_token` say.

    A template with other tokens around a text is returned as it is, and so is that of
    a tokenizer.json: transformers 5 drops both settings where there is one.
    """
    if files.format == ("tokenizer.json",):
        return template
    bos, eos = (_find_declared(files, token_to_id, role) for role in ("bos", "eos"))
    prefix, suffix, pair = template
    if not set(prefix) <= set(bos) or not set(suffix) <= set(eos):
        return template
    add_bos = files.config.get("add_bos_token")
    add_eos = files.config.get("add_eos_token")
    if add_bos is not None:
        prefix = bos if add_bos else ()
    if add_eos is not None:
        suffix = eos if add_eos else ()
    if add_bos is not None or add_eos is not None:
        pair = suffix + prefix
    return Template(prefix, suffix, pair)


def _find_sentinels(token_to_id: TokenToId) -> Iterator[int]:
    for i in itertools.count():
        index = token_to_id(f"<extra_id_{i}>")
        if index is None:
            return
        yield index
