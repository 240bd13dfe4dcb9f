"""Speculative decoding: a small model drafts tokens, the large one checks them at once.

One text. S slots of a text, M drafted tokens, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.errors import ConfigError
from lmjax.generate.decode import Generator, check_seed
from lmjax.generate.sampling import Sampling, token_log_probs
from lmjax.generate.texts import Choice, Texts, continuations, slots_for
from lmjax.models import Model
from lmjax.parallel import sharding
from lmjax.types import Array, Params

NUM_DRAFT = 4  # by default
DRAFT, ACCEPT, RESAMPLE = range(3)  # what random numbers of a position are for


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SpeculativeState:
    """A text whose last token neither model has read yet."""

    texts: Texts  # of one row
    key: Array
    target: Any  # decode states
    draft: Any
    num_rounds: Array


@dataclasses.dataclass(frozen=True, eq=False)
class SpeculativeGenerator:
    """Writes the texts of one model with the help of a smaller one.

    The tokens have the distribution of the model's own (Leviathan et al. 2023; Chen et
    al. 2023): a drafted token is kept with probability min(1, p / q), where p is its
    probability and q the draft's, and one that is not is replaced by a sample of
    max(p - q, 0). Greedy texts are those of the model alone.

    Args:
      target: the model.
      draft: a model of the same vocabulary.
      num_draft: tokens that are drafted at a time.

    Raises:
      ConfigError: a model cannot forget tokens that it has read.
    """

    target: Generator
    draft: Generator
    num_draft: int = NUM_DRAFT

    def __post_init__(self) -> None:
        if self.num_draft < 1:
            raise ConfigError(f"num_draft = {self.num_draft}: must be >= 1")
        for name, generator in (("model", self.target), ("draft", self.draft)):
            config = generator.model.config
            if config.has_carry or config.kind.startswith("recurrent"):
                raise ConfigError(
                    f"draft: the {name} has config.model.kind = {config.kind!r}; "
                    "speculative decoding needs Transformers, which forget tokens"
                )

    def stream(
        self,
        params: Params,
        draft_params: Params,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        sampling: Sampling,
        stop_ids: Collection[int],
        source: Sequence[int] | None = None,
        seed: int = 0,
        block: int = 32,
    ) -> Iterator[list[int]]:
        """Yield the next tokens of a text, some at a time; at least one.

        Args:
          params: of the model.
          draft_params: of the draft.
          prompt: ids to continue.
          max_tokens: to generate, at most.
          sampling: how each token is chosen.
          stop_ids: ids that end a text; they are not yielded.
          source: of encoder-decoders.
          seed: of the random numbers; they are not those of `Generator`.
          block: tokens that the device generates, about, before they are yielded.

        Raises:
          ConfigError: as `Generator.check` does, for either model.
        """
        check_seed(seed)
        sources = None if source is None else [source]
        least = sampling.min_tokens
        options: Any = {"max_tokens": max_tokens, "sources": sources}
        for generator in (self.target, self.draft):
            generator.check([prompt], min_tokens=least, **options)
        num_slots = slots_for([prompt], sources, max_tokens, spare=self.num_draft + 1)
        read, draft_read = (
            generator.prefill(
                own,
                [prompt],
                num_slots=num_slots,
                cache_length=num_slots,
                sources=sources,
            )
            for generator, own in ((self.target, params), (self.draft, draft_params))
        )
        choice = self.target.choice(sampling, stop_ids=stop_ids, max_tokens=max_tokens)
        keys = jax.random.split(jax.random.key(seed), 1)
        view, begun = self.target.begin(read, keys, choice)
        state = SpeculativeState(
            begun.texts,
            begun.keys_B[0],
            begun.decode_state,
            draft_read.decode_state,
            jnp.zeros((), jnp.int32),
        )
        done, size = 0, 1
        while True:
            next_view, state = self._extend(params, draft_params, state, choice, size)
            texts = jax.device_get(view)
            (tokens,) = continuations(texts, stop_ids)
            if tokens[done:]:
                yield tokens[done:]
            if texts.ended_B.all():
                return
            view, done, size = next_view, len(tokens), min(2 * size, block)

    @functools.cached_property
    def _extend(self) -> Any:
        models = (self.target.model, self.draft.model)
        extend = functools.partial(_extend, *models, num_draft=self.num_draft)
        return jax.jit(extend, donate_argnums=2)


def _extend(
    target: Model,
    draft: Model,
    params: Params,
    draft_params: Params,
    state: SpeculativeState,
    choice: Choice,
    num_tokens: Array,
    *,
    num_draft: int,
) -> tuple[Texts, SpeculativeState]:
    """Extend the text by at least so many tokens, unless it ends."""
    stop = state.texts.lengths_B[0] + num_tokens

    def is_running(state: SpeculativeState) -> Array:
        return (state.texts.lengths_B[0] < stop) & ~state.texts.ended_B[0]

    def advance(state: SpeculativeState) -> SpeculativeState:
        text_S, draft_state, q_MV = _draft(
            draft, draft_params, state, choice, num_draft=num_draft
        )
        length = state.texts.lengths_B[0]
        tokens_M = jax.lax.dynamic_slice(text_S, (length - 1,), (num_draft + 1,))
        positions_M = length - 1 + jnp.arange(num_draft + 1)
        logits_MV, target_state = target.extend(
            params, tokens_M[None], positions_M[None], state.target
        )
        p_MV = _log_probs(
            logits_MV[0], text_S, length + jnp.arange(num_draft + 1), state, choice
        )
        num_kept, token = _check(tokens_M[1:], p_MV, q_MV, length, state.key)
        text_S = text_S.at[length + num_kept].set(token)
        rewind = num_draft - num_kept
        return SpeculativeState(
            _end(state.texts, text_S, length + num_kept + 1, choice),
            state.key,
            _rewind(target_state, rewind),
            _rewind(draft_state, rewind),
            state.num_rounds + 1,
        )

    state = jax.lax.while_loop(is_running, advance, state)
    return sharding.replicate(state.texts), state


def _draft(
    model: Model,
    params: Params,
    state: SpeculativeState,
    choice: Choice,
    *,
    num_draft: int,
) -> tuple[Array, Any, Array]:
    """Return the text with M more tokens, the draft's state and its log-probabilities.

    The state has read all M, so that none is missing where all are kept.
    """
    length = state.texts.lengths_B[0]

    def step(carry: Any, i: Array) -> tuple[Any, Array]:
        text_S, decode_state = carry
        token = text_S[length - 1 + i]
        logits_1V, decode_state = model.decode_step(
            params, token[None], (length - 1 + i)[None], decode_state
        )
        q_1V = _log_probs(logits_1V, text_S, (length + i)[None], state, choice)
        key = _key(state.key, length + i, DRAFT)
        new = jax.random.categorical(key, q_1V[0]).astype(text_S.dtype)
        return (text_S.at[length + i].set(new), decode_state), q_1V[0]

    carry = (state.texts.text_BS[0], state.draft)
    (text_S, decode_state), q_MV = jax.lax.scan(step, carry, jnp.arange(num_draft + 1))
    return text_S, decode_state, q_MV[:num_draft]


def _log_probs(
    logits_MV: Array,
    text_S: Array,
    lengths_M: Array,
    state: SpeculativeState,
    choice: Choice,
) -> Array:
    """Return the log-probabilities that tokens are sampled by, float32 (M, V)."""
    text_MS = jnp.broadcast_to(text_S, (len(lengths_M), len(text_S)))
    num_steps_M = lengths_M - state.texts.starts_B[0]
    logits_MV = choice.constrain(logits_MV, text_MS, lengths_M, num_steps_M)
    return token_log_probs(logits_MV, sampling=choice.sampling)


def _check(
    tokens_M: Array, p_MV: Array, q_MV: Array, length: Array, key: Array
) -> tuple[Array, Array]:
    """Return how many of M drafted tokens are kept, and the token after them.

    Args:
      tokens_M: drafted.
      p_MV: log-probabilities of the model, those after the last token included.
      q_MV: of the draft.
      length: of the text before them.
      key: of the random numbers.
    """
    num = len(tokens_M)
    at = (jnp.arange(num), tokens_M)
    positions_M = length + jnp.arange(num)
    keys_M = jax.vmap(lambda position: _key(key, position, ACCEPT))(positions_M)
    uniform_M = jax.vmap(jax.random.uniform)(keys_M)
    is_kept_M = uniform_M < jnp.exp(p_MV[at] - q_MV[at])
    num_kept = jnp.cumprod(is_kept_M.astype(jnp.int32)).sum()
    # Nothing was drafted after all M: the sample there is of p itself.
    q_V = jnp.where(num_kept < num, jnp.exp(q_MV[jnp.minimum(num_kept, num - 1)]), 0.0)
    rest_V = jnp.maximum(jnp.exp(p_MV[num_kept]) - q_V, 0.0)
    # By rounding alone nothing may be left, where p and q are the same.
    rest_V = jnp.where(rest_V.sum() > 0, rest_V, jnp.exp(p_MV[num_kept]))
    own_key = _key(key, length + num_kept, RESAMPLE)
    token = jax.random.categorical(own_key, jnp.log(rest_V))
    return num_kept, token.astype(tokens_M.dtype)


def _rewind(state: Any, num_tokens: Array) -> Any:
    return state.rewind(num_tokens)


def _key(key: Array, position: Array, purpose: int) -> Array:
    return jax.random.fold_in(jax.random.fold_in(key, position), purpose)


def _end(texts: Texts, text_S: Array, length: Array, choice: Choice) -> Texts:
    """Return the text with its new tokens, up to where it ends."""
    index_S = jnp.arange(len(text_S))
    is_new_S = (index_S >= texts.lengths_B[0]) & (index_S < length)
    is_stop_V = jnp.asarray(choice.is_stop_V)
    is_end_S = is_new_S & (
        is_stop_V[text_S] | (index_S + 1 - texts.starts_B[0] >= choice.max_tokens)
    )
    end = jnp.where(is_end_S, index_S + 1, length).min()
    return Texts(
        text_S[None], texts.starts_B, end[None].astype(jnp.int32), is_end_S.any()[None]
    )
