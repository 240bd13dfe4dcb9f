"""Sampling of the next token. B batch, V vocabulary."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp

from lmjax.config.decoding import SAMPLING_LEAVES, ConstraintConfig, DecodingConfig
from lmjax.errors import ConfigError
from lmjax.types import Array

# Below this, temperatures are 0: the differences of float32 logits divided by them
# overflow, or are rounding errors made large.
LOWEST_TEMPERATURE = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(ConstraintConfig):
    """Options of sampling; temperature 0 is greedy decoding.

    top_k keeps the k most likely tokens (Fan et al. 2018), top_p the fewest whose
    probabilities sum to p (Holtzman et al. 2020), min_p those with at least this share
    of the most likely one's probability (Nguyen et al. 2024), in this order. The
    constraints are applied before them: see `apply_constraints`.
    """

    temperature: float = 1.0
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    min_p: float = 0.0

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

    @classmethod
    def from_config(
        cls, config: DecodingConfig, *, decoder_prefix_ids: Sequence[int] = ()
    ) -> Self:
        """Return the sampling of a config, whose number of beams is 1.

        Args:
          config: of decoding.
          decoder_prefix_ids: of the model.
        """
        constraints = dataclasses.asdict(config.constraints(decoder_prefix_ids))
        sampling = {name: getattr(config, name) for name in SAMPLING_LEAVES}
        return cls(**constraints, **sampling)

    @property
    def is_greedy(self) -> bool:
        """Return whether the most likely token is taken each time."""
        return self.temperature < LOWEST_TEMPERATURE


def sample(logits_BV: Array, keys_B: Array, *, sampling: Sampling) -> Array:
    """Sample one token id for each row with its own key, int32 (B,)."""
    if sampling.is_greedy:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    # The largest becomes 0, so that no quotient overflows.
    logits = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    logits = logits / sampling.temperature
    draw = jax.vmap(jax.random.categorical)
    if not sampling.top_k and sampling.top_p == 1:
        return draw(keys_B, _keep_min_p(logits, sampling.min_p)).astype(jnp.int32)
    size = logits.shape[-1]
    # Most likely first; ties go to the lowest id, as in argmax.
    ordered, ids = jax.lax.top_k(logits, min(sampling.top_k or size, size))
    if sampling.top_p < 1:
        ordered = _keep_top_p(ordered, sampling.top_p)
    index = draw(keys_B, _keep_min_p(ordered, sampling.min_p))[:, None]
    return jnp.take_along_axis(ids, index, axis=-1)[:, 0].astype(jnp.int32)


def _keep_top_p(ordered: Array, top_p: float) -> Array:
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # Keep a token while those before it sum to less than top_p: at least the first.
    return jnp.where(before < top_p, ordered, -jnp.inf)


def _keep_min_p(logits: Array, min_p: float) -> Array:
    """Drop tokens of less than this share of the most likely one's probability."""
    if not min_p:
        return logits
    least = jnp.max(logits, axis=-1, keepdims=True) + math.log(min_p)
    return jnp.where(logits < least, -jnp.inf, logits)
