"""What may be written next. B batch, S places of a text, V vocabulary."""

import jax
import jax.numpy as jnp

from lmjax.types import Array


def constrained(
    scores_BV: Array,
    *,
    min_tokens: int,
    no_repeat_ngram: int,
    text_BS: Array,
    lengths_B: Array,
    ends_V: Array,
    num_steps: Array | int,
) -> Array:
    """Return the scores of the next ids, -inf of those that may not come.

    Where none might come, all may.

    Args:
      scores_BV: logits or log-probabilities.
      min_tokens: that come before the end of a text.
      no_repeat_ngram: so many tokens in a row come once, those of the prompt included
        (Paulus et al. 2018); 0: as often as they like.
      text_BS: int32, prompts and what was written after them.
      lengths_B: how many tokens each text has.
      ends_V: which ids end a text.
      num_steps: tokens written after the prompts.
    """
    if not (min_tokens or no_repeat_ngram):
        return scores_BV
    banned_BV = jnp.zeros(scores_BV.shape, bool)
    if min_tokens:
        banned_BV |= ends_V & (num_steps < min_tokens)
    if no_repeat_ngram:
        n, size = no_repeat_ngram, scores_BV.shape[1]
        banned_BV |= repeating(text_BS, lengths_B, n=n, vocab_size=size)
    banned_BV &= ~banned_BV.all(axis=1, keepdims=True)
    return jnp.where(banned_BV, -jnp.inf, scores_BV)


def repeating(text_BS: Array, lengths_B: Array, *, n: int, vocab_size: int) -> Array:
    """Return which ids would end n tokens that are in the text, bool (B, V)."""
    places_S = jnp.arange(text_BS.shape[1])
    n = min(n, len(places_S) + 1)  # more than a text may have do not come twice either

    def narrow(i: Array, match_BS: Array) -> Array:
        """Keep the places i after a token that is the last but i - 1 of its text."""
        last_B1 = jnp.take_along_axis(text_BS, lengths_B[:, None] - i, axis=1)
        return match_BS & (jnp.roll(text_BS, i, axis=1) == last_B1)

    # A place matches if the n - 1 tokens before it are the last n - 1 of the text.
    match_BS = (places_S >= n - 1) & (places_S < lengths_B[:, None])
    match_BS = jax.lax.fori_loop(1, n, narrow, match_BS)
    ids_BS = jnp.where(match_BS, text_BS, vocab_size)
    rows = jnp.arange(len(text_BS))[:, None]
    none_BV = jnp.zeros((len(text_BS), vocab_size), bool)
    return none_BV.at[rows, ids_BS].set(True, mode="drop")
