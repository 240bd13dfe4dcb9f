"""How the next token is chosen. B batch, V vocabulary."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from lmjax.errors import ConfigError
from lmjax.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Temperature 0 takes the most likely token; the others cut the rest off first.

    top_k keeps the k most likely tokens (Fan et al. 2018), top_p the fewest that make
    up a probability of p (Holtzman et al. 2020). What may not come is cut off before.
    """

    temperature: float = 1.0
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    min_tokens: int = 0  # before the end of a text
    no_repeat_ngram: int = 0  # 0: any may come again

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
    """Return one token id a row, int32 (B,), by its row's key."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits = logits_BV / sampling.temperature
    draw = jax.vmap(jax.random.categorical)
    if not sampling.top_k and sampling.top_p == 1:
        return draw(keys_B, logits).astype(jnp.int32)
    size = logits.shape[-1]
    # The most likely first; of equally likely ones, the lowest id, as arg max does.
    ordered, ids = jax.lax.top_k(logits, min(sampling.top_k or size, size))
    if sampling.top_p < 1:
        ordered = _keep_top_p(ordered, sampling.top_p)
    place = draw(keys_B, ordered)[:, None]
    return jnp.take_along_axis(ids, place, axis=-1)[:, 0].astype(jnp.int32)


def _keep_top_p(ordered: Array, top_p: float) -> Array:
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # A token stays while those before it do not yet make up top_p: at least one does.
    return jnp.where(before < top_p, ordered, -jnp.inf)
