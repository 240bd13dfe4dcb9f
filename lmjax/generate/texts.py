"""Texts that are written on the device, token by token.

B texts, N new ones among them, S slots of a text, V vocabulary.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config.decoding import ConstraintConfig
from lmjax.generate.constraints import apply_constraints, penalize_repetition
from lmjax.generate.sampling import SamplingValues, sample
from lmjax.models import Model
from lmjax.nn.decode_state import DecodeState, put_rows
from lmjax.parallel import sharding
from lmjax.types import Array, Params

# Lengths of prompts, sources and texts are padded to powers of two between these, and
# beyond the second to its multiples, which bounds the number of compilations.
SHORTEST, MULTIPLE = 16, 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptState:
    """Prompts that have been read, and the logits of the next token of each."""

    text_BS: Array  # int32 ids, with room for the continuation
    lengths_B: Array  # of the prompts
    logits_BV: Array  # of the next token
    decode_state: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Texts:
    """Prompts and their continuations so far."""

    text_BS: Array  # int32 ids
    starts_B: Array  # lengths of the prompts
    lengths_B: Array  # of prompts and continuations, the id that ends one included
    ended_B: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GenerationState:
    """Texts that are being written; the last token of each has not been read yet."""

    texts: Texts
    keys_B: Array  # of the random numbers
    decode_state: DecodeState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choice:
    """How tokens are chosen: what is compiled into the program, and its arguments."""

    constraints: ConstraintConfig = dataclasses.field(metadata={"static": True})
    sampling: SamplingValues
    is_stop_V: Array | np.ndarray  # ids that end a text
    max_tokens: Array | int

    def next_texts(self, texts: Texts, logits_BV: Array, keys_B: Array) -> Texts:
        """Return the texts with one more token each, but for those that have ended."""
        text_BS, lengths_B = texts.text_BS, texts.lengths_B
        num_steps_B = lengths_B - texts.starts_B
        logits_BV = self.constrain(logits_BV, text_BS, lengths_B, num_steps_B)
        step_keys_B = jax.vmap(jax.random.fold_in)(keys_B, lengths_B)
        token_B = sample(logits_BV, step_keys_B, sampling=self.sampling)
        rows, ended_B = jnp.arange(len(text_BS)), texts.ended_B
        token_B = jnp.where(ended_B, text_BS[rows, lengths_B], token_B)
        return Texts(
            text_BS.at[rows, lengths_B].set(token_B),
            texts.starts_B,
            lengths_B + ~ended_B,
            ended_B
            | jnp.asarray(self.is_stop_V)[token_B]
            | (num_steps_B + 1 >= self.max_tokens),
        )

    def constrain(
        self, logits_BV: Array, text_BS: Array, lengths_B: Array, num_steps_B: Array
    ) -> Array:
        """Return the logits of the ids that may be sampled, as constraints have them.

        Arguments as for `apply_constraints`.
        """
        logits_BV = logits_BV[:, : len(self.is_stop_V)]
        penalty = self.constraints.repetition_penalty
        return apply_constraints(
            penalize_repetition(logits_BV, text_BS, lengths_B, penalty=penalty),
            constraints=self.constraints,
            text_BS=text_BS,
            lengths_B=lengths_B,
            is_stop_V=self.is_stop_V,
            num_steps=num_steps_B,
            max_tokens=self.max_tokens,
        )


def begin(
    decode_state: DecodeState,
    read: PromptState,
    keys_B: Array,
    choice: Choice,
    is_padding_B: Array | bool = False,
) -> tuple[Texts, GenerationState]:
    """Choose the first token after each prompt; return the texts, and their state.

    Args:
      decode_state: of the prompts that were read.
      read: the prompts, and their logits.
      keys_B: of the random numbers of each.
      choice: how tokens are chosen.
      is_padding_B: rows whose text is not wanted.
    """
    ended_B = jnp.broadcast_to(is_padding_B, read.lengths_B.shape)
    texts = Texts(read.text_BS, read.lengths_B, read.lengths_B, ended_B)
    texts = choice.next_texts(texts, read.logits_BV, keys_B)
    state = GenerationState(texts, keys_B, decode_state)
    return sharding.replicate(texts), state


def extend(
    model: Model,
    params: Params,
    state: GenerationState,
    choice: Choice,
    num_tokens: Array,
    max_running: Array,
    is_over_B: Array,
) -> tuple[tuple[Array, Texts], GenerationState]:
    """Extend all texts by some tokens, in one loop on the device.

    Args:
      model: theirs.
      params: of the model.
      state: of the texts.
      choice: how tokens are chosen.
      num_tokens: for each text, at most.
      max_running: the loop ends when no more texts than these have not ended.
      is_over_B: texts that the host has ended.

    Returns:
      By how many tokens, with the texts, for the host; and the new state.
    """

    def is_running(carry: tuple[Array, GenerationState]) -> Array:
        step, state = carry
        return (step < num_tokens) & ((~state.texts.ended_B).sum() > max_running)

    def step(carry: tuple[Array, GenerationState]) -> tuple[Array, GenerationState]:
        num, state = carry
        texts = state.texts
        positions_B = texts.lengths_B - 1
        token_B = jnp.take_along_axis(texts.text_BS, positions_B[:, None], axis=1)[:, 0]
        logits_BV, decode_state = model.decode_step(
            params, token_B, positions_B, state.decode_state
        )
        texts = choice.next_texts(texts, logits_BV, state.keys_B)
        return num + 1, GenerationState(texts, state.keys_B, decode_state)

    ended_B = state.texts.ended_B | is_over_B
    texts = dataclasses.replace(state.texts, ended_B=ended_B)
    state = dataclasses.replace(state, texts=texts)
    zero = jnp.zeros((), jnp.int32)
    num, state = jax.lax.while_loop(is_running, step, (zero, state))
    return sharding.replicate((num, state.texts)), state


def continuations(texts: Any, stop_ids: Collection[int]) -> list[list[int]]:
    """Return the tokens after each prompt, without the id that ends a text.

    Args:
      texts: on the host.
      stop_ids: ids that end a text.
    """
    rows = zip(texts.text_BS, texts.starts_B, texts.lengths_B, strict=True)
    tokens = [row[start:stop].tolist() for row, start, stop in rows]
    return [t[:-1] if t and t[-1] in stop_ids else t for t in tokens]


def put(
    state: GenerationState, new: GenerationState, rows_N: Array, is_live_B: Array
) -> GenerationState:
    """Return the state with new texts in some rows, all moved to the first slots.

    Args:
      state: of B texts.
      new: of N texts.
      rows_N: where each new one goes; those from B on go nowhere.
      is_live_B: the others that are still needed.
    """
    old_texts, new_texts = vars(state.texts), vars(new.texts)
    texts = {
        name: put_rows(old_texts[name], new_texts[name], rows_N) for name in old_texts
    }
    return GenerationState(
        Texts(**texts),
        state.keys_B.at[rows_N].set(new.keys_B, mode="drop"),
        state.decode_state.put(new.decode_state, rows_N, is_live_R=is_live_B),
    )


def compact(state: GenerationState, is_live_B: Array) -> GenerationState:
    """Return the state with all texts that are needed moved to the first slots."""
    nowhere_B = jnp.full(is_live_B.shape, len(is_live_B))
    return put(state, state, nowhere_B, is_live_B)


def pad_length(length: int) -> int:
    """Return the length that prompts and texts are padded to."""
    if length > MULTIPLE:
        return -(-int(length) // MULTIPLE) * MULTIPLE
    return max(1 << (int(length) - 1).bit_length(), SHORTEST)


def power_of_two(count: int) -> int:
    """Return the power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()


def read_length(prompts: Sequence[Sequence[int]], sources: Any) -> int:
    """Return the length that prompts are padded to."""
    longest = max(map(len, prompts))
    # The prompts of an encoder-decoder, `decoder_prefix_ids`, have one length.
    return pad_length(longest) if sources is None else longest


def slots_for(
    prompts: Sequence[Sequence[int]], sources: Any, max_tokens: int, *, spare: int = 0
) -> int:
    """Return the slots of a text, for prompts and `max_tokens` more, padded too."""
    return pad_length(read_length(prompts, sources) + max_tokens + spare)
