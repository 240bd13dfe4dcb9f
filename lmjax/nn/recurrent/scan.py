"""Steps along the rows of a batch. B batch, T length."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.nn.linear import Linear
from lmjax.parallel.sharding import constrain
from lmjax.types import Array

State = dict[str, Array]  # (B, ...)


def preload_kernel(linear: Linear, dtype: jnp.dtype) -> Callable[[Array], Array]:
    """Return a layer's product with float32 results, for use in a loop.

    Its kernel is cast, and gathered where it is split, here and not at each step.
    """
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
    """Step along the rows, and return what was emitted at each place, and the state.

    Args:
      step: from a state and a place's inputs (B, ...) to the state after it.
      inputs: (B, T, ...).
      real_BT: false where a step is padding, which leaves the state as it is.
      state: before the first step.
      emit: what to keep of the state after each step.
      reverse: step from the end of the row to its beginning.
    """

    def body(state: State, at: tuple[Any, ...]) -> tuple[State, Any]:
        real_B, inputs = at
        held = {
            name: jnp.where(_along(real_B, s), s, state[name])
            for name, s in step(state, *inputs).items()
        }
        return held, emit(held)

    by_step = _time_first((real_BT, inputs))
    state, seen = jax.lax.scan(body, state, by_step, reverse=reverse)
    return _time_first(seen), state


def _along(which_B: Array, x: Array) -> Array:
    return which_B.reshape(-1, *[1] * (x.ndim - 1))


def _time_first(tree: Any) -> Any:
    """Swap the first two dimensions of every array."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)
