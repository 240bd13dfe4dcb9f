"""Losses as sums and weights. V vocabulary."""

import jax
import jax.numpy as jnp

from lmjax.types import Array


def cross_entropy(
    logits: Array, targets: Array, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[Array, Array]:
    """Return the negative log-likelihood of each target, and the objective for it.

    Args:
      logits: float32 (..., V).
      targets: int32 (...), below V.
      label_smoothing: share of the target spread evenly over the vocabulary
        (Szegedy et al. 2016).
      z_loss: weight of log(Z)^2, which keeps logits from drifting (PaLM, Chowdhery et
        al. 2022).

    Returns:
      Two float32 arrays (...), in nats; without options they are the same.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # A comparison, not a gather: it stays local where the vocabulary is sharded.
    hit = targets[..., None] == jnp.arange(logits.shape[-1])
    nll = log_z - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
    objective = nll
    if label_smoothing:
        even = log_z - logits.mean(axis=-1)
        objective = (1.0 - label_smoothing) * nll + label_smoothing * even
    if z_loss:
        objective = objective + z_loss * jnp.square(log_z)
    return nll, objective
