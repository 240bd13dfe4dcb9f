"""How the next token is chosen. B batch, V vocabulary."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.config import ConfigError
from lmjax.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Temperature 0 takes the most likely token; the others cut the rest off first.

    top_k keeps the k most likely tokens (Fan et al. 2018), top_p the fewest that make
    up a probability of p (Holtzman et al. 2020).
    """

    temperature: float = 1.0
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"temperature = {self.temperature}: must be >= 0")
        if self.top_k < 0:
            raise ConfigError(f"top_k = {self.top_k}: must be >= 0 (0: no limit)")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p = {self.top_p}: must be above 0, at most 1")


def sample(logits_BV: Array, keys_B: Array, *, sampling: Sampling) -> Array:
    """Return one token id a row, int32 (B,), by its row's key."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits = logits_BV / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        lowest = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    if sampling.top_p < 1:
        logits = _keep_top_p(logits, sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys_B, logits).astype(jnp.int32)


def _keep_top_p(logits_BV: Array, top_p: float) -> Array:
    ordered = jnp.sort(logits_BV, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # A token stays while those before it do not yet make up top_p: at least one does.
    lowest = jnp.min(
        jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True
    )
    return jnp.where(logits_BV < lowest, -jnp.inf, logits_BV)
