"""Which ids are special, as the files of a Hugging Face directory tell it."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lmjax.data.tokenizers.hf.directory import Origin
from lmjax.data.tokenizers.special_ids import SpecialIds, not_none

# What has a role where no file says so.
_USUAL = {
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[SEP]"),
    "pad": ("<pad>", "[PAD]"),
    "mask": ("<mask>", "[MASK]"),
}

Wrap = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # prefix, suffix, pair


def special_ids(
    origin: Origin, *, token_to_id: Callable[[str], int | None], wrap: Wrap, size: int
) -> SpecialIds:
    """Return the special ids of a tokenizer.

    What is declared for the tokenizer comes first, then for the model and its
    generation, then the token that ends a text, then what usually has the role.

    Args:
      origin: its files.
      token_to_id: its vocabulary.
      wrap: what it puts before, after and between texts.
      size: ids must be below this.
    """

    def find(role: str) -> Iterator[int]:
        for token in (origin.token(role), *_USUAL[role]):
            if token and (index := token_to_id(token)) is not None:
                yield index

    prefix, suffix, pair = _as_asked(origin, token_to_id, wrap)
    declared = {role: _declared(origin, token_to_id, role) for role in ("eos", "sep")}
    for_model = [i for i in _model_ids(origin, "eos") if i < size]
    eos = [*declared["eos"], *for_model, *declared["sep"], *suffix[-1:], *find("eos")]
    pad_for_model = (i for i in _model_ids(origin, "pad") if i < size)
    pad = _declared(origin, token_to_id, "pad")
    return SpecialIds(
        bos_id=next(iter(prefix), None),
        eos_id=next(iter(eos), None),
        pad_id=next(itertools.chain(pad, pad_for_model, find("pad")), None),
        mask_id=next(find("mask"), None),
        stop_ids=tuple(dict.fromkeys([*eos[:1], *for_model])),
        sentinel_ids=tuple(_sentinels(token_to_id)),
        prefix_ids=prefix,
        suffix_ids=suffix,
        pair_ids=pair,
    )


def _declared(
    origin: Origin, token_to_id: Callable[[str], int | None], role: str
) -> tuple[int, ...]:
    token = origin.token(role)
    return not_none(token_to_id(token)) if token else ()


def _model_ids(origin: Origin, role: str) -> Iterable[int]:
    """Yield what config.json and generation_config.json say; it may be a list."""
    for name in ("generation_config.json", "config.json"):
        value: Any = origin.settings[name].get(f"{role}_token_id")
        for i in value if isinstance(value, list) else [value]:
            if type(i) is int and i >= 0:
                yield i


def _as_asked(
    origin: Origin, token_to_id: Callable[[str], int | None], wrap: Wrap
) -> Wrap:
    """Return the wrap with BOS and EOS added or left out as `add_bos_token` says.

    That is only for tokenizers which put nothing else around a text.
    """
    bos, eos = (_declared(origin, token_to_id, role) for role in ("bos", "eos"))
    prefix, suffix, pair = wrap
    if not set(prefix) <= set(bos) or not set(suffix) <= set(eos):
        return wrap
    asked = [origin.config.get(f"add_{role}_token") for role in ("bos", "eos")]
    prefix = prefix if asked[0] is None else bos * bool(asked[0])
    if asked[1] is not None:
        suffix = eos * bool(asked[1])
    changed = asked != [None, None]
    return prefix, suffix, (suffix + prefix if changed else pair)


def _sentinels(token_to_id: Callable[[str], int | None]) -> Iterator[int]:
    for i in itertools.count():
        index = token_to_id(f"<extra_id_{i}>")
        if index is None:
            return
        yield index
