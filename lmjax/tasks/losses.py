"""Losses as sums and weights. B batch, T length, V vocabulary."""

import jax
import jax.numpy as jnp

from lmjax.config.text_task import TaskBaseConfig
from lmjax.tasks.distill import soft_loss
from lmjax.tasks.task import LossOutput
from lmjax.types import Array, Batch, Metrics


def text_shapes(batch_size: int, length: int) -> Batch:
    """Return the shapes of a batch of texts, where targets are the next tokens."""
    ids = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    weights = jax.ShapeDtypeStruct((batch_size, length), jnp.float32)
    names = ("tokens", "targets", "segments", "positions")
    return {**dict.fromkeys(names, ids), "weights": weights}


def token_loss(
    logits: Array,
    batch: Batch,
    config: TaskBaseConfig,
    *,
    teacher_logits: Array | None = None,
) -> LossOutput:
    """Return the loss of logits (..., V) for the batch's `targets` (...).

    Those of `weights` (...) 0 carry none. The metric "loss" is in nats a target,
    without label smoothing and z-loss; "soft_loss" that of a teacher's logits (..., V).
    """
    nll, objective = cross_entropy(
        logits,
        batch["targets"],
        label_smoothing=config.label_smoothing,
        z_loss=config.z_loss,
    )
    weights = batch["weights"]
    weight_sum = weights.sum()
    metrics = {"loss": ((nll * weights).sum(), weight_sum)}
    if teacher_logits is not None:
        soft = soft_loss(logits, teacher_logits, temperature=config.distill.temperature)
        objective = mix(objective, soft, weight=config.distill.weight)
        metrics["soft_loss"] = ((soft * weights).sum(), weight_sum)
    return LossOutput((objective * weights).sum(), weight_sum, metrics)


def mix(hard: Array, soft: Array, *, weight: float) -> Array:
    """Return the loss of the targets and that of a teacher, which has the weight."""
    return (1.0 - weight) * hard + weight * soft


def padding(batch: Batch) -> tuple[Array, Array]:
    """Return the number of padding tokens of a batch, and that of all its tokens.

    Those of sources included.
    """
    every = ("segments", "source_segments", "rejected_segments")
    names = [name for name in every if name in batch]
    total = jnp.float32(sum(batch[name].size for name in names))
    return jnp.sum(jnp.stack([(batch[name] == 0).sum() for name in names])), total


def token_metrics(logits: Array, batch: Batch) -> Metrics:
    """Return the plain loss of `targets` and the accuracy of the most likely one."""
    nll, _ = cross_entropy(logits, batch["targets"])
    correct = jnp.argmax(logits, axis=-1) == batch["targets"]
    weights = batch["weights"]
    weight_sum = weights.sum()
    return {
        "loss": ((nll * weights).sum(), weight_sum),
        "accuracy": ((correct * weights).sum(), weight_sum),
    }


def cross_entropy(
    logits: Array,
    targets: Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    where: Array | None = None,
) -> tuple[Array, Array]:
    """Return the negative log-likelihood of each target, and its training loss.

    Args:
      logits: float32 (..., V).
      targets: int32 (...), below V.
      label_smoothing: share of the target spread evenly over the vocabulary
        (Szegedy et al. 2016).
      z_loss: weight of log(Z)^2, which keeps logits from drifting (PaLM, Chowdhery et
        al. 2022).
      where: bool (..., V), the classes that are allowed; all targets are.

    Returns:
      Two float32 arrays (...), in nats; without options they are the same.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1, where=where)
    # A comparison, not a gather: it stays local where the vocabulary is sharded.
    is_target = targets[..., None] == jnp.arange(logits.shape[-1])
    nll = log_z - jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    objective = nll
    if label_smoothing:
        uniform = log_z - logits.mean(axis=-1, where=where)
        objective = (1.0 - label_smoothing) * nll + label_smoothing * uniform
    if z_loss:
        objective = objective + z_loss * jnp.square(log_z)
    return nll, objective
