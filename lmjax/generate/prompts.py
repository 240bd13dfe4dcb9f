"""Prompts and sources: from text to ids, and to arrays. B rows, S source length."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmjax.config.decoding import ConstraintConfig
from lmjax.config.model import ModelConfig
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError
from lmjax.types import HostBatch

Prompt = str | Sequence[int]  # a text, or token ids, which are read as they are


def encode_prompt(tokenizer: Tokenizer, text: Prompt) -> list[int]:
    """Return the ids of a prompt, after the tokenizer's BOS if it has one.

    Raises:
      ConfigError: as `check_utf8`, or there is no such token.
    """
    if not isinstance(text, str):
        for token in text:
            if not 0 <= token < tokenizer.vocab_size:
                raise ConfigError(
                    f"prompt: holds {token}; must be at least 0 and below "
                    f"{tokenizer.vocab_size}"
                )
        return [int(token) for token in text]
    check_utf8(text, name="prompt")
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return bos + [int(token) for token in tokenizer.encode(text)]


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], *, config: ModelConfig
) -> dict[str, list[list[int]]]:
    """Return the arguments `prompts` and `sources` of `Generator`.

    The texts are the prompts of a decoder. They are the sources of an encoder-decoder,
    whose prompts are its `decoder_prefix_ids`.
    """
    if not config.is_encoder_decoder:
        return {"prompts": [encode_prompt(tokenizer, prompt) for prompt in prompts]}
    sources = [_encode_source(tokenizer, prompt) for prompt in prompts]
    return {
        "prompts": [[*config.decoder_prefix_ids]] * len(prompts),
        "sources": sources,
    }


def _encode_source(tokenizer: Tokenizer, source: Prompt) -> list[int]:
    if not isinstance(source, str):
        return encode_prompt(tokenizer, source)
    check_utf8(source, name="prompt")
    ids = map(int, tokenizer.encode(source))
    return [*tokenizer.prefix_ids, *ids, *tokenizer.suffix_ids]


def decode_continuation(
    tokenizer: Tokenizer, context: Sequence[int], ids: Sequence[int]
) -> str:
    """Return the text of `ids` after a context, spaces at its start included."""
    prefix = tokenizer.decode(context)
    return tokenizer.decode([*context, *ids])[len(prefix) :]


def begin_texts(
    inputs: Mapping[str, Any], *, decoding: ConstraintConfig, config: ModelConfig
) -> dict[str, Any]:
    """Return `prompts` and `sources` as texts are generated from them.

    The prompts of an encoder-decoder are its `decoder_prefix_ids` without a first id
    that is forced, which is generated then.

    Args:
      inputs: `prompts`, and of an encoder-decoder `sources`.
      decoding: how texts are generated.
      config: of the model.
    """
    if "sources" not in inputs:
        return dict(inputs)
    start = [*decoding.start_of_text(config.decoder_prefix_ids)]
    return {**inputs, "prompts": [start] * len(inputs["sources"])}


def drop_forced(
    tokens: Sequence[int], *, decoding: ConstraintConfig, config: ModelConfig
) -> Sequence[int]:
    """Return the tokens generated for a source without a first one that was forced."""
    first = decoding.constraints(config.decoder_prefix_ids).force_first
    forced = config.is_encoder_decoder and list(tokens[:1]) == [first]
    return tokens[1:] if forced else tokens


def check_sources(
    sources: Sequence[Sequence[int]] | None, *, config: ModelConfig, name: str
) -> None:
    """Raise unless an encoder-decoder can read these sources.

    Raises:
      ConfigError: a source is empty, or longer than the model's positions.
    """
    if not config.is_encoder_decoder:
        assert sources is None
        return
    assert sources is not None
    longest = max(map(len, sources), default=0)
    if not all(map(len, sources)):
        raise ConfigError(f"{name}: empty; an encoder-decoder needs a source")
    if longest > config.longest_source:
        raise ConfigError(
            f"{name}: a source of {longest} tokens "
            f"(config.model.max_length = {config.max_length})"
        )


def check_utf8(text: str, *, name: str) -> None:
    """Raise unless a text can be encoded as UTF-8.

    Raises:
      ConfigError: it holds a lone surrogate. Python decodes bytes of the command line
        that are not UTF-8 to such characters.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{name}: not UTF-8 at character {error.start}: {text[error.start]!r}"
        ) from error


def pad_sources(rows: Sequence[Sequence[int]], *, shape: tuple[int, int]) -> HostBatch:
    """Return the source arrays (B, S) of a batch, padded on the right and below."""
    ids, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        segments[i, : len(row)] = 1
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    # A table of positions may be shorter than the padded rows.
    return {
        "source": ids,
        "source_segments": segments,
        "source_positions": positions * segments,
    }
