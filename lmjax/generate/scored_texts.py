"""What is to be scored: from texts and contexts, or their ids, to ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmjax.config.model import ModelConfig
from lmjax.data.tokenizers.continuation import encode_continuations
from lmjax.data.tokenizers.special_ids import not_none
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError, UserError
from lmjax.generate.prompts import check_utf8, encode_prompts

Text = str | Sequence[int] | np.ndarray  # or its ids
ScoredText = Text | tuple[Text, Text]  # or a context, and the text after it


def encode_scored(
    tokenizer: Tokenizer,
    texts: Sequence[ScoredText],
    *,
    config: ModelConfig,
    eos: bool = False,
    prefix_token: int | None = None,
) -> dict[str, Any]:
    """Return the ids of texts and their contexts: arguments of `Scorer.score_tokens`.

    A text after a context has the ids that it has within the whole; see
    `encode_continuations`. Texts begin with the tokenizer's BOS, if it has one; ids are
    read as they are.

    Args:
      tokenizer: of the model.
      texts: each a text, or (context, text); either as text, or as token ids. An
        encoder-decoder needs pairs: the context is its source.
      config: of the model.
      eos: append the tokenizer's EOS to each text.
      prefix_token: the id that all of them begin with, instead of the BOS.

    Raises:
      UserError: a text is neither text nor ids, or not UTF-8; there is no such id; or
        the tokenizer has no EOS.
      ConfigError: a text lacks the context that the model needs.
    """
    pairs = [_split_pair(item, where=f"texts[{i}]") for i, item in enumerate(texts)]
    for i, pair in enumerate(pairs):
        for part in pair:
            _check(part, vocab_size=config.vocab_size, where=f"texts[{i}]")
    if eos and tokenizer.eos_id is None:
        raise UserError("eos: the tokenizer has no end of text to score")
    if prefix_token is not None:
        if config.is_encoder_decoder:
            raise UserError(
                f"prefix_token = {prefix_token}: the texts of an encoder-decoder begin "
                "with its own first tokens"
            )
        _check([prefix_token], vocab_size=config.vocab_size, where="prefix_token")
    tail = not_none(tokenizer.eos_id) if eos else ()
    if config.is_encoder_decoder:
        return _encode_targets(tokenizer, pairs, texts, config=config, tail=tail)
    joined = [pair for pair in pairs if _is_text(*pair)]
    encoded = iter(encode_continuations(tokenizer, joined, keep_context=False))
    ids = []
    for context, text in pairs:
        first = context if len(context) else text
        begin = not_none(tokenizer.bos_id) if _is_text(first) else ()
        if prefix_token is not None:
            begin = (prefix_token,)
        before, after = (
            next(encoded)
            if _is_text(context, text)
            else (_encode(tokenizer, context), _encode(tokenizer, text))
        )
        ids.append(([*begin, *map(int, before)], [*map(int, after), *tail]))
    return {"texts": ids}


def _encode_targets(
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[Any, Any]],
    texts: Sequence[ScoredText],
    *,
    config: ModelConfig,
    tail: Sequence[int],
) -> dict[str, Any]:
    """Return the arguments for an encoder-decoder, which reads contexts as sources."""
    for i, item in enumerate(texts):
        if not _is_pair(item):
            raise ConfigError(
                f"score: text {i} has no context: config.model.kind = "
                f"{config.kind!r} takes pairs (context, text), its source and target"
            )
    sources = [
        encode_prompts(tokenizer, [source], config=config)["sources"][0]
        if isinstance(source, str)
        else [*map(int, source)]
        for source, _ in pairs
    ]
    start = [*config.decoder_prefix_ids]
    ids = [(start, [*map(int, _encode(tokenizer, text)), *tail]) for _, text in pairs]
    return {"texts": ids, "sources": sources}


def _is_pair(item: Any) -> bool:
    """Return whether something is two texts, or lists of ids; not a list of two ids."""
    if isinstance(item, str) or not hasattr(item, "__len__") or len(item) != 2:
        return False
    return all(isinstance(part, str) or hasattr(part, "__len__") for part in item)


def _split_pair(item: Any, *, where: str) -> tuple[Any, Any]:
    """Return a context, empty if there is none, and a text."""
    if _is_pair(item):
        return item[0], item[1]
    if isinstance(item, str):
        return "", item
    if not hasattr(item, "__len__"):
        raise UserError(
            f"{where}: must be a text, token ids, or a pair of these (context, text), "
            f"not {type(item).__name__}"
        )
    return [], item


def _is_text(*parts: Any) -> bool:
    return all(isinstance(part, str) for part in parts)


def _check(part: Any, *, vocab_size: int, where: str) -> None:
    """Check a text, or its ids."""
    if isinstance(part, str):
        check_utf8(part, name=where)
        return
    ids = np.asarray(part) if len(part) else np.zeros(0, int)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"{where}: must be text or a list of token ids")
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
        wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise UserError(
            f"{where}: no token id {wrong}; config.model.vocab_size = {vocab_size}"
        )


def _encode(tokenizer: Tokenizer, part: Any) -> Any:
    return tokenizer.encode(part) if isinstance(part, str) else part
