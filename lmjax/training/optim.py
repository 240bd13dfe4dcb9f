"""Optimizers, schedules, and which parameters decay."""

import dataclasses
import fnmatch
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmjax.config.optim import OptimConfig
from lmjax.errors import ConfigError, nearest
from lmjax.types import Array, Axes, Params, leaf_name

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Optimizer:
    """A direction for each gradient, and a learning rate for each step."""

    transform: optax.GradientTransformation
    learning_rate: Callable[[Array], Array]
    ema_decay: float
    skip_nonfinite: bool
    learns: Any  # a tree like the parameters: does each learn, or is it frozen?

    def init(self, params: Params) -> Any:
        """Return the state before the first step; frozen parameters have none."""
        return self.transform.init(self.learning(params))

    def learning(self, tree: Any, *, frozen: bool = False) -> Any:
        """Return a tree like the parameters with None for what is frozen, or is not."""
        return jax.tree.map(
            lambda ok, x: x if ok != frozen else None, self.learns, tree
        )

    def update(
        self, grads: Params, opt_state: Any, params: Params, step: Array
    ) -> tuple[Params, Any]:
        """Return what to add to the parameters, and the next state."""
        directions, opt_state = self.transform.update(grads, opt_state, params)
        rate = self.learning_rate(step)
        return jax.tree.map(lambda d: -rate * d, directions), opt_state


def build(config: OptimConfig, *, axes: Axes, num_steps: int) -> Optimizer:
    """Return the optimizer of a config; `axes` tell matrices from stacks of them.

    Raises:
      ConfigError: a pattern of `frozen` or `trainable` that names no parameter.
    """
    for line in config.unused_leaves("config.optim"):
        log.info("%s", line)
    learns = which_learn(config, axes)
    axes = jax.tree.map(lambda ok, a: a if ok else None, learns, axes)
    clip, decay = config.clip_norm, config.weight_decay
    chain = [
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        OPTIMIZERS[config.name](config, axes),
        # Also of 0: the state must not depend on what may differ on resuming.
        optax.add_decayed_weights(decay, _decayed(config, axes)),
    ]
    return Optimizer(
        transform=optax.chain(*chain),
        learning_rate=make_schedule(config, num_steps=num_steps),
        ema_decay=config.ema_decay,
        skip_nonfinite=config.on_nonfinite == "skip",
        learns=learns,
    )


def which_learn(config: OptimConfig, axes: Axes) -> Any:
    """Return a tree of booleans: is a parameter `trainable`, or else not `frozen`?

    Raises:
      ConfigError: a pattern that names no parameter, or none is left to learn.
    """
    names: list[str] = []
    _map_axes(lambda path, _: names.append(leaf_name(path)), axes)
    for leaf in ("frozen", "trainable"):
        for pattern in getattr(config, leaf):
            if not fnmatch.filter(names, pattern):
                raise ConfigError(
                    f"config.optim.{leaf}: {pattern!r} names no parameter"
                    f"{nearest(pattern, names)}"
                )

    def learns(path: Any, _: Any) -> bool:
        def named(patterns: Sequence[str]) -> bool:
            return any(fnmatch.fnmatchcase(leaf_name(path), p) for p in patterns)

        return named(config.trainable) or not named(config.frozen)

    tree = _map_axes(learns, axes)
    if not any(jax.tree.leaves(tree)):
        raise ConfigError(
            f"config.optim.frozen = {config.frozen}: leaves nothing to learn"
        )
    return tree


def make_schedule(config: OptimConfig, *, num_steps: int) -> Callable[[Array], Array]:
    """Return the learning rate as a function of the updates done so far.

    It rises linearly over `warmup_steps`, then follows the named shape until
    `num_steps`; "wsd" (warmup, stable, decay) falls linearly in the last part only.
    """
    warmup, final = config.warmup_steps, config.final_fraction
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
            * jnp.clip(1.0 - (1.0 - p) / max(config.decay_fraction, 1e-9), 0.0, 1.0)
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
    return optax.scale_by_adam(c.b1, c.b2, c.epsilon)


def _adafactor(c: OptimConfig, axes: Axes) -> optax.GradientTransformation:
    """Shazeer and Stern 2018: updates relative to each parameter's size.

    Layers are stacked, so optax's own root mean squares would be over all of them.
    """
    clip = lambda axes, u: u / jnp.maximum(_layer_rms(axes, u), 1.0)
    relative = lambda axes, u, p: u * jnp.maximum(_layer_rms(axes, p), 1e-3)
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.stateless(lambda us, _: _with_axes(clip, axes, us)),
        optax.stateless(lambda us, ps: _with_axes(relative, axes, us, ps)),
    )


def _layer_rms(axes: tuple[str, ...], x: Array) -> Array:
    """Return the root mean square of a parameter, of each layer's for itself."""
    dims = tuple(i for i, axis in enumerate(axes) if axis != "layers")
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=dims, keepdims=True))


def _lion(c: OptimConfig, axes: Axes) -> optax.GradientTransformation:
    return optax.scale_by_lion(c.b1, c.b2)


def _sgd(c: OptimConfig, axes: Axes) -> optax.GradientTransformation:
    return optax.trace(c.b1)


def _muon(c: OptimConfig, axes: Axes) -> optax.GradientTransformation:
    """Jordan et al. 2024 for the blocks' matrices, AdamW for all else.

    Orthogonal updates are scaled to the size of AdamW's (Liu et al. 2025), so that
    both share a learning rate.
    """
    numbers = _map_axes(_muon_numbers, axes)
    labels = _map_axes(lambda path, _: _muon_label(path), axes)
    muon = optax.chain(
        optax.contrib.scale_by_muon(beta=c.b1, weight_dimension_numbers=numbers),
        optax.stateless(lambda updates, _: _muon_scale(updates, numbers)),
    )
    return optax.partition({"muon": muon, "adamw": _adamw(c, axes)}, labels)


def _muon_label(path: Any) -> str:
    return "muon" if _kind(path) == "kernel" else "adamw"


def _muon_numbers(path: Any, axes: tuple[str, ...]) -> Any:
    """Return which dimensions of a kernel are its inputs and which its outputs."""
    if _muon_label(path) != "muon":
        return optax.MaskedNode()
    dims = [i for i, axis in enumerate(axes) if axis != "layers"]
    cut = 1 if axes[dims[0]] == "embed" else len(dims) - 1
    return optax.contrib.MuonDimensionNumbers(tuple(dims[:cut]), tuple(dims[cut:]))


def _muon_scale(updates: Params, numbers: Any) -> Params:
    def scale(dims: Any, update: Array) -> Array:
        sides = (dims.reduction_axis, dims.output_axis)
        longer = max(math.prod(update.shape[i] for i in side) for side in sides)
        return 0.2 * math.sqrt(longer) * update

    is_numbers = lambda x: isinstance(x, optax.contrib.MuonDimensionNumbers)
    return jax.tree.map(scale, numbers, updates, is_leaf=is_numbers)


OPTIMIZERS = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
    "sgd": _sgd,
}


def _decayed(config: OptimConfig, axes: Axes) -> Params:
    return _map_axes(lambda path, _: _kind(path) in config.decay_kinds, axes)


def _kind(path: Any) -> str:
    """Return what a parameter is: its last name (kernel, embedding, scale, bias)."""
    name = str(path[-1].key)
    return "kernel" if name in ("lora_a", "lora_b") else name


def _with_axes(function: Callable[..., Array], axes: Axes, *trees: Params) -> Any:
    """Map over trees of parameters, each leaf after its axes."""
    is_axes = lambda x: isinstance(x, tuple)
    return jax.tree.map(function, axes, *trees, is_leaf=is_axes)


def _map_axes(function: Callable[[Any, Any], Any], axes: Axes) -> Any:
    is_axes = lambda x: isinstance(x, tuple)
    return jax.tree_util.tree_map_with_path(function, axes, is_leaf=is_axes)
