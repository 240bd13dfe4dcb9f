"""Sampling of the next token. B batch, V vocabulary."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp

from lmjax.config.decoding import SAMPLING_LEAVES, ConstraintConfig, DecodingConfig
from lmjax.errors import ConfigError
from lmjax.parallel import sharding
from lmjax.types import Array

# Below this, temperatures are 0: the differences of float32 logits divided by them
# overflow, or are rounding errors made large.
LOWEST_TEMPERATURE = 1e-5
# The most likely ids, which are looked at before all of them are sorted.
CANDIDATES = 256


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
    def bare_constraints(self) -> ConstraintConfig:
        """Return the constraints alone."""
        names = [field.name for field in dataclasses.fields(ConstraintConfig)]
        return ConstraintConfig(**{name: getattr(self, name) for name in names})

    @property
    def values(self) -> "SamplingValues":
        """Return the numbers that a compiled program takes as arguments."""
        return SamplingValues(*(getattr(self, name) for name in SAMPLING_LEAVES))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingValues:
    """The numbers of a `Sampling`, as arrays: one program serves all of them."""

    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any


def sample(
    logits_BV: Array, keys_B: Array, *, sampling: Sampling | SamplingValues
) -> Array:
    """Sample one token id for each row with its own key, int32 (B,)."""
    s = sampling
    # The largest becomes 0, so that no quotient overflows.
    logits_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    is_greedy = jnp.less(s.temperature, LOWEST_TEMPERATURE)
    is_ranked = jnp.greater(s.top_k, 0) | jnp.less(s.top_p, 1)
    way = jnp.where(is_greedy, 0, 1 + is_ranked)
    ways = (_take_best, _sample_any, _sample_ranked)
    chosen = [functools.partial(choose, s=s) for choose in ways]
    return jax.lax.switch(way, chosen, logits_BV, keys_B)


def token_log_probs(logits_BV: Array, *, sampling: Sampling | SamplingValues) -> Array:
    """Return the log-probabilities that `sample` draws by; -inf of those it drops."""
    s = sampling
    logits_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    rows, size = jnp.arange(len(logits_BV))[:, None], logits_BV.shape[1]
    none_BV = jnp.full_like(logits_BV, -jnp.inf)

    def best() -> Array:
        return none_BV.at[rows, jnp.argmax(logits_BV, axis=-1)[:, None]].set(0.0)

    def ranked() -> Array:
        scaled_BV = logits_BV / s.temperature
        norm_B1 = jax.nn.logsumexp(scaled_BV, axis=-1, keepdims=True)
        ordered, ids = _rank(scaled_BV, norm_B1, size=size, s=s)
        return none_BV.at[rows, ids].set(ordered)

    is_greedy = jnp.less(s.temperature, LOWEST_TEMPERATURE)
    is_ranked = jnp.greater(s.top_k, 0) | jnp.less(s.top_p, 1)
    kept = [best, lambda: _keep_min_p(logits_BV / s.temperature, s.min_p), ranked]
    way = jnp.where(is_greedy, 0, 1 + is_ranked)
    return jax.nn.log_softmax(jax.lax.switch(way, kept), axis=-1)


def _take_best(logits_BV: Array, keys_B: Array, *, s: Any) -> Array:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)


def _sample_any(logits_BV: Array, keys_B: Array, *, s: Any) -> Array:
    """Sample from all ids, without an order among them."""
    kept_BV = _keep_min_p(logits_BV / s.temperature, s.min_p)
    return _draw(keys_B, kept_BV).astype(jnp.int32)


def _sample_ranked(logits_BV: Array, keys_B: Array, *, s: Any) -> Array:
    """Sample from the most likely ids; all are sorted only if few are not enough."""
    logits_BV = logits_BV / s.temperature
    size = logits_BV.shape[-1]
    norm_B1 = jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)
    few = _rank(logits_BV, norm_B1, size=min(CANDIDATES, size), s=s)
    if size <= CANDIDATES:
        return _draw_ranked(keys_B, *few)
    ordered_BC, _ = few
    is_enough = jnp.where(
        jnp.greater(s.top_k, 0),
        jnp.less_equal(s.top_k, CANDIDATES),
        jnp.isneginf(ordered_BC.min(axis=-1)).all(),  # some were dropped
    )
    return jax.lax.cond(
        is_enough,
        lambda: _draw_ranked(keys_B, *few),
        lambda: _draw_ranked(keys_B, *_rank(logits_BV, norm_B1, size=size, s=s)),
    )


def _rank(
    logits_BV: Array, norm_B1: Array, *, size: int, s: Any
) -> tuple[Array, Array]:
    """Return the most likely first, -inf where dropped, and their ids, (B, size)."""
    # Ties go to the lowest id, as in argmax.
    top_k = functools.partial(jax.lax.top_k, k=size)
    ordered, ids = sharding.map_row_shards(top_k, logits_BV)
    is_limited = jnp.greater(s.top_k, 0)
    ordered = jnp.where(is_limited & (jnp.arange(size) >= s.top_k), -jnp.inf, ordered)
    own_norm = jax.nn.logsumexp(ordered, axis=-1, keepdims=True)
    probabilities = jnp.exp(ordered - jnp.where(is_limited, own_norm, norm_B1))
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # Keep a token while those before it sum to less than top_p: at least the first.
    is_kept = (before < s.top_p) | jnp.greater_equal(s.top_p, 1)
    return _keep_min_p(jnp.where(is_kept, ordered, -jnp.inf), s.min_p), ids


def _draw_ranked(keys_B: Array, ordered: Array, ids: Array) -> Array:
    # The random numbers of the first ranks do not depend on how many there are.
    index = _draw(keys_B, ordered)[:, None]
    return jnp.take_along_axis(ids, index, axis=-1)[:, 0].astype(jnp.int32)


def _draw(keys_B: Array, logits: Array) -> Array:
    return jax.vmap(jax.random.categorical)(keys_B, logits)


def _keep_min_p(logits: Array, min_p: Any) -> Array:
    """Drop tokens of less than this share of the most likely one's probability."""
    least = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(min_p)
    return jnp.where(logits < least, -jnp.inf, logits)
