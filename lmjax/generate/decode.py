"""Decoding with a cache. B batch, T prompt length, S places of a text."""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config.model import ModelConfig
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError
from lmjax.generate.constraints import constrained
from lmjax.generate.sampling import Sampling, sample
from lmjax.models import Model
from lmjax.parallel import sharding
from lmjax.types import Array, HostBatch, Params

# Prompts and sources are padded to powers of two from the one to the other, and from
# there on to multiples, which bounds compilations.
SHORTEST, MULTIPLE = 16, 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Written:
    """Texts so far, and what goes on from them."""

    text_BS: Array  # int32 ids, as long as the cache
    lengths_B: Array  # how many of them there are
    logits_BV: Array  # for the next
    cache: Any
    num_steps: Array | int = 0  # tokens written after the prompts


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """A model's decoding functions, compiled once for each shape and sampling.

    Ids from `vocab_size` on, which only fill the model's table up, are never drawn.
    """

    model: Model
    vocab_size: int | None = None

    def tokens(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        sampling: Sampling,
        stop_ids: Collection[int],
        sources: Sequence[Sequence[int]] | None = None,
        seed: int = 0,
    ) -> Iterator[np.ndarray]:
        """Yield the next token of every prompt, int32 (B,), step by step.

        A row that has ended (with one of `stop_ids`, which is not yielded) yields -1;
        when all have, or after `max_tokens`, the iterator ends. What a row yields
        depends on its prompt, its index and the seed alone, not on the rows beside it.

        Args:
          params: the model's.
          prompts: ids to continue; `decoder_prefix_ids` for an encoder-decoder.
          max_tokens: to yield for each prompt.
          sampling: how the next token is chosen.
          stop_ids: what ends a row.
          sources: what an encoder-decoder reads, one for each prompt.
          seed: of chance.

        Raises:
          ConfigError: as `check` does.
        """
        if not 0 <= seed < 1 << 32:  # higher bits would be dropped
            raise ConfigError(f"seed = {seed}: must be >= 0, < {1 << 32}")
        least = sampling.min_tokens
        self.check(prompts, max_tokens=max_tokens, min_tokens=least, sources=sources)
        written = self.begin(params, prompts, max_tokens=max_tokens, sources=sources)
        keys = jax.random.split(jax.random.key(seed), len(prompts))
        ends_V = self.ends(stop_ids)
        step = functools.partial(self._step, params, sampling=sampling)
        waiting = None
        ended = np.zeros(len(prompts), bool)
        for _ in range(max_tokens):
            # The next step is under way before the host looks at this one's token.
            token, written = step(written, keys, ends_V)
            if waiting is not None:
                yield _hide_ended(waiting, ended, stop_ids)
                if ended.all():
                    return
            waiting = token
        if waiting is not None:
            last = _hide_ended(waiting, ended, stop_ids)
            if not ended.all():
                yield last

    def continuations(
        self, params: Params, prompts: Sequence[Sequence[int]], **options: Any
    ) -> list[list[int]]:
        """Return the tokens that follow each prompt; options as for `tokens`."""
        columns = list(self.tokens(params, prompts, **options))
        rows = np.stack(columns, axis=1) if columns else np.zeros((len(prompts), 0))
        return [[int(t) for t in row if t >= 0] for row in rows]

    def begin(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        sources: Sequence[Sequence[int]] | None = None,
    ) -> Written:
        """Read prompts, with room for `max_tokens` more; arguments as for `tokens`."""
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        # What an encoder-decoder begins with is always of one length.
        length = _padded(max(lengths)) if sources is None else max(lengths)
        num_slots = -(-(length + max_tokens) // SHORTEST) * SHORTEST
        text = np.zeros((len(prompts), num_slots), np.int32)
        for row, prompt in zip(text, prompts, strict=True):
            row[: len(prompt)] = prompt
        logits, cache = self._prefill(
            params,
            text[:, :length],
            lengths,
            cache_length=num_slots,
            source=None if sources is None else _padded_sources(sources),
        )
        at = jnp.asarray
        return Written(at(text), at(lengths), logits, cache, at(0, jnp.int32))

    def ends(self, stop_ids: Collection[int]) -> np.ndarray:
        """Return which of the ids that may be drawn end a text, bool (V,)."""
        size = self.vocab_size or self.model.config.vocab_size
        return np.isin(np.arange(size), list(stop_ids))

    def check(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        min_tokens: int = 0,
        sources: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Raise if `tokens` would not continue these prompts.

        Raises:
          ConfigError: an empty prompt, more tokens than the model has positions, or
            fewer than there must be.
        """
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise ConfigError("prompt: empty, and the tokenizer has no token to begin")
        if max_tokens < 1:
            raise ConfigError(f"max_tokens = {max_tokens}: must be >= 1")
        if min_tokens > max_tokens:
            raise ConfigError(
                f"min_tokens = {min_tokens}: must be at most max_tokens = {max_tokens}"
            )
        longest = max(len(prompt) for prompt in prompts)
        limit = self.model.config.longest_text
        if longest >= limit:
            raise ConfigError(
                f"prompt: of {longest} tokens, which leave none to be written "
                f"(config.model.max_length = {limit})"
            )
        if longest + max_tokens > limit:
            raise ConfigError(
                f"max_tokens = {max_tokens}: with a prompt of {longest} tokens must be "
                f"at most {limit - longest} (config.model.max_length = {limit})"
            )
        check_sources(sources, config=self.model.config, name="prompt")

    @functools.cached_property
    def _prefill(self) -> Any:
        return jax.jit(self.model.prefill, static_argnames="cache_length")

    @functools.cached_property
    def _step(self) -> Any:
        def step(
            params: Params,
            before: Written,
            keys: Array,
            ends_V: Array,
            *,
            sampling: Sampling,
        ) -> tuple[Array, Written]:
            text, lengths = before.text_BS, before.lengths_B
            step_keys = jax.vmap(jax.random.fold_in)(keys, lengths)
            logits = constrained(
                before.logits_BV[:, : self.vocab_size],
                min_tokens=sampling.min_tokens,
                no_repeat_ngram=sampling.no_repeat_ngram,
                text_BS=text,
                lengths_B=lengths,
                ends_V=ends_V,
                num_steps=before.num_steps,
            )
            token = sample(logits, step_keys, sampling=sampling)
            text = text.at[jnp.arange(len(text)), lengths].set(token)
            logits, cache = self.model.decode_step(params, token, lengths, before.cache)
            num_steps = before.num_steps + 1
            written = Written(text, lengths + 1, logits, cache, num_steps)
            return sharding.replicate(token), written

        return jax.jit(step, static_argnames="sampling", donate_argnums=1)


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a prompt, after the tokenizer's BOS if it has one.

    Raises:
      ConfigError: bytes of the command line were not UTF-8, or a surrogate is halved.
    """
    check_text(text, name="prompt")
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return bos + [int(token) for token in tokenizer.encode(text)]


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[str], *, config: ModelConfig
) -> dict[str, list[list[int]]]:
    """Return the ids that a model begins with, and of an encoder-decoder the sources.

    They are arguments of `Generator.tokens`.
    """
    t = tokenizer
    if not config.is_encoder_decoder:
        return {"prompts": [encode_prompt(t, prompt) for prompt in prompts]}
    for prompt in prompts:
        check_text(prompt, name="prompt")
    sources = [[*t.prefix_ids, *map(int, t.encode(p)), *t.suffix_ids] for p in prompts]
    return {
        "prompts": [[*config.decoder_prefix_ids]] * len(prompts),
        "sources": sources,
    }


def check_sources(
    sources: Sequence[Sequence[int]] | None, *, config: ModelConfig, name: str
) -> None:
    """Raise unless an encoder-decoder can read these sources.

    Raises:
      ConfigError: an empty source, or one longer than the model's positions.
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


def source_batch(rows: Sequence[Sequence[int]], *, shape: tuple[int, int]) -> HostBatch:
    """Return sources as arrays of one shape, padded on the right and below."""
    ids, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        segments[i, : len(row)] = 1
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    # Places that no text fills have no row in a table of positions.
    return {
        "source": ids,
        "source_segments": segments,
        "source_positions": positions * segments,
    }


def _padded_sources(rows: Sequence[Sequence[int]]) -> HostBatch:
    return source_batch(rows, shape=(len(rows), _padded(max(map(len, rows)))))


def check_text(text: str, *, name: str) -> None:
    """Raise unless a text can be written in UTF-8.

    Raises:
      ConfigError: it holds half of a surrogate pair, as which Python carries bytes of
        the command line that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{name}: not UTF-8 at character {error.start}: {text[error.start]!r}"
        ) from error


def _padded(length: int) -> int:
    if length > MULTIPLE:
        return -(-int(length) // MULTIPLE) * MULTIPLE
    return max(1 << (int(length) - 1).bit_length(), SHORTEST)


def _hide_ended(
    token: Array, ended: np.ndarray, stop_ids: Collection[int]
) -> np.ndarray:
    """Return the tokens on the host, -1 for ended rows, and update `ended`."""
    row = np.array(token)
    ended |= np.isin(row, list(stop_ids))
    row[ended] = -1
    return row
