"""Losses as sums and weights. B batch, T length, V vocabulary."""

import jax
import jax.numpy as jnp

from lmjax.config.task import LossConfig
from lmjax.types import Array, Batch, Metrics


def text_shapes(batch_size: int, length: int) -> Batch:
    """Return a batch of texts, each token with the target after it, as shapes."""
    ids = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    weights = jax.ShapeDtypeStruct((batch_size, length), jnp.float32)
    names = ("tokens", "targets", "segments", "positions")
    return {**dict.fromkeys(names, ids), "weights": weights}


def token_loss(
    logits_BTV: Array, batch: Batch, config: LossConfig
) -> tuple[Array, Array, Metrics]:
    """Return the loss of `targets` (B, T) where `weights` (B, T) are not 0.

    Returns:
      The objective's sum, its weight, and {"loss": nats a token} without options.
    """
    nll_BT, objective_BT = cross_entropy(
        logits_BTV,
        batch["targets"],
        label_smoothing=config.label_smoothing,
        z_loss=config.z_loss,
    )
    weights_BT = batch["weights"]
    weight = weights_BT.sum()
    metrics = {"loss": ((nll_BT * weights_BT).sum(), weight)}
    return (objective_BT * weights_BT).sum(), weight, metrics


def padding(batch: Batch) -> tuple[Array, Array]:
    """Return how many of a batch's tokens are padding, and how many there are.

    Those of sources included.
    """
    there = [batch[n] for n in ("segments", "source_segments") if n in batch]
    total = jnp.float32(sum(segments.size for segments in there))
    return jnp.sum(jnp.stack([(segments == 0).sum() for segments in there])), total


def token_metrics(logits_BTV: Array, batch: Batch) -> Metrics:
    """Return the plain loss and how often the most likely token is right."""
    nll_BT, _ = cross_entropy(logits_BTV, batch["targets"])
    right_BT = jnp.argmax(logits_BTV, axis=-1) == batch["targets"]
    weights_BT = batch["weights"]
    weight = weights_BT.sum()
    return {
        "loss": ((nll_BT * weights_BT).sum(), weight),
        "accuracy": ((right_BT * weights_BT).sum(), weight),
    }


def cross_entropy(
    logits: Array,
    targets: Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    where: Array | None = None,
) -> tuple[Array, Array]:
    """Return the negative log-likelihood of each target, and the objective for it.

    Args:
      logits: float32 (..., V).
      targets: int32 (...), below V.
      label_smoothing: share of the target spread evenly over the vocabulary
        (Szegedy et al. 2016).
      z_loss: weight of log(Z)^2, which keeps logits from drifting (PaLM, Chowdhery et
        al. 2022).
      where: bool (..., V), what there is to choose from; the targets are among it.

    Returns:
      Two float32 arrays (...), in nats; without options they are the same.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1, where=where)
    # A comparison, not a gather: it stays local where the vocabulary is sharded.
    hit = targets[..., None] == jnp.arange(logits.shape[-1])
    nll = log_z - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
    objective = nll
    if label_smoothing:
        even = log_z - logits.mean(axis=-1, where=where)
        objective = (1.0 - label_smoothing) * nll + label_smoothing * even
    if z_loss:
        objective = objective + z_loss * jnp.square(log_z)
    return nll, objective
