"""Constraints on the next token.

B batch, S slots of a text, V vocabulary, W words of N ids each.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config.decoding import ConstraintConfig
from lmjax.types import Array


def penalize_repetition(
    scores_BV: Array, text_BS: Array, lengths_B: Array, *, penalty: float
) -> Array:
    """Return scores with those of ids that a text has made worse by a factor.

    Args:
      scores_BV: logits or log-probabilities.
      text_BS: int32, prompts and their continuations so far.
      lengths_B: tokens in each text.
      penalty: divides positive scores, multiplies others (Keskar et al. 2019).
    """
    if penalty == 1:
        return scores_BV
    is_text_BS = jnp.arange(text_BS.shape[1]) < lengths_B[:, None]
    seen_BV = _mark(jnp.where(is_text_BS, text_BS, -1), scores_BV.shape[1])
    worse_BV = jnp.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)
    return jnp.where(seen_BV, worse_BV, scores_BV)


def apply_constraints(
    scores_BV: Array,
    *,
    constraints: ConstraintConfig,
    text_BS: Array,
    lengths_B: Array,
    is_stop_V: Array | np.ndarray,
    num_steps: Array | int,
    max_tokens: Array | int,
) -> Array:
    """Return the scores of the next ids: -inf for the banned, 0 for the forced.

    In the order of transformers. A row in which every id would be banned is left
    unconstrained.

    Args:
      scores_BV: logits or log-probabilities; see `penalize_repetition`.
      constraints: of a model, as `DecodingConfig.constraints` returns them.
      text_BS: int32, prompts and their continuations so far.
      lengths_B: tokens in each text.
      is_stop_V: true for the ids that end a text.
      num_steps: tokens generated after the prompts, of all texts or of each.
      max_tokens: to generate, at most.
    """
    c, size = constraints, scores_BV.shape[1]
    num_steps_B = jnp.broadcast_to(num_steps, lengths_B.shape)
    banned_BV = jnp.zeros(scores_BV.shape, bool)
    if c.no_repeat_ngram:
        n = c.no_repeat_ngram
        banned_BV |= find_repeats(text_BS, lengths_B, n=n, vocab_size=size)
    for length in sorted({len(word) for word in c.bad_words}):
        words = [word for word in c.bad_words if len(word) == length]
        found_BV = find_last_ids(text_BS, lengths_B, words=words, vocab_size=size)
        # The end may come even if it is listed.
        banned_BV |= found_BV & ~is_stop_V if length == 1 else found_BV
    if c.min_tokens:
        banned_BV |= is_stop_V & (num_steps_B < c.min_tokens)[:, None]
    if c.min_length:
        banned_BV |= is_stop_V & (lengths_B < c.min_length)[:, None]
    scores_BV = _ban(scores_BV, banned_BV)
    if c.force_first >= 0:
        scores_BV = _force(scores_BV, (c.force_first,), lengths_B == 1)
    if c.force_last:
        scores_BV = _force(scores_BV, c.force_last, num_steps_B == max_tokens - 1)
    if c.suppress:
        scores_BV = _ban(scores_BV, _is_one_of(c.suppress, size))
    if c.suppress_first:
        # Of a text that begins with a forced id, the one after it.
        after = (lengths_B - num_steps_B == 1) & (c.force_first >= 0)
        is_first_B = jnp.equal(num_steps_B, after)
        banned_V = jnp.asarray(_is_one_of(c.suppress_first, size))
        scores_BV = _ban(scores_BV, banned_V & is_first_B[:, None])
    return scores_BV


def find_last_ids(
    text_BS: Array,
    lengths_B: Array,
    *,
    words: Sequence[Sequence[int]],
    vocab_size: int,
) -> Array:
    """Return which ids would complete a word, bool (B, V).

    Args:
      text_BS: texts so far.
      lengths_B: tokens in each.
      words: sequences of ids, all of one length.
      vocab_size: V.
    """
    words_WN = jnp.asarray(words, jnp.int32)
    n = words_WN.shape[1] - 1
    index_BN = lengths_B[:, None] - n + jnp.arange(n)
    tail_BN = jnp.take_along_axis(text_BS, jnp.maximum(index_BN, 0), axis=1)
    is_begun_BW = (tail_BN[:, None] == words_WN[:, :-1]).all(axis=2)
    is_begun_BW &= (lengths_B >= n)[:, None]
    return _mark(jnp.where(is_begun_BW, words_WN[:, -1], -1), vocab_size)


def _mark(ids_BN: Array, vocab_size: int) -> Array:
    """Return which ids are among those of each row, bool (B, V); -1 is none."""
    rows = jnp.arange(len(ids_BN))[:, None]
    none_BV = jnp.zeros((len(ids_BN), vocab_size), bool)
    ids_BN = jnp.where(ids_BN < 0, vocab_size, ids_BN)
    return none_BV.at[rows, ids_BN].set(True, mode="drop")


def _is_one_of(ids: Sequence[int], vocab_size: int) -> np.ndarray:
    """Return the mask of some ids, bool (V,)."""
    return np.isin(np.arange(vocab_size), ids)


def _ban(scores_BV: Array, banned_BV: Array | np.ndarray) -> Array:
    """Return scores of -inf for banned ids, unless all are or would be -inf."""
    new_BV = jnp.where(banned_BV, -jnp.inf, scores_BV)
    is_none_B1 = jnp.isneginf(new_BV).all(axis=1, keepdims=True)
    return jnp.where(is_none_B1, scores_BV, new_BV)


def _force(scores_BV: Array, ids: Sequence[int], rows_B: Array) -> Array:
    """Return, for some rows, scores of 0 for some ids and -inf for all others."""
    forced_V = np.where(_is_one_of(ids, scores_BV.shape[1]), 0.0, -np.inf)
    return jnp.where(rows_B[:, None], jnp.asarray(forced_V, scores_BV.dtype), scores_BV)


def find_repeats(text_BS: Array, lengths_B: Array, *, n: int, vocab_size: int) -> Array:
    """Return which ids would complete an n-gram that the text has, bool (B, V)."""
    index_S = jnp.arange(text_BS.shape[1])
    n = min(n, len(index_S) + 1)  # an n-gram longer than the text cannot repeat either

    def narrow(i: Array, match_BS: Array) -> Array:
        """Keep the indices whose i-th token before equals the text's i-th last one."""
        last_B1 = jnp.take_along_axis(text_BS, lengths_B[:, None] - i, axis=1)
        return match_BS & (jnp.roll(text_BS, i, axis=1) == last_B1)

    # An index matches if the n - 1 tokens before it are the last n - 1 of the text.
    match_BS = (index_S >= n - 1) & (index_S < lengths_B[:, None])
    match_BS = jax.lax.fori_loop(1, n, narrow, match_BS)
    return _mark(jnp.where(match_BS, text_BS, -1), vocab_size)
