"""Zeros in the weights while a run trains.

A weight is pruned if, and only if, it is exactly 0: the parameters are their own mask,
which is sharded, saved and exported as they are.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.compress.masks import choose_weights
from lmjax.config.prune import PruneConfig
from lmjax.errors import ConfigError
from lmjax.nn.matrices import is_hidden_matrix
from lmjax.types import Array, Axes, Params, combine, leaf_name, named_axes


@dataclasses.dataclass(frozen=True, eq=False)
class Pruning:
    """What a method of pruning adds to an optimizer.

    Only movement pruning has a state: of each hidden matrix the scores of its weights,
    and the values of those that are 0 now, but may come back.
    """

    config: PruneConfig
    axes: Axes  # of the trainable parameters; None in place of the others

    def init(self, params: Params) -> Any:
        """Return the state before the first step."""
        if self.config.method != "movement":
            return ()
        zeros = lambda: jax.tree.map(jnp.zeros_like, self._matrices(params))
        return {"scores": zeros(), "dormant": zeros()}

    def mask(self, updates: Params, params: Params) -> Params:
        """Return gradients or updates with 0 where a weight of a matrix is 0."""
        masked = jax.tree.map(
            lambda weight, update: jnp.where(weight == 0, 0, update),
            self._matrices(params),
            self._matrices(updates),
        )
        return combine(masked, updates)

    def observe(self, state: Any, grads: Params, params: Params) -> Any:
        """Return the state after the gradients of a step, all of them, were seen.

        The score of a weight falls as the gradient moves it towards 0: it is
        -sum(gradient * weight), where a weight that is 0 counts with the value that it
        had before (Sanh et al. 2020, straight-through).
        """
        if self.config.method != "movement":
            return state
        fall = lambda score, grad, weight: score - grad * weight
        grads, weights = self._matrices(grads), self._awake(params, state)
        return {**state, "scores": jax.tree.map(fall, state["scores"], grads, weights)}

    def prune(self, params: Params, state: Any, step: Array) -> tuple[Params, Any]:
        """Return parameters and state with the zeros that a schedule makes.

        Args:
          params: after an update.
          state: of the method.
          step: updates done, this one included.
        """
        c = self.config
        if not c.is_scheduled:
            return params, state
        is_due = (step >= c.begin_step) & ((step - c.begin_step) % c.every_steps == 0)
        is_due = (is_due & (step < c.end_step)) | (step == c.end_step)
        choose = lambda: self._choose(params, state, self.sparsity(step))
        pruned: tuple[Params, Any] = jax.lax.cond(
            is_due, choose, lambda: (params, state)
        )
        return pruned

    def sparsity(self, step: Array | int) -> Array:
        """Return the fraction of zeros after `step` updates (Zhu and Gupta 2017)."""
        c = self.config
        progress = (step - c.begin_step) / (c.end_step - c.begin_step)
        return c.sparsity * (1 - (1 - jnp.clip(progress, 0.0, 1.0)) ** 3)

    def _choose(
        self, params: Params, state: Any, sparsity: Array
    ) -> tuple[Params, Any]:
        moves = self.config.method == "movement"
        weights = self._awake(params, state) if moves else self._matrices(params)
        scores = state["scores"] if moves else jax.tree.map(jnp.abs, weights)
        masks = choose_weights(
            scores, self.axes, sparsity=sparsity, scope=self.config.scope
        )
        if moves:
            dormant = jax.tree.map(lambda m, w: jnp.where(m, 0, w), masks, weights)
            state = {**state, "dormant": dormant}
        live = jax.tree.map(lambda m, w: jnp.where(m, w, 0), masks, weights)
        return combine(live, params), state

    def _awake(self, params: Params, state: Any) -> Params:
        """Return the hidden matrices with the values of what may come back."""
        wake = lambda weight, dormant: jnp.where(weight == 0, dormant, weight)
        return jax.tree.map(wake, self._matrices(params), state["dormant"])

    def _matrices(self, params: Params) -> Params:
        """Return the trainable hidden matrices, and None in place of all others."""
        axes = named_axes(self.axes)

        def choose(path: Any, leaf: Any) -> Any:
            name = leaf_name(path)
            return leaf if is_hidden_matrix(name, axes[name]) else None

        chosen: Params = jax.tree_util.tree_map_with_path(choose, params)
        return chosen


def build(config: PruneConfig, axes: Axes) -> Pruning | None:
    """Return the pruning of a config; None if there is none.

    Args:
      config: of the pruning.
      axes: of the trainable parameters; None in place of the others.

    Raises:
      ConfigError: no hidden matrix is trainable.
    """
    if config.method == "none":
        return None
    if not any(is_hidden_matrix(name, a) for name, a in named_axes(axes).items()):
        raise ConfigError(
            f"config.optim.prune.method = {config.method!r}: no hidden matrix is "
            "trainable; use 'none', or see config.optim.frozen"
        )
    return Pruning(config, axes)
