"""The least that devices must send each other in a step, and what a model keeps.

T tokens of a device in one microbatch, D dim.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.parallel.sharding import RULES
from lmjax.training.compiled import Program
from lmjax.types import named_axes, named_leaves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Bytes of the parameters in the compute dtype, where `tensor` splits them.

    layers: of the stacked blocks; looked_up: of tables that rows are only taken of;
    rest: of all others, such as the head.
    """

    layers: float
    looked_up: float
    rest: float


def count_weights(program: Program) -> Weights:
    """Return the bytes of a program's parameters, by how they are used."""
    model, sums = program.model, {"layers": 0.0, "looked_up": 0.0, "rest": 0.0}
    itemsize = jnp.dtype(model.config.dtype).itemsize
    names = named_axes(model.axes)
    tied = getattr(model.config, "tie_embeddings", False)
    for name, leaf in named_leaves(model.shapes).items():
        axes = names[name]
        split = program.mesh.shape["tensor"] if _is_split(axes) else 1
        kind = "rest"
        if axes[0] == "layers":
            kind = "layers"
        elif not tied and name.startswith("embed") and "vocab" in axes:
            kind = "looked_up"
        sums[kind] += leaf.size * itemsize / split
    return Weights(**sums)


def _is_split(axes: tuple[str, ...]) -> bool:
    return any(RULES[axis][0] == "tensor" for axis in axes)


def least_bytes(program: Program) -> dict[str, float]:
    """Return the bytes that a device must send in a step, by mesh axis.

    Parameters split over fsdp are gathered for the forward and for the backward pass of
    each microbatch, those outside of the layers once for both, and their gradients are
    scattered once; rows of the embedding are sent, not the table. Over data the
    gradients are summed once, over tensor the activations twice a layer and pass. All
    of it is in the compute dtype.
    """
    mesh, weights = program.mesh.shape, count_weights(program)
    num = program.config.num_microbatches
    size = _activation_bytes(program)
    share = {axis: (n - 1) / n for axis, n in mesh.items()}
    gathered = 2 * weights.layers + weights.rest
    scattered = weights.layers + weights.rest
    lookups = min(2 * size, 2 * weights.looked_up)
    own = (weights.layers + weights.rest + weights.looked_up) / mesh["fsdp"]
    layers = _num_layers(program)
    return {
        "data": 2 * own * share["data"],
        "fsdp": num * share["fsdp"] * (gathered + scattered + lookups),
        # An all-reduce of a layer's two parts, forward and backward, and of the ends.
        "tensor": num * share["tensor"] * 2 * size * (4 * layers + 2),
    }


def _activation_bytes(program: Program) -> float:
    """Return the bytes of one (T, D) activation of a device."""
    model, mesh = program.model, program.mesh.shape
    batch = program.batch_shapes()
    shards = mesh["data"] * mesh["fsdp"] * program.config.num_microbatches
    tokens = math.prod(batch["tokens"].shape) / shards
    return tokens * model.config.dim * jnp.dtype(model.config.dtype).itemsize


def _num_layers(program: Program) -> int:
    """Return the number of blocks, those of an encoder included."""
    axes = named_axes(program.model.axes)
    shapes = named_leaves(program.model.shapes)
    stacks: dict[str, int] = {}
    for name, names in axes.items():
        if names[0] == "layers":
            stacks[name.split(".blocks.")[0]] = shapes[name].shape[0]
    return sum(stacks.values())


def state_bytes(program: Program) -> dict[str, float]:
    """Return the bytes of one device's share of the state, by group."""
    state = program.state_shapes
    groups: Mapping[str, Any] = {
        "parameters": state.params,
        "optimizer": state.opt_state,
        "average": state.ema_params,
        "carry": state.carry,
        "batch": program.batch_shapes(),
    }
    return {name: shard_bytes(tree) for name, tree in groups.items()}


def shard_bytes(tree: Any) -> float:
    """Return the bytes that a device holds of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def gradient_bytes(program: Program) -> float:
    """Return the bytes of one device's share of the gradients."""
    learning, _ = program.optimizer.partition(program.state_shapes.params)
    return shard_bytes(learning)
