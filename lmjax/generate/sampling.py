"""Sampling of the next token. B batch, V vocabulary."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from lmjax.errors import ConfigError
from lmjax.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Options of sampling; temperature 0 is greedy decoding.

    top_k keeps the k most likely tokens (Fan et al. 2018), top_p the fewest whose
    probabilities sum to p (Holtzman et al. 2020). The constraints `min_tokens` and
    `no_repeat_ngram` are applied before them: see `apply_constraints`.
    """

    temperature: float = 1.0
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    min_tokens: int = 0  # before the text may end
    no_repeat_ngram: int = 0  # 0: no limit

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature = {self.temperature}: must be a finite number >= 0"
            )
        for name in ("top_k", "min_tokens", "no_repeat_ngram"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"{name} = {value}: must be >= 0 (0: no limit)")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p = {self.top_p}: must be above 0, at most 1")


def sample(logits_BV: Array, keys_B: Array, *, sampling: Sampling) -> Array:
    """Sample one token id for each row with its own key, int32 (B,)."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits = logits_BV / sampling.temperature
    draw = jax.vmap(jax.random.categorical)
    if not sampling.top_k and sampling.top_p == 1:
        return draw(keys_B, logits).astype(jnp.int32)
    size = logits.shape[-1]
    # Most likely first; ties go to the lowest id, as in argmax.
    ordered, ids = jax.lax.top_k(logits, min(sampling.top_k or size, size))
    if sampling.top_p < 1:
        ordered = _keep_top_p(ordered, sampling.top_p)
    index = draw(keys_B, ordered)[:, None]
    return jnp.take_along_axis(ids, index, axis=-1)[:, 0].astype(jnp.int32)


def _keep_top_p(ordered: Array, top_p: float) -> Array:
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # Keep a token while those before it sum to less than top_p: at least the first.
    return jnp.where(before < top_p, ordered, -jnp.inf)
