"""What a student learns from a teacher: its probabilities and its hidden states.

B batch, T length, S the same, D dim, A heads of relations, V vocabulary or labels.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.config.distill import DistillConfig
from lmjax.models import Model
from lmjax.types import Array, Batch, Params

_MOST_HEADS = 12  # of relations, as in MiniLMv2 (Wang et al. 2021)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """A model that only answers: no gradient flows into it, and it drops nothing out.

    Attributes:
      model: its network.
      params: its parameters.
      labels: where each label of the student is among the teacher's; (): at its place.
    """

    model: Model = dataclasses.field(metadata={"static": True})
    params: Params
    labels: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})

    def in_order(self, logits: Array) -> Array:
        """Return the teacher's logits (..., C) in the order of the student's labels."""
        return logits[..., jnp.array(self.labels)] if self.labels else logits


class HiddenStates(NamedTuple):
    """The last hidden states of student and teacher, (B, T, D) each, of two widths."""

    student: Array
    teacher: Array


def soft_loss(logits: Array, teacher_logits: Array, *, temperature: float) -> Array:
    """Return the divergence from a teacher's probabilities, times temperature squared.

    Args:
      logits: float32 (..., V).
      teacher_logits: float32 (..., V).
      temperature: that divides both (Hinton et al. 2015).

    Returns:
      float32 (...), in nats; 0 where the probabilities are the same.
    """
    log_p = jax.nn.log_softmax(teacher_logits / temperature, axis=-1)
    log_q = jax.nn.log_softmax(logits / temperature, axis=-1)
    divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return temperature**2 * divergence


def hidden_loss(states: HiddenStates, batch: Batch, config: DistillConfig) -> Array:
    """Return the loss of hidden states, summed over rows, each with its weight.

    A row counts by the weights of its targets, as in the loss of those, so that the
    sums of microbatches add up. Its tokens that are not padding count alike.

    Args:
      states: of student and teacher.
      batch: has `segments` (B, T) and `weights` (B, ...).
      config: with the weights of the parts.
    """
    segments_BT = batch["segments"]
    real_BT = (segments_BT > 0).astype(jnp.float32)
    loss_BT = jnp.zeros_like(real_BT)
    student, teacher = (x.astype(jnp.float32) for x in states)
    if config.hidden:
        loss_BT += config.hidden * jnp.square(student - teacher).mean(axis=-1)
    if config.relations:
        loss_BT += config.relations * _relation_loss(student, teacher, segments_BT)
    loss_B = (loss_BT * real_BT).sum(axis=1) / jnp.maximum(real_BT.sum(axis=1), 1.0)
    weights_B = batch["weights"].reshape(len(loss_B), -1).sum(axis=1)
    return (loss_B * weights_B).sum()


def _relation_loss(student_BTD: Array, teacher_BTD: Array, segments_BT: Array) -> Array:
    """Return the divergence (B, T) of the tokens' relations, the mean over heads."""
    widths = student_BTD.shape[-1], teacher_BTD.shape[-1]
    num_heads = next(
        n for n in range(_MOST_HEADS, 0, -1) if not any(width % n for width in widths)
    )
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    log_p, log_q = (
        _log_relations(x, same_BTS, num_heads=num_heads)
        for x in (teacher_BTD, student_BTD)
    )
    terms_BATS = jnp.where(same_BTS[:, None], jnp.exp(log_p) * (log_p - log_q), 0.0)
    return terms_BATS.sum(axis=-1).mean(axis=1)


def _log_relations(x_BTD: Array, same_BTS: Array, *, num_heads: int) -> Array:
    """Return log-probabilities (B, A, T, S) of the scaled products of hidden states."""
    x_BTAH = x_BTD.reshape(*x_BTD.shape[:2], num_heads, -1)
    scale = x_BTAH.shape[-1] ** -0.5
    scores_BATS = jnp.einsum("BTAH,BSAH->BATS", x_BTAH, x_BTAH) * scale
    return jax.nn.log_softmax(jnp.where(same_BTS[:, None], scores_BATS, -1e30), axis=-1)
