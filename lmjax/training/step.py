"""The training step, as pure functions. B batch rows, M microbatches."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax.models import Model
from lmjax.nn.recurrent.layers import State
from lmjax.tasks import EvalOutput, LossOutput, Task
from lmjax.tasks.distill import Teacher
from lmjax.training.optim import Optimizer
from lmjax.types import Array, Batch, Metrics, Params, TrainState, combine


def init_state(
    key: Array,
    *,
    model: Model,
    optimizer: Optimizer,
    params: Params | None = None,
    carry_rows: int = 0,
) -> TrainState:
    """Return the state before the first step, with fresh parameters or given ones.

    Args:
      key: of the run; parameters and all later chance come from it.
      model: the network.
      optimizer: of the parameters.
      params: to begin with; by default drawn.
      carry_rows: rows of a batch whose recurrent state is kept for the next; 0: none.
    """
    params_key, step_key = jax.random.split(key)
    params = model.init(params_key) if params is None else params
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        key=step_key,
        num_skipped=jnp.zeros((), jnp.int32),
        # Copied: two leaves of a donated state must not share a buffer.
        ema_params=jax.tree.map(jnp.copy, params) if optimizer.ema_decay else None,
        carry=model.init_carry(carry_rows) if carry_rows else None,
    )


def train_step(
    state: TrainState,
    batch: Batch,
    teacher: Teacher | None = None,
    *,
    model: Model,
    task: Task,
    optimizer: Optimizer,
    num_microbatches: int,
) -> tuple[TrainState, Metrics]:
    """Update the parameters once by the mean gradient over the batch's weights.

    With a teacher the task learns its outputs, too.

    The metrics are the task's, and `grad_norm` (before clipping), `update_norm`,
    `learning_rate` and `num_skipped` (updates left out so far).
    """
    if teacher is not None:
        task = dataclasses.replace(task, teacher=teacher)
    key = jax.random.fold_in(state.key, state.step)
    learning, frozen = optimizer.partition(state.params)
    grads, weight_sum, metrics, carry = accumulate(
        learning,
        batch,
        key,
        model=model,
        task=task,
        num_microbatches=num_microbatches,
        frozen=frozen,
        carry=state.carry,
    )
    # Divided leaf by leaf: if the weight were one value that all share, XLA would fuse
    # the norms otherwise, and their last bits would change.
    grads = jax.tree.map(
        lambda g: g / jnp.where(weight_sum > 0, weight_sum, 1.0), grads
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, learning, state.step)
    grad_norm = optax.tree.norm(grads)
    params = combine(optax.apply_updates(learning, updates), frozen)
    ema_params = _update_average(
        state.ema_params, params, decay=optimizer.ema_decay, step=state.step
    )
    num_skipped = state.num_skipped
    if optimizer.skip_nonfinite:
        is_finite = jnp.isfinite(grad_norm)
        old = (state.params, state.opt_state, state.ema_params, state.carry)
        new = (params, opt_state, ema_params, carry)
        params, opt_state, ema_params, carry = jax.tree.map(
            lambda a, b: jnp.where(is_finite, a, b), new, old
        )
        num_skipped = num_skipped + ~is_finite
    # Also where the update was left out: a schedule does not wait for it.
    params, opt_state, ema_params = optimizer.prune(
        params, opt_state, ema_params, state.step + 1
    )
    state = TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        key=state.key,
        num_skipped=num_skipped,
        ema_params=ema_params,
        carry=carry,
    )
    scalars = {
        "grad_norm": grad_norm,
        "update_norm": optax.tree.norm(updates),
        "learning_rate": optimizer.learning_rate(state.step - 1),
        "num_skipped": num_skipped,
    }
    return state, metrics | {name: (value, 1.0) for name, value in scalars.items()}


def eval_step(
    params: Params,
    batch: Batch,
    carry: State | None = None,
    reference: Teacher | None = None,
    *,
    model: Model,
    task: Task,
) -> EvalOutput:
    """Return the task's metrics and predictions on one held-out batch."""
    if reference is not None:
        task = dataclasses.replace(task, teacher=reference)
    return task.evaluate(model, params, batch, carry=carry)


class Gradient(NamedTuple):
    """The gradient of a summed loss, and the other sums over the same rows."""

    grads: Params  # None where a parameter is frozen
    weight_sum: Array
    metrics: Metrics
    carry: State | None


def accumulate(
    params: Params,
    batch: Batch,
    key: Array,
    *,
    model: Model,
    task: Task,
    num_microbatches: int,
    frozen: Params | None = None,
    carry: State | None = None,
) -> Gradient:
    """Return the gradient of the loss summed over all rows, one microbatch at a time.

    It equals that of the whole batch to rounding, however the weights are spread.

    Args:
      params: to differentiate; None in place of those that are frozen.
      batch: with as many rows as `num_microbatches` divides.
      key: for dropout; each microbatch has a key of its own.
      model: the network.
      task: whose loss it is.
      num_microbatches: parts of the batch.
      frozen: the other parameters; None in place of those of `params`.
      carry: the recurrent state of each row before the batch.
    """

    def loss(
        params: Params, batch: Batch, key: Array, carry: State | None
    ) -> tuple[Array, LossOutput]:
        whole = params if frozen is None else combine(params, frozen)
        output = task.loss(model, whole, batch, key=key, carry=carry)
        return output.loss_sum, output

    def gradient(batch: Batch, key: Array, carry: State | None) -> Gradient:
        grads, output = jax.grad(loss, has_aux=True)(params, batch, key, carry)
        return Gradient(grads, output.weight_sum, output.metrics, output.carry)

    if num_microbatches == 1:
        return gradient(batch, key, carry)

    def add(sums: Gradient, microbatch: Any) -> tuple[Gradient, State | None]:
        new = gradient(*microbatch)
        return jax.tree.map(jnp.add, sums, new._replace(carry=None)), new.carry

    # Row r goes to microbatch r % M: every device keeps the rows it holds.
    split = lambda x: x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1)
    join = lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    keys = jax.random.split(key, num_microbatches)
    microbatches = (jax.tree.map(split, batch), keys, jax.tree.map(split, carry))
    first = jax.tree.map(lambda x: x[0], microbatches)
    shapes = jax.eval_shape(gradient, *first)._replace(carry=None)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    sums, carries = jax.lax.scan(add, zeros, microbatches)
    return sums._replace(carry=jax.tree.map(join, carries))


def _update_average(
    average: Params | None, params: Params, *, decay: float, step: Array
) -> Params | None:
    """Return the next moving average of the parameters.

    The decay rises with the number of updates done, as in TensorFlow's
    ExponentialMovingAverage: else the average of a short run is that of its beginning.
    """
    if average is None:
        return None
    kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(
        lambda a, p: (
            kept * a + (1.0 - kept) * p if p.dtype == jnp.float32 else p  # codes
        ),
        average,
        params,
    )
