"""Decoding token by token. B prompts, S slots of a text, V vocabulary."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import ConfigError
from lmjax.generate import texts
from lmjax.generate.continuous import Rows
from lmjax.generate.prompts import check_sources, pad_sources
from lmjax.generate.sampling import Sampling
from lmjax.generate.texts import (
    Choice,
    GenerationState,
    PromptState,
    Texts,
    continuations,
    pad_length,
    read_length,
    slots_for,
)
from lmjax.models import Model
from lmjax.types import Params

BLOCK = 32  # tokens that are generated for one trip of the host to the device

# Of the number of a prompt and its tokens so far: whether its text ends here.
IsOver = Callable[[int, list[int]], bool]


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """Samples continuations from a model, compiled once for each shape and constraint.

    Ids from `vocab_size` on, which only pad the model's table, are never sampled.
    """

    model: Model
    vocab_size: int | None = None

    def generate(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        sampling: Sampling,
        stop_ids: Collection[int],
        sources: Sequence[Sequence[int]] | None = None,
        seed: int = 0,
        is_over: IsOver | None = None,
    ) -> list[list[int]]:
        """Return the continuation of each prompt; arguments as for `stream`.

        There may be any number: a batch is kept full of those that are not done. A
        continuation depends on its prompt, its index and the seed alone.

        Args:
          params: the model's.
          prompts: ids to continue.
          max_tokens: to generate for each prompt, at most.
          sampling: how each token is chosen.
          stop_ids: ids that end a text.
          sources: of an encoder-decoder, one for each prompt.
          seed: of the random numbers.
          is_over: asked after each block of tokens; they end a text as `stop_ids` do,
            but stay in the result.

        Raises:
          ConfigError: as `check` does.
        """
        check_seed(seed)
        self.check(
            prompts,
            max_tokens=max_tokens,
            min_tokens=sampling.min_tokens,
            sources=sources,
        )
        rows = Rows(
            self,
            params,
            prompts,
            sources,
            jax.random.split(jax.random.key(seed), len(prompts)),
            self.choice(sampling, stop_ids=stop_ids, max_tokens=max_tokens),
        )
        results: list[list[int]] = [[] for _ in prompts]
        block = BLOCK if is_over else max_tokens
        while not rows.is_done:
            for i, tokens in rows.advance(stop_ids, block=block):
                results[i] = tokens
                if is_over is not None and is_over(i, tokens):
                    rows.release(i)
        return results

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
        block: int = BLOCK,
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
          block: tokens that the device generates, at most, before they are yielded.
            The first come one by one.

        Raises:
          ConfigError: as `check` does.
        """
        check_seed(seed)
        least = sampling.min_tokens
        self.check(prompts, max_tokens=max_tokens, min_tokens=least, sources=sources)
        choice = self.choice(sampling, stop_ids=stop_ids, max_tokens=max_tokens)
        size = slots_for(prompts, sources, max_tokens)
        read = self.prefill(
            params, prompts, num_slots=size, cache_length=size, sources=sources
        )
        keys = jax.random.split(jax.random.key(seed), len(prompts))
        view, state = self.begin(read, keys, choice)
        size, done = 1, 0
        while True:
            # The device computes the next block while the host reads this one.
            (_, next_view), state = self.extend(params, state, choice, size, 0, False)
            view = jax.device_get(view)
            tokens = continuations(view, stop_ids)
            num = max(map(len, tokens))
            for step in range(done, num):
                yield np.array([t[step] if step < len(t) else -1 for t in tokens])
            done = num
            if view.ended_B.all():
                return
            view, size = next_view, min(2 * size, block)

    def choice(
        self, sampling: Sampling, *, stop_ids: Collection[int], max_tokens: int
    ) -> Choice:
        """Return how tokens are chosen; arguments as for `stream`."""
        return Choice(
            sampling.bare_constraints,
            sampling.values,
            self.stop_mask(stop_ids),
            max_tokens,
        )

    def prefill(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        *,
        num_slots: int,
        cache_length: int | None = None,
        sources: Sequence[Sequence[int]] | None = None,
        source_length: int = 0,
    ) -> PromptState:
        """Read prompts.

        Args:
          params: the model's.
          prompts: as for `stream`.
          num_slots: of a text, its continuation included.
          cache_length: slots of the cache; None: only those that the prompts fill.
          sources: as for `stream`.
          source_length: of the longest source of other prompts.
        """
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        length = read_length(prompts, sources)
        text = np.zeros((len(prompts), num_slots), np.int32)
        for row, prompt in zip(text, prompts, strict=True):
            row[: len(prompt)] = prompt
        source = None
        if sources is not None:
            source_length = pad_length(max(source_length, *map(len, sources), 1))
            source = pad_sources(sources, shape=(len(sources), source_length))
        logits, decode_state = self._prefill(
            params,
            text[:, :length],
            lengths,
            cache_length=cache_length or length,
            source=source,
        )
        return PromptState(
            jnp.asarray(text), jnp.asarray(lengths), logits, decode_state
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

    def begin(
        self, read: PromptState, keys_B: Any, choice: Choice, is_padding_B: Any = False
    ) -> tuple[Texts, GenerationState]:
        """Run `texts.begin`; the decode state of `read` is used up."""
        rest = dataclasses.replace(read, decode_state=None)
        return self._begin(read.decode_state, rest, keys_B, choice, is_padding_B)

    @functools.cached_property
    def _begin(self) -> Any:
        return jax.jit(texts.begin, donate_argnums=0)

    @functools.cached_property
    def extend(self) -> Any:
        """Return `texts.extend`, compiled."""
        return jax.jit(functools.partial(texts.extend, self.model), donate_argnums=1)

    @functools.cached_property
    def put(self) -> Any:
        """Return `texts.put`, compiled."""
        return jax.jit(texts.put, donate_argnums=0)

    @functools.cached_property
    def compact(self) -> Any:
        """Return `texts.compact`, compiled."""
        return jax.jit(texts.compact, donate_argnums=0)


def check_seed(seed: int) -> None:
    """Raise unless all bits of a seed are used.

    Raises:
      ConfigError: higher bits would be dropped.
    """
    if not 0 <= seed < 1 << 32:
        raise ConfigError(f"seed = {seed}: must be >= 0, < {1 << 32}")
