"""The memory and the time of a training step by arithmetic, to order candidates by.

It is rough: `search` compiles the few best.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lmjax import models, tasks
from lmjax.config.experiment import Config
from lmjax.config.model import TransformerConfig
from lmjax.errors import UserError
from lmjax.plan.target import Target
from lmjax.training import optim
from lmjax.types import named_axes, named_leaves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What candidates share: bytes of the whole state, FLOPs and weights of the model.

    state: of parameters, the optimizer's and gradients; layer, rest: bytes of one
    layer's weights and of those outside, in the compute dtype; flops: of a step.
    """

    state: float
    layer: float
    rest: float
    num_layers: int
    flops: float
    config: TransformerConfig


def measure_sizes(config: Config, target: Target) -> Sizes:
    """Return the sizes of a config's model; nothing is allocated.

    Raises:
      UserError: it is no Transformer.
    """
    model = models.build(config.model, platform=target.platform)
    if not isinstance(model.config, TransformerConfig):
        raise UserError(
            f"--search: config.model.kind = {config.model.kind!r}: searches among "
            "Transformers only"
        )
    optimizer = optim.build(config.optim, axes=model.axes, num_steps=config.num_steps)
    size = lambda tree: sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )
    state = jax.eval_shape(optimizer.init, model.shapes)
    axes = named_axes(model.axes)
    leaves = named_leaves(model.shapes)
    stacked = {n: leaf for n, leaf in leaves.items() if axes[n][0] == "layers"}
    itemsize = jnp.dtype(model.config.dtype).itemsize
    depths = {name.split(".blocks.")[0]: s.shape[0] for name, s in stacked.items()}
    layers = sum(depths.values())
    inside = sum(leaf.size for leaf in stacked.values()) * itemsize
    total = sum(leaf.size for leaf in leaves.values()) * itemsize
    batch = tasks.build(config.task).batch_shapes(
        config.batch_size, config.data.length, target_length=config.data.target_length
    )
    tokens = sum(batch[n].size for n in ("tokens", "source") if n in batch)
    return Sizes(
        state=float(2 * size(model.shapes) + size(state)),
        layer=inside / layers,
        rest=total - inside,
        num_layers=layers,
        flops=model.flops_per_token(batch) * tokens,
        config=model.config,
    )


def estimate(
    config: Config, mesh: Mapping[str, int], *, sizes: Sizes, target: Target
) -> tuple[float, float]:
    """Return about how many bytes a device needs, and how many seconds a step takes.

    Args:
      config: the candidate.
      mesh: its axes.
      sizes: of the model.
      target: has a known chip.
    """
    chip, c = target.chip, sizes.config
    assert chip is not None
    rows = config.batch_size / config.num_microbatches / mesh["data"] / mesh["fsdp"]
    tokens, tensor = rows * config.data.length, mesh["tensor"]
    itemsize = jnp.dtype(c.dtype).itemsize
    remat = getattr(config.model, "remat", "none")
    heads = (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim / tensor
    hidden = c.mlp_dim * (3 if c.gated else 2) / tensor
    everything = 8 * c.dim + heads + hidden
    kept = {
        "none": everything,
        "dots": 3 * c.dim + heads + hidden,
        "attention": c.dim + c.num_heads * c.head_dim / tensor,
    }.get(remat, c.dim)
    scores = 0.0
    if getattr(config.model, "attention", "") == "xla":
        scores = c.num_heads / tensor * config.data.length * 4 * 2
    logits = tokens * c.vocab_size * 4 / tensor
    budget = getattr(config.task, "logits_gigabytes", 0.0) * 1e9
    memory = (
        sizes.state / mesh["fsdp"] / tensor
        + tokens * sizes.num_layers * kept * itemsize
        + tokens * (2 * everything * itemsize + scores)
        + (min(logits, budget) if budget else logits)
        + 2 * (2 * sizes.layer + sizes.rest) / tensor
    )
    if remat == "none":
        memory += tokens * sizes.num_layers * scores
    return memory, _seconds(config, mesh, sizes=sizes, target=target, tokens=tokens)


def _seconds(
    config: Config,
    mesh: Mapping[str, int],
    *,
    sizes: Sizes,
    target: Target,
    tokens: float,
) -> float:
    chip, c = target.chip, sizes.config
    assert chip is not None
    itemsize, num = jnp.dtype(c.dtype).itemsize, config.num_microbatches
    remat = getattr(config.model, "remat", "none")
    again = {"none": 3.0, "dots": 3.1, "attention": 3.7}.get(remat, 4.0) / 3
    peak = chip.flops.get(c.dtype, chip.flops["bfloat16"])
    computing = sizes.flops / math.prod(mesh.values()) * again / peak
    weights = sizes.layer * sizes.num_layers + sizes.rest
    share = {axis: (n - 1) / n for axis, n in mesh.items()}
    sent = {
        "fsdp": num * 3 * weights / mesh["tensor"] * share["fsdp"],
        "data": 2 * weights / mesh["tensor"] / mesh["fsdp"] * share["data"],
    }
    inside, sending = target.devices_per_group, 0.0
    within = min(mesh["fsdp"], max(inside // mesh["tensor"], 1))
    for axis, size in sent.items():
        slow = mesh["tensor"] * mesh["fsdp"] > inside or (
            axis == "data" and math.prod(mesh.values()) > inside
        )
        sending += size / chip.link_bandwidth
        if slow and chip.network_bandwidth:
            members = within if axis == "fsdp" else 1
            sending += size / members / chip.network_bandwidth
    activations = num * tokens * c.dim * itemsize * 8 * sizes.num_layers
    waiting = activations * share["tensor"] / chip.link_bandwidth
    if mesh["tensor"] > inside:
        waiting *= chip.link_bandwidth / (chip.network_bandwidth or chip.link_bandwidth)
    # Small microbatches keep less of the chip busy.
    busy = tokens / (tokens + 512)
    return computing / busy + waiting + max(0.0, sending - 0.8 * computing)
