"""Losses of preferences, of log-probabilities alone. B pairs, or single completions.

Each gives the loss of each pair, as TRL's trainers compute it (huggingface/trl 1.16:
trainer/dpo_trainer.py, trainer/kto_trainer.py, experimental/orpo, experimental/cpo).
ORPO's first term alone is not TRL's mean over the tokens of a batch, but the paper's
over those of each completion.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.config.preference import PreferenceConfig
from lmjax.types import Array


class Completions(NamedTuple):
    """Log-probabilities of completions, in nats, float32 (B,).

    Attributes:
      log_probs: of the model, summed over the tokens of each.
      reference: of the reference model; zeros where the loss has none.
      num_tokens: of each, at least 1.
    """

    log_probs: Array
    reference: Array
    num_tokens: Array

    @property
    def log_ratios(self) -> Array:
        """Return how much more likely each is than for the reference."""
        return self.log_probs - self.reference

    @property
    def means(self) -> Array:
        """Return the log-probabilities a token."""
        return self.log_probs / self.num_tokens


def rewards(one: Completions, config: PreferenceConfig) -> Array:
    """Return the reward that the model gives each completion, implicitly, (B,)."""
    value = one.log_ratios if config.needs_reference else one.means
    return config.beta * value


def pair_losses(
    chosen: Completions, rejected: Completions, config: PreferenceConfig
) -> Array:
    """Return the loss of each pair, (B,)."""
    losses = {"dpo": _dpo, "ipo": _ipo, "orpo": _orpo, "simpo": _simpo}
    return losses[config.loss](chosen, rejected, config)


def kto_losses(
    one: Completions, is_desirable: Array, divergence: Array, config: PreferenceConfig
) -> Array:
    """Return the loss of each single completion, (B,).

    Kahneman-Tversky optimization (Ethayarajh et al. 2024, equation 8).

    Args:
      one: the completions.
      is_desirable: 1 where people like it, else 0.
      divergence: the scalar estimate of how far the model is from the reference.
      config: of the task.
    """
    gain = config.beta * (one.log_ratios - divergence)
    desirable = config.desirable_weight * (1.0 - jax.nn.sigmoid(gain))
    undesirable = config.undesirable_weight * (1.0 - jax.nn.sigmoid(-gain))
    return jnp.where(is_desirable > 0, desirable, undesirable)


def _dpo(chosen: Completions, rejected: Completions, config: PreferenceConfig) -> Array:
    """Direct preference optimization (Rafailov et al. 2023, equation 7).

    With label smoothing some pairs are taken to be the wrong way round (Mitchell 2023).
    """
    margin = config.beta * (chosen.log_ratios - rejected.log_ratios)
    return _logistic(margin, config.label_smoothing)


def _ipo(chosen: Completions, rejected: Completions, config: PreferenceConfig) -> Array:
    """Identity preference optimization (Azar et al. 2023, equation 17), a token."""
    margin = (
        chosen.log_ratios / chosen.num_tokens
        - rejected.log_ratios / rejected.num_tokens
    )
    return jnp.square(margin - 1.0 / (2.0 * config.beta))


def _orpo(
    chosen: Completions, rejected: Completions, config: PreferenceConfig
) -> Array:
    """Odds ratio preference optimization (Hong et al. 2024, equation 6).

    Its first term is the loss of the chosen completion, in nats a token.
    """
    log_odds = (chosen.means - rejected.means) - (
        _log1mexp(chosen.means) - _log1mexp(rejected.means)
    )
    return -chosen.means - config.beta * jax.nn.log_sigmoid(log_odds)


def _simpo(
    chosen: Completions, rejected: Completions, config: PreferenceConfig
) -> Array:
    """Simple preference optimization (Meng et al. 2024, equation 6)."""
    margin = config.beta * (chosen.means - rejected.means) - config.margin
    return _logistic(margin, config.label_smoothing)


def _logistic(margin: Array, label_smoothing: float) -> Array:
    right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return -(1.0 - label_smoothing) * right - label_smoothing * wrong


def _log1mexp(x: Array) -> Array:
    """Return log(1 - exp(x)) for x < 0, exact near 0 and far from it."""
    x = jnp.minimum(x, -1e-7)
    is_far = x < -0.6931472
    # A gradient that is not finite is so too where the other branch is taken.
    far, near = jnp.where(is_far, x, -1.0), jnp.where(is_far, -1.0, x)
    return jnp.where(is_far, jnp.log1p(-jnp.exp(far)), jnp.log(-jnp.expm1(near)))
