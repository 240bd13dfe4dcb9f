"""Decoding token by token. B prompts, S slots of a text, V vocabulary."""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import ConfigError
from lmjax.generate.constraints import apply_constraints, penalize_repetition
from lmjax.generate.prompts import check_sources, pad_sources
from lmjax.generate.sampling import Sampling, sample
from lmjax.models import Model
from lmjax.nn.decode_state import DecodeState
from lmjax.parallel import sharding
from lmjax.types import Array, HostBatch, Params

# Lengths of prompts and sources are padded to powers of two between these, beyond the
# second to its multiples, which bounds the number of compilations.
SHORTEST, MULTIPLE = 16, 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GenerationState:
    """The texts so far, and the logits of the next token of each."""

    text_BS: Array  # int32 ids, prompt and continuation
    lengths_B: Array  # of the texts so far
    logits_BV: Array  # of the next token
    decode_state: DecodeState
    num_steps: Array | int = 0  # tokens generated after the prompts


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """Samples continuations from a model, compiled once for each shape and `Sampling`.

    Ids from `vocab_size` on, which only pad the model's table, are never sampled.
    """

    model: Model
    vocab_size: int | None = None

    def generate(
        self, params: Params, prompts: Sequence[Sequence[int]], **options: Any
    ) -> list[list[int]]:
        """Return the continuation of each prompt; options as for `stream`."""
        columns = list(self.stream(params, prompts, **options))
        rows = np.stack(columns, axis=1) if columns else np.zeros((len(prompts), 0))
        return [[int(t) for t in row if t >= 0] for row in rows]

    def stream(
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

        A row that has ended (with one of `stop_ids`, which is not yielded) yields -1.
        The iterator ends when all rows have, or after `max_tokens`. A row depends on
        its prompt, its index and the seed alone, not on the other rows.

        Args:
          params: the model's.
          prompts: ids to continue; `decoder_prefix_ids` for an encoder-decoder.
          max_tokens: to generate for each prompt, at most.
          sampling: how each token is chosen.
          stop_ids: ids that end a text.
          sources: of an encoder-decoder, one for each prompt.
          seed: of the random numbers.

        Raises:
          ConfigError: as `check` does.
        """
        if not 0 <= seed < 1 << 32:  # higher bits would be dropped
            raise ConfigError(f"seed = {seed}: must be >= 0, < {1 << 32}")
        least = sampling.min_tokens
        self.check(prompts, max_tokens=max_tokens, min_tokens=least, sources=sources)
        state = self.prefill(params, prompts, max_tokens=max_tokens, sources=sources)
        keys = jax.random.split(jax.random.key(seed), len(prompts))
        is_stop_V = self.stop_mask(stop_ids)
        step = functools.partial(self._step, params, sampling=sampling)
        pending = None
        ended = np.zeros(len(prompts), bool)
        for _ in range(max_tokens):
            # The device computes the next step while the host reads this one's token.
            token, state = step(state, keys, is_stop_V, max_tokens)
            if pending is not None:
                yield _hide_ended(pending, ended, stop_ids)
                if ended.all():
                    return
            pending = token
        if pending is not None:
            last = _hide_ended(pending, ended, stop_ids)
            if not ended.all():
                yield last

    def prefill(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        sources: Sequence[Sequence[int]] | None = None,
    ) -> GenerationState:
        """Read prompts, with room for `max_tokens` more; arguments as for `stream`."""
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        # The prompts of an encoder-decoder, `decoder_prefix_ids`, have one length.
        length = _pad_length(max(lengths)) if sources is None else max(lengths)
        num_slots = -(-(length + max_tokens) // SHORTEST) * SHORTEST
        text = np.zeros((len(prompts), num_slots), np.int32)
        for row, prompt in zip(text, prompts, strict=True):
            row[: len(prompt)] = prompt
        logits, decode_state = self._prefill(
            params,
            text[:, :length],
            lengths,
            cache_length=num_slots,
            source=None if sources is None else _pad_to_multiple(sources),
        )
        return GenerationState(
            jnp.asarray(text),
            jnp.asarray(lengths),
            logits,
            decode_state,
            jnp.asarray(0, jnp.int32),
        )

    def stop_mask(self, stop_ids: Collection[int]) -> np.ndarray:
        """Return which ids that may be sampled end a text, bool (V,)."""
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
        """Raise if these prompts cannot be continued by so many tokens.

        Raises:
          ConfigError: an empty prompt, more tokens than the model has positions, or
            `min_tokens` above `max_tokens`.
        """
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise ConfigError("prompt: empty, and the tokenizer has no BOS token")
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
                f"prompt: {longest} tokens leave no room to generate any "
                f"(config.model.max_length = {limit})"
            )
        if longest + max_tokens > limit:
            raise ConfigError(
                f"max_tokens = {max_tokens}: after a prompt of {longest} tokens must "
                f"be at most {limit - longest} (config.model.max_length = {limit})"
            )
        for prompt in prompts:
            self._check_growth(len(prompt), max_tokens=max_tokens)
        check_sources(sources, config=self.model.config, name="prompt")

    def _check_growth(self, length: int, *, max_tokens: int) -> None:
        config = self.model.config
        limit = config.longest_continuation(length)
        if length + max_tokens > limit:
            raise ConfigError(
                f"max_tokens = {max_tokens}: after a prompt of {length} tokens must be "
                f"at most {max(limit - length, 0)}: beyond {limit} tokens "
                "(config.model.rope_original_length) config.model.rope_scaling changes "
                "all tokens, which would have to be read anew"
            )

    @functools.cached_property
    def _prefill(self) -> Any:
        return jax.jit(self.model.prefill, static_argnames="cache_length")

    @functools.cached_property
    def _step(self) -> Any:
        def step(
            params: Params,
            state: GenerationState,
            keys: Array,
            is_stop_V: Array,
            max_tokens: Array,
            *,
            sampling: Sampling,
        ) -> tuple[Array, GenerationState]:
            """Choose the next token of each text, and read it."""
            text, lengths = state.text_BS, state.lengths_B
            step_keys = jax.vmap(jax.random.fold_in)(keys, lengths)
            logits = apply_constraints(
                penalize_repetition(
                    state.logits_BV[:, : self.vocab_size],
                    text,
                    lengths,
                    penalty=sampling.repetition_penalty,
                ),
                constraints=sampling,
                text_BS=text,
                lengths_B=lengths,
                is_stop_V=is_stop_V,
                num_steps=state.num_steps,
                max_tokens=max_tokens,
            )
            token = sample(logits, step_keys, sampling=sampling)
            text = text.at[jnp.arange(len(text)), lengths].set(token)
            logits, decode_state = self.model.decode_step(
                params, token, lengths, state.decode_state
            )
            state = GenerationState(
                text, lengths + 1, logits, decode_state, state.num_steps + 1
            )
            return sharding.replicate(token), state

        return jax.jit(step, static_argnames="sampling", donate_argnums=1)


def _pad_to_multiple(sources: Sequence[Sequence[int]]) -> HostBatch:
    length = _pad_length(max(map(len, sources)))
    return pad_sources(sources, shape=(len(sources), length))


def _pad_length(length: int) -> int:
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
