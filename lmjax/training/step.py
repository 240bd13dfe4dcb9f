"""The training step, as pure functions. B batch rows, M microbatches."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmjax.models import Model
from lmjax.nn.recurrent.layers import State
from lmjax.tasks import Task
from lmjax.tasks.causal_lm import CausalLM
from lmjax.training.optim import Optimizer
from lmjax.types import Array, Batch, Metrics, Params, TrainState


def init_state(
    key: Array,
    *,
    model: Model,
    optimizer: Optimizer,
    params: Params | None = None,
    carry_rows: int = 0,
) -> TrainState:
    """Return the state before the first step, with fresh parameters or given ones.

    With `carry_rows` it keeps what a recurrent network remembers of so many rows.
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
        carry=model.start(carry_rows) if carry_rows else None,
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Model,
    task: Task,
    optimizer: Optimizer,
    num_microbatches: int,
) -> tuple[TrainState, Metrics]:
    """Update the parameters once by the mean gradient over the batch's weights.

    The metrics are the task's, and `grad_norm` (before clipping), `update_norm`,
    `learning_rate` and `num_skipped` (updates left out so far).
    """
    key = jax.random.fold_in(state.key, state.step)
    learning, frozen = optimizer.partition(state.params)
    grads, weight, metrics, carry = accumulate(
        learning,
        batch,
        key,
        model=model,
        task=task,
        num=num_microbatches,
        frozen=frozen,
        carry=state.carry,
    )
    grads = jax.tree.map(lambda g: g / jnp.where(weight > 0, weight, 1.0), grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, learning, state.step)
    grad_norm = optax.tree.norm(grads)
    params = _joined(optax.apply_updates(learning, updates), frozen)
    ema_params = _average(state.ema_params, params, optimizer.ema_decay)
    num_skipped = state.num_skipped
    if optimizer.skip_nonfinite:
        good = jnp.isfinite(grad_norm)
        old = (state.params, state.opt_state, state.ema_params, state.carry)
        new = (params, opt_state, ema_params, carry)
        params, opt_state, ema_params, carry = jax.tree.map(
            lambda a, b: jnp.where(good, a, b), new, old
        )
        num_skipped = num_skipped + ~good
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


def eval_step(params: Params, batch: Batch, *, model: Model, task: Task) -> Metrics:
    """Return the task's metrics on one held-out batch."""
    return task.evaluate(model, params, batch)


def eval_step_from(
    params: Params, batch: Batch, carry: State, *, model: Model, task: Task
) -> tuple[Metrics, State]:
    """Return what `eval_step` does of rows that go on, and what is carried on."""
    assert isinstance(task, CausalLM), "the config sees to it"
    return task.evaluate_from(model, params, batch, carry)


def accumulate(
    params: Params,
    batch: Batch,
    key: Array,
    *,
    model: Model,
    task: Task,
    num: int,
    frozen: Params | None = None,
    carry: State | None = None,
) -> tuple[Params, Array, Metrics, State | None]:
    """Return the gradient of the summed loss, its weight, metrics, and the next carry.

    Summed over `num` microbatches, one after another: they are equal to one batch to
    rounding, however the weights fall. Where some parameters are `frozen`, `params`
    has None in their places, and so has the gradient. The rows go on from `carry`.
    """

    def loss(params: Params, *inputs: Any) -> Any:
        params = params if frozen is None else _joined(params, frozen)
        return _loss(model, task, params, *inputs)

    def grad(*inputs: Any) -> Any:
        """Take a batch, a key and a carry."""
        of = jax.grad(loss, has_aux=True)
        grads, (weight, metrics, carry) = of(params, *inputs)
        return (grads, weight, metrics), carry

    if num == 1:
        sums, carry = grad(batch, key, carry)
        return *sums, carry

    def body(sums: Any, inputs: Any) -> tuple[Any, Any]:
        new, carry = grad(*inputs)
        return jax.tree.map(jnp.add, sums, new), carry

    # Row r goes to microbatch r % M: every device keeps the rows it holds.
    split = lambda x: x.reshape(-1, num, *x.shape[1:]).swapaxes(0, 1)
    join = lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    keys = jax.random.split(key, num)
    parts = (jax.tree.map(split, batch), keys, jax.tree.map(split, carry))
    shapes, _ = jax.eval_shape(grad, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    sums, carry = jax.lax.scan(body, zeros, parts)
    return *sums, jax.tree.map(join, carry)


def _loss(
    model: Model, task: Task, params: Params, batch: Batch, key: Array, carry: Any
) -> tuple[Array, Any]:
    """Return the summed loss; its weight, the metrics, and the next carry, if any."""
    if carry is None:
        loss_sum, weight, metrics = task.loss(model, params, batch, key)
        return loss_sum, (weight, metrics, None)
    assert isinstance(task, CausalLM), "the config sees to it"
    loss_sum, *rest = task.loss_from(model, params, batch, key, carry)
    return loss_sum, tuple(rest)


def _joined(a: Params, b: Params) -> Params:
    """Return the leaves of two trees: each has None where the other has a leaf."""
    is_none = lambda x: x is None
    return jax.tree.map(lambda x, y: y if x is None else x, a, b, is_leaf=is_none)


def _average(average: Params | None, params: Params, decay: float) -> Params | None:
    if average is None:
        return None
    return jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, average, params)
