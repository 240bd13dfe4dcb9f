"""Constraints on the next token. B batch, S slots of a text, V vocabulary."""

import jax
import jax.numpy as jnp

from lmjax.types import Array


def apply_constraints(
    scores_BV: Array,
    *,
    min_tokens: int,
    no_repeat_ngram: int,
    text_BS: Array,
    lengths_B: Array,
    is_stop_V: Array,
    num_steps: Array | int,
) -> Array:
    """Return the scores of the next ids, -inf for those that are banned.

    A row in which every id would be banned is left unconstrained.

    Args:
      scores_BV: logits or log-probabilities.
      min_tokens: to generate before the text may end.
      no_repeat_ngram: no n-gram of this length may occur twice, those of the prompt
        included (Paulus et al. 2018); 0: no limit.
      text_BS: int32, prompts and their continuations so far.
      lengths_B: tokens in each text.
      is_stop_V: true for the ids that end a text.
      num_steps: tokens generated after the prompts.
    """
    if not (min_tokens or no_repeat_ngram):
        return scores_BV
    banned_BV = jnp.zeros(scores_BV.shape, bool)
    if min_tokens:
        banned_BV |= is_stop_V & (num_steps < min_tokens)
    if no_repeat_ngram:
        n, size = no_repeat_ngram, scores_BV.shape[1]
        banned_BV |= find_repeats(text_BS, lengths_B, n=n, vocab_size=size)
    banned_BV &= ~banned_BV.all(axis=1, keepdims=True)
    return jnp.where(banned_BV, -jnp.inf, scores_BV)


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
    ids_BS = jnp.where(match_BS, text_BS, vocab_size)
    rows = jnp.arange(len(text_BS))[:, None]
    none_BV = jnp.zeros((len(text_BS), vocab_size), bool)
    return none_BV.at[rows, ids_BS].set(True, mode="drop")
