"""Optimizers, learning-rate schedules, weight decay and frozen parameters."""

import dataclasses
import fnmatch
import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmjax.config.optim import OptimConfig
from lmjax.errors import ConfigError, nearest
from lmjax.nn.matrices import is_hidden_matrix, split_axes
from lmjax.training import pruning
from lmjax.training.pruning import Pruning
from lmjax.types import Array, Axes, Params, combine, leaf_name, named_axes

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Optimizer:
    """A gradient transformation, and a learning rate for each step."""

    transform: optax.GradientTransformation
    learning_rate: Callable[[Array], Array]
    ema_decay: float  # of the average of the parameters; 0: none is kept
    skip_nonfinite: bool
    trainable_mask: Any  # a tree like the parameters: False where one is frozen
    pruning: Pruning | None = None  # zeros that stay, or are made

    def init(self, params: Params) -> Any:
        """Return the optimizer state of the trainable parameters."""
        trainable, _ = self.partition(params)
        state = self.transform.init(trainable)
        if self.pruning is None:
            return state
        return {"optimizer": state, "pruning": self.pruning.init(trainable)}

    def partition(self, params: Params) -> tuple[Params, Params]:
        """Return the trainable and the frozen parameters, each with None elsewhere."""
        mask = self.trainable_mask
        trainable = jax.tree.map(lambda ok, x: x if ok else None, mask, params)
        frozen = jax.tree.map(lambda ok, x: None if ok else x, mask, params)
        return trainable, frozen

    def update(
        self, grads: Params, opt_state: Any, params: Params, step: Array
    ) -> tuple[Params, Any]:
        """Return what to add to the trainable parameters, and the next state."""
        if self.pruning is None:
            directions, opt_state = self.transform.update(grads, opt_state, params)
            rate = self.learning_rate(step)
            return jax.tree.map(lambda d: -rate * d, directions), opt_state
        observed = self.pruning.observe(opt_state["pruning"], grads, params)
        grads = self.pruning.mask(grads, params)
        directions, state = self.transform.update(grads, opt_state["optimizer"], params)
        rate = self.learning_rate(step)
        updates = jax.tree.map(lambda d: -rate * d, directions)
        # Again: what Muon makes of a matrix is dense.
        updates = self.pruning.mask(updates, params)
        return updates, {"optimizer": state, "pruning": observed}

    def prune(
        self, params: Params, opt_state: Any, ema_params: Params | None, step: Array
    ) -> tuple[Params, Any, Params | None]:
        """Return parameters, state and average with the zeros that are due.

        Args:
          params: after an update; all of them.
          opt_state: after the update.
          ema_params: the moving average of the parameters.
          step: updates done.
        """
        if self.pruning is None:
            return params, opt_state, ema_params
        trainable, frozen = self.partition(params)
        trainable, state = self.pruning.prune(trainable, opt_state["pruning"], step)
        if ema_params is not None:
            average, frozen_average = self.partition(ema_params)
            average = self.pruning.mask(average, trainable)
            ema_params = combine(average, frozen_average)
        params = combine(trainable, frozen)
        return params, {**opt_state, "pruning": state}, ema_params


def build(config: OptimConfig, *, axes: Axes, num_steps: int) -> Optimizer:
    """Build the optimizer of a config.

    Args:
      config: of the optimizer.
      axes: of the parameters; "layers" tells a stack of matrices from one.
      num_steps: at which the schedule ends.

    Raises:
      ConfigError: a pattern of `frozen` or `trainable` matches no parameter.
    """
    for line in config.unused_leaves("config.optim"):
        log.info("%s", line)
    mask = _trainable_mask(config, axes)
    axes = jax.tree.map(lambda ok, a: a if ok else None, mask, axes)
    clip, decay = config.clip_norm, config.weight_decay
    chain = [
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        OPTIMIZERS[config.name](config, axes),
        # Even if it is 0: the structure of the state must not depend on leaves that
        # may change when a run resumes.
        optax.add_decayed_weights(decay, _decay_mask(config, axes)),
    ]
    return Optimizer(
        transform=optax.chain(*chain),
        learning_rate=make_schedule(config, num_steps=num_steps),
        ema_decay=config.ema_decay,
        skip_nonfinite=config.on_nonfinite == "skip",
        trainable_mask=mask,
        pruning=pruning.build(config.prune, axes),
    )


def _trainable_mask(config: OptimConfig, axes: Axes) -> Any:
    """Return a tree of booleans: True if `trainable` matches, or `frozen` does not.

    Raises:
      ConfigError: a pattern matches no parameter, or all parameters are frozen.
    """
    names = [*named_axes(axes)]
    for leaf in ("frozen", "trainable"):
        for pattern in getattr(config, leaf):
            if not fnmatch.filter(names, pattern):
                raise ConfigError(
                    f"config.optim.{leaf}: {pattern!r} matches no parameter"
                    f"{nearest(pattern, names)}"
                )

    mask = _map_axes(lambda path, _: _can_be_trained(leaf_name(path), config), axes)
    if not any(jax.tree.leaves(mask)):
        raise ConfigError(
            f"config.optim.frozen = {config.frozen}: freezes all parameters"
        )
    return mask


def _can_be_trained(name: str, config: OptimConfig) -> bool:
    """Return whether a parameter is trainable: those of quantized matrices are not."""
    return config.is_trainable(name) and not name.endswith(("codes", "scales"))


def make_schedule(config: OptimConfig, *, num_steps: int) -> Callable[[Array], Array]:
    """Return the learning rate as a function of the number of updates done.

    It rises linearly over `warmup_steps`, then follows the named shape to `num_steps`;
    "wsd" (warmup, stable, decay) falls linearly in the last `decay_fraction` of
    `num_steps`, from the first of these steps on.
    """
    warmup, final = config.warmup_steps, config.final_fraction
    decay = config.decay_steps(num_steps)
    shapes = {
        "constant": lambda p, step: 1.0,
        "linear": lambda p, step: 1.0 - (1.0 - final) * p,
        "cosine": lambda p, step: (
            final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(math.pi * p))
        ),
        "inverse_sqrt": lambda p, step: jnp.sqrt(
            max(warmup, 1) / jnp.maximum(step, max(warmup, 1))
        ),
        "wsd": lambda p, step: (
            1.0
            - (1.0 - final)
            * jnp.clip((step + 1.0 - (num_steps - decay)) / (decay + 1), 0.0, 1.0)
        ),
    }

    def learning_rate(step: Array) -> Array:
        step = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum((step + 1.0) / max(warmup, 1), 1.0)
        progress = jnp.clip((step - warmup) / max(num_steps - warmup, 1), 0.0, 1.0)
        shape = shapes[config.schedule](progress, step)
        return config.learning_rate * warm * shape

    return learning_rate


def _adamw(c: OptimConfig, axes: Axes) -> optax.GradientTransformation:
    return optax.scale_by_adam(c.b1, c.b2, c.epsilon, mu_dtype=c.momentum_dtype)


def _adafactor(c: OptimConfig, axes: Axes) -> optax.GradientTransformation:
    """Adafactor (Shazeer and Stern 2018), updates scaled by each parameter's RMS.

    Layers are stacked: optax's own RMS would be taken over all of them.
    """
    clip = lambda axes, u: u / jnp.maximum(_layer_rms(axes, u), 1.0)
    relative = lambda axes, u, p: u * jnp.maximum(_layer_rms(axes, p), 1e-3)
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.stateless(lambda us, _: _with_axes(clip, axes, us)),
        optax.stateless(lambda us, ps: _with_axes(relative, axes, us, ps)),
    )


def _adagrad(c: OptimConfig, axes: Axes) -> optax.GradientTransformation:
    """Adagrad (Duchi et al. 2011), whose state begins with zeros.

    What has no gradient, such as the rows of words that a batch has not, stays.
    """

    def update(grads: Params, sums: Params, _: Any = None) -> tuple[Params, Params]:
        sums = jax.tree.map(lambda s, g: s + jnp.square(g), sums, grads)
        scale = lambda g, s: g / (jnp.sqrt(s) + c.epsilon)
        return jax.tree.map(scale, grads, sums), sums

    init = lambda params: jax.tree.map(jnp.zeros_like, params)
    return optax.GradientTransformation(init, update)


def _layer_rms(axes: tuple[str, ...], x: Array) -> Array:
    """Return the root mean square of a parameter, separately for each layer."""
    dims = tuple(i for i, axis in enumerate(axes) if axis != "layers")
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=dims, keepdims=True))


def _lion(c: OptimConfig, axes: Axes) -> optax.GradientTransformation:
    return optax.scale_by_lion(c.b1, c.b2, mu_dtype=c.momentum_dtype)


def _sgd(c: OptimConfig, axes: Axes) -> optax.GradientTransformation:
    return optax.trace(c.b1, accumulator_dtype=c.momentum_dtype)


def _muon(c: OptimConfig, axes: Axes) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for hidden matrices, AdamW for all other parameters.

    Embeddings, heads, classifiers, poolers and adapters are no hidden matrices; those
    that `muon_also` names are treated as if they were. Orthogonalized updates are
    scaled to the RMS of AdamW's (Liu et al. 2025), so that both share a learning rate.

    Raises:
      ConfigError: a pattern of `muon_also` matches no trainable matrix.
    """
    _check_muon_also(c.muon_also, axes)
    numbers = _map_axes(functools.partial(_muon_numbers, also=c.muon_also), axes)
    is_masked = lambda x: isinstance(x, optax.MaskedNode)
    labels = jax.tree.map(
        lambda n: "adamw" if is_masked(n) else "muon",
        numbers,
        is_leaf=lambda x: is_masked(x) or _is_numbers(x),
    )
    if "muon" not in jax.tree.leaves(labels):
        log.warning(
            "config.optim.name = 'muon': no trainable parameter is a hidden matrix, so "
            "AdamW updates all of them; config.optim.muon_also names others for Muon"
        )
    muon = optax.chain(
        optax.contrib.scale_by_muon(
            beta=c.b1, weight_dimension_numbers=numbers, mu_dtype=c.momentum_dtype
        ),
        optax.stateless(lambda updates, _: _muon_scale(updates, numbers)),
    )
    return optax.partition({"muon": muon, "adamw": _adamw(c, axes)}, labels)


def _muon_numbers(path: Any, axes: tuple[str, ...], *, also: Sequence[str] = ()) -> Any:
    """Return the input and the output dimensions of a matrix that Muon updates."""
    name = leaf_name(path)
    hidden = is_hidden_matrix(name, axes)
    if not (hidden or (_is_matrix(path, axes) and _matches(name, also))):
        return optax.MaskedNode()
    return optax.contrib.MuonDimensionNumbers(*split_axes(axes))


def _is_matrix(path: Any, axes: tuple[str, ...]) -> bool:
    inner = [axis for axis in axes if axis != "layers"]
    return path[-1].key not in ("bias", "scale") and len(inner) > 1


def _check_muon_also(also: Sequence[str], axes: Axes) -> None:
    matrices: list[str] = []
    _map_axes(
        lambda path, a: matrices.append(leaf_name(path)) if _is_matrix(path, a) else 0,
        axes,
    )
    for pattern in also:
        if not fnmatch.filter(matrices, pattern):
            raise ConfigError(
                f"config.optim.muon_also: {pattern!r} matches no trainable matrix"
                f"{nearest(pattern, matrices)}"
            )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_numbers(x: Any) -> bool:
    return isinstance(x, optax.contrib.MuonDimensionNumbers)


def _muon_scale(updates: Params, numbers: Any) -> Params:
    def scale(dims: Any, update: Array) -> Array:
        sides = (dims.reduction_axis, dims.output_axis)
        longer = max(math.prod(update.shape[i] for i in side) for side in sides)
        return 0.2 * math.sqrt(longer) * update

    return jax.tree.map(scale, numbers, updates, is_leaf=_is_numbers)


OPTIMIZERS = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "adagrad": _adagrad,
    "lion": _lion,
    "muon": _muon,
    "sgd": _sgd,
}


def _decay_mask(config: OptimConfig, axes: Axes) -> Params:
    return _map_axes(lambda path, _: _kind(path) in config.decay_kinds, axes)


def _kind(path: Any) -> str:
    """Return the kind of a parameter, its last name; factors count as kernels."""
    name = str(path[-1].key)
    return "kernel" if name.startswith(("lora_", "factor_")) else name


def _with_axes(function: Callable[..., Array], axes: Axes, *trees: Params) -> Any:
    """Map a function of the axes and the leaves of trees of parameters."""
    is_axes = lambda x: isinstance(x, tuple)
    return jax.tree.map(function, axes, *trees, is_leaf=is_axes)


def _map_axes(function: Callable[[Any, Any], Any], axes: Axes) -> Any:
    is_axes = lambda x: isinstance(x, tuple)
    return jax.tree_util.tree_map_with_path(function, axes, is_leaf=is_axes)
