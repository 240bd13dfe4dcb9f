"""The scan over the steps of a batch. B batch, T length."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.nn import intermediates
from lmjax.nn.linear import Linear
from lmjax.parallel.sharding import constrain
from lmjax.types import Array

State = dict[str, Array]  # (B, ...)


def preload_kernel(linear: Linear, dtype: jnp.dtype) -> Callable[[Array], Array]:
    """Return a layer's product with float32 results, for use in a loop.

    The kernel is cast, and gathered if it is sharded, once here and not at each step.
    """
    assert linear.kernel is not None, "recurrent networks are not quantized"
    axes = linear.kernel.get_metadata()["axes"]
    kernel = constrain(linear.kernel[...].astype(dtype), *axes)
    bias = jnp.zeros(()) if linear.bias is None else linear.bias[...]

    def product(x: Array) -> Array:
        y = jnp.tensordot(
            x.astype(dtype),
            kernel,
            axes=linear.num_inputs,
            preferred_element_type=jnp.float32,
        )
        return y + bias

    return product


def scan_rows(
    step: Callable[..., State],
    inputs: tuple[Array | None, ...],
    *,
    real_BT: Array,
    state: State,
    emit: Callable[[State], Any],
    reverse: bool = False,
) -> tuple[Any, State]:
    """Scan along the rows; return the outputs of all steps, and the last state.

    Args:
      step: from a state and one step's inputs (B, ...) to the next state.
      inputs: (B, T, ...).
      real_BT: false at padding, which changes no state.
      state: before the first step.
      emit: from the state after a step to the output of that step.
      reverse: step from the end of the row to its beginning.
    """

    def body(state: State, step_inputs: tuple[Any, ...]) -> tuple[State, Any]:
        real_B, inputs = step_inputs
        with intermediates.nested() as captured:
            after = step(state, *inputs)
        new = {
            name: jnp.where(_broadcast(real_B, x), x, state[name])
            for name, x in after.items()
        }
        return new, (emit(new), captured)

    by_step = _swap_time((real_BT, inputs))
    state, by_step = jax.lax.scan(body, state, by_step, reverse=reverse)
    outputs, captured = _swap_time(by_step)
    intermediates.record_all(captured)
    return outputs, state


def _broadcast(x_B: Array, y: Array) -> Array:
    return x_B.reshape(-1, *[1] * (y.ndim - 1))


def _swap_time(tree: Any) -> Any:
    """Swap the first two dimensions, batch and time, of every array."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)
