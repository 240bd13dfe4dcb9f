"""The tokens that the settings of a directory add to a tokenizer."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmjax.data.tokenizers.hf.directory import HFTokenizerFiles, token_text

log = logging.getLogger(__name__)

# The roles of special tokens, in the order in which transformers adds them.
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def add_tokens(
    core: Any,
    files: HFTokenizerFiles,
    *,
    defaults: Mapping[str, str],
    extra: Sequence[str] = (),
) -> None:
    """Add the tokens of the settings to a `tokenizers.Tokenizer`, as transformers does.

    First those with an id, then the special ones with a role, then the other ones.

    Args:
      core: the tokenizer, which is changed.
      files: of the directory.
      defaults: the special tokens, by role, that its class has without settings.
      extra: more special tokens that it has if the settings name none.

    Raises:
      UserError: a token would not get the id that a file gives it.
    """
    import tokenizers

    listed: dict[int, Mapping[str, Any]] = dict(list_added_tokens(files))
    settings = _settings(files)
    described = {token_text(token): token for token in listed.values()}
    wanted: list[Mapping[str, Any]] = [listed[index] for index in sorted(listed)]
    for role in ROLES:
        value = settings.get(f"{role}_token", defaults.get(role))
        if text := token_text(value):
            given = value if isinstance(value, Mapping) else text
            wanted.append({**_describe(described.get(text, given)), "special": True})
    wanted += list(_other_tokens(settings)) or list(map(_describe, extra))
    present = {token.content for token in core.get_added_tokens_decoder().values()}
    with_id = {str(token_text(token)) for token in listed.values()}
    for options in map(_describe, wanted):
        text = options["content"]
        known = text in with_id or core.token_to_id(text) is not None
        if text not in present and (known or has_room(files, core.get_vocab_size())):
            core.add_tokens([tokenizers.AddedToken(**options)])
        elif text not in present and text not in (*defaults.values(), *extra):
            warn_left_out(text)
        present.add(text)
    in_config = files.config.get("added_tokens_decoder") is not None
    name = "tokenizer_config.json" if in_config else "added_tokens.json"
    for index, token in listed.items():
        text = str(token_text(token))
        if (found := core.token_to_id(text)) != index:
            raise files.error(name, f"{text!r} has id {index}, but would get {found}")


def has_room(files: HFTokenizerFiles, num_ids: int) -> bool:
    """Return whether the model beside a tokenizer has a row for one more id."""
    size = files.settings["config.json"].get("vocab_size")
    return type(size) is not int or num_ids < size


def warn_left_out(token: str) -> None:
    """Log that a token of the settings is not used."""
    log.warning(
        "tokenizer: the token %r has no id, and the model no room for one: left out",
        token,
    )


def list_added_tokens(
    files: HFTokenizerFiles,
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (id, description) of the tokens to which the settings give an id.

    `added_tokens_decoder` of tokenizer_config.json replaces added_tokens.json.
    """
    decoder = files.config.get("added_tokens_decoder")
    if decoder is not None:
        for index, token in decoder.items():
            if text := token_text(token):
                described = token if isinstance(token, Mapping) else {"content": text}
                yield int(index), described
        return
    special = {t["content"] for t in _other_tokens(_settings(files))}
    special |= {files.special_token(role) for role in ROLES}
    for text, index in files.settings["added_tokens.json"].items():
        flags = {"special": text in special, "normalized": text not in special}
        yield int(index), {"content": text, **flags}


def list_role_free_tokens(files: HFTokenizerFiles) -> list[str]:
    """Return the special tokens without a role."""
    return [token["content"] for token in _other_tokens(_settings(files))]


def _settings(files: HFTokenizerFiles) -> Mapping[str, Any]:
    """Return tokenizer_config.json, with special_tokens_map.json where that counts."""
    if files.config.get("added_tokens_decoder") is not None:
        return files.config
    return {**files.config, **files.settings["special_tokens_map.json"]}


def _other_tokens(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the special tokens with a name of their own, and those without."""
    names = {f"{role}_token" for role in ROLES}
    more = settings.get("extra_special_tokens")
    more = more or settings.get("additional_special_tokens") or []
    named = more if isinstance(more, Mapping) else {}
    for key, value in {**settings, **named}.items():
        more_roles = key.endswith("_token") and key not in names
        if (more_roles or key in named) and token_text(value):
            yield {**_describe(value), "special": True}
    for token in () if isinstance(more, Mapping) else more:
        if token_text(token):
            yield _describe(token)


def _describe(token: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `tokenizers.AddedToken`; a text is a special token."""
    if isinstance(token, str):
        token = {"content": token, "special": True}
    special = bool(token.get("special", False))
    flags = {name: bool(token[name]) for name in _FLAGS if name in token}
    return {
        "content": token["content"],
        "special": special,
        "normalized": not special,
        **flags,
    }
