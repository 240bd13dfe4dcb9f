"""Losses and metrics of tokens of a vocabulary, without all logits at once.

Where the logits of a batch would take more of a device's memory than a budget, they are
computed for a tile of tokens at a time, and again in the backward pass: the output
layer then takes about a third more time, and its memory is that of one tile.

B batch, T length, D dim, V vocabulary.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lmjax.config.text_task import VocabularyTaskConfig
from lmjax.models import Model
from lmjax.models.heads import OutputLayer
from lmjax.parallel.sharding import activation_spec, context_shards, data_shards
from lmjax.tasks.distill import HiddenStates, soft_loss
from lmjax.tasks.losses import cross_entropy, mix, token_loss, token_metrics
from lmjax.tasks.task import LossOutput, TokenTask
from lmjax.types import Array, Batch, Metrics, Params

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class VocabularyTask(TokenTask):
    """A task whose targets are tokens, which a teacher may predict too."""

    config: VocabularyTaskConfig

    def _output_layer(
        self, model: Model, params: Params, hidden_BTD: Array, batch: Batch
    ) -> OutputLayer:
        """Return what gives the logits of the targets."""
        return model.output_layer(params, hidden_BTD)

    def _loss(self, layer: OutputLayer, hidden_BTD: Array, batch: Batch) -> LossOutput:
        """Return the loss, with that of the teacher if there is one.

        Args:
          layer: of the targets.
          hidden_BTD: the last hidden states.
          batch: that they are of.
        """
        if (teacher := self.teacher) is None:
            return vocabulary_loss(layer, batch, self.config)
        taught_BTD = teacher.model.hidden(teacher.params, batch)
        taught = self._output_layer(teacher.model, teacher.params, taught_BTD, batch)
        output = vocabulary_loss(layer, batch, self.config, teacher=taught)
        states = HiddenStates(hidden_BTD, taught_BTD)
        return output.with_hidden_loss(states, batch, self.config.distill)


def vocabulary_loss(
    layer: OutputLayer,
    batch: Batch,
    config: VocabularyTaskConfig,
    *,
    teacher: OutputLayer | None = None,
) -> LossOutput:
    """Return the loss of the batch's `targets`, as `token_loss` of the logits does.

    Args:
      layer: of hidden states (B, T, D).
      batch: has `targets` and `weights` (B, T).
      config: of the task.
      teacher: the layer of one, whose probabilities are targets too.
    """
    copies = 1 if teacher is None else 2
    num_tiles = count_tiles(layer, gigabytes=config.logits_gigabytes, copies=copies)
    if num_tiles == 1:
        taught = None if teacher is None else teacher.logits()
        return token_loss(layer.logits(), batch, config, teacher_logits=taught)
    targets, weights = batch["targets"], batch["weights"]
    options = _Options(
        config.label_smoothing,
        config.z_loss,
        num_tiles,
        config.distill.temperature,
        config.distill.weight,
    )
    teacher = None if teacher is None else teacher.in_floats()
    losses = _token_losses(options, layer.in_floats(), targets, teacher)
    weight_sum = weights.sum()
    plain = {"loss": losses.nll, "soft_loss": losses.soft}
    return LossOutput(
        (losses.objective * weights).sum(),
        weight_sum,
        {
            name: ((jax.lax.stop_gradient(each) * weights).sum(), weight_sum)
            for name, each in plain.items()
            if each is not None
        },
    )


def vocabulary_metrics(
    layer: OutputLayer, batch: Batch, config: VocabularyTaskConfig
) -> Metrics:
    """Return the plain loss and the accuracy, as `token_metrics` of the logits does.

    Arguments as for `vocabulary_loss`.
    """
    num_tiles = count_tiles(layer, gigabytes=config.logits_gigabytes)
    if num_tiles == 1:
        return token_metrics(layer.logits(), batch)
    targets, weights = batch["targets"], batch["weights"]
    losses = _token_losses(
        _Options(0.0, 0.0, num_tiles), layer.in_floats(), targets, None
    )
    weight_sum = weights.sum()
    return {
        "loss": ((losses.nll * weights).sum(), weight_sum),
        "accuracy": (((losses.best == targets) * weights).sum(), weight_sum),
    }


def target_log_probs(
    layer: OutputLayer, batch: Batch, config: VocabularyTaskConfig
) -> Array:
    """Return the log-probability of each of the batch's `targets`, float32 (B, T).

    Arguments as for `vocabulary_loss`.
    """
    num_tiles = count_tiles(layer, gigabytes=config.logits_gigabytes)
    if num_tiles == 1:
        return -cross_entropy(layer.logits(), batch["targets"])[0]
    options = _Options(0.0, 0.0, num_tiles)
    return -_token_losses(options, layer.in_floats(), batch["targets"], None).objective


def count_tiles(layer: OutputLayer, *, gigabytes: float, copies: int = 1) -> int:
    """Return in how many tiles of the length the logits are computed.

    A device may hold so many gigabytes of logits in float32, of its own rows and its
    own part of the vocabulary; 0 is without a limit. A teacher's logits are a second
    copy.
    """
    B, T, _ = layer.x.shape
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else data_shards(mesh) * mesh.shape["tensor"]
    shards *= context_shards(T)
    size = B * T * layer.table_VD.shape[0] * copies * 4e-9 / shards
    if not gigabytes or size <= gigabytes:
        return 1
    num = min(T, math.ceil(size / gigabytes))
    _log.info(
        "loss: in %d tiles of tokens, as all logits would take %.1f GB of a device's "
        "memory (config.task.logits_gigabytes = %g)",
        *(num, size, gigabytes),
    )
    return num


class _Options(NamedTuple):
    label_smoothing: float
    z_loss: float
    num_tiles: int
    temperature: float = 1.0  # of a teacher
    weight: float = 0.0


class TokenLosses(NamedTuple):
    """Of each token (B, T): nats, the training loss, and the id that is most likely.

    With a teacher also the divergence from it.
    """

    nll: Array
    objective: Array
    best: Array
    soft: Array | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_losses(
    options: _Options,
    layer: OutputLayer,
    targets_BT: Array,
    teacher: OutputLayer | None,
) -> TokenLosses:
    return _forward(options, layer, targets_BT, teacher)[0]


def _forward(
    options: _Options,
    layer: OutputLayer,
    targets_BT: Array,
    teacher: OutputLayer | None,
) -> Any:
    def losses(
        x_BTD: Array,
        targets_BT: Array,
        taught_BTD: Array | None,
        table_VD: Array,
        bias_V: Array | None,
        *taught: Any,
    ) -> TokenLosses:
        def one(tile: tuple[Any, ...]) -> TokenLosses:
            x, targets, taught_x = tile
            logits = OutputLayer(x, table_VD, bias_V, softcap=layer.softcap).logits()
            taught_logits = _teacher_logits(teacher, taught_x, *taught)
            nll, objective, soft = _losses(options, logits, targets, taught_logits)
            return TokenLosses(nll, objective, jnp.argmax(logits, axis=-1), soft)

        tiles = jax.lax.map(one, _tiles(options, x_BTD, targets_BT, taught_BTD))
        return jax.tree.map(lambda x: _join(x, targets_BT), tiles)

    inputs = (layer.x, targets_BT, _x(teacher), *_weights(layer), *_weights(teacher))
    rows = _rows(layer)
    specs = (rows, rows, rows, None, None, None, None)
    found = _on_rows(losses, inputs, specs=specs, out=rows)
    return found, (layer, targets_BT, teacher)


def _backward(options: _Options, residuals: Any, grads: TokenLosses) -> Any:
    layer, targets_BT, teacher = residuals
    rows = _rows(layer)
    axes = () if rows is None else _axes(rows)

    def gradients(
        x_BTD: Array,
        targets_BT: Array,
        taught_BTD: Array | None,
        d_losses_BT: Any,
        table_VD: Array,
        bias_V: Array | None,
        *taught: Any,
    ) -> Any:
        def one(carry: Any, tile: tuple[Any, ...]) -> Any:
            (d_table, d_bias), (x, targets, taught_x, d_losses) = carry, tile
            raw = OutputLayer(x, table_VD, bias_V).logits()
            taught_logits = _teacher_logits(teacher, taught_x, *taught)
            _, pull = jax.vjp(
                lambda raw: _losses(options, _cap(layer, raw), targets, taught_logits),
                raw,
            )
            (d_logits,) = pull(d_losses)
            if d_bias is not None:
                d_bias = d_bias + d_logits.sum(axis=(0, 1))
            # Products in the compute dtype, summed in float32.
            d_logits = d_logits.astype(x.dtype)
            dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
            d_table = d_table + dot("BTV,BTD->VD", d_logits, x)
            d_x = dot("BTV,VD->BTD", d_logits, table_VD)
            return (d_table, d_bias), d_x.astype(x.dtype)

        zeros = lambda x: None if x is None else jnp.zeros(x.shape, jnp.float32)
        tiles = _tiles(options, x_BTD, targets_BT, taught_BTD, d_losses_BT)
        own, d_x = jax.lax.scan(one, (zeros(table_VD), zeros(bias_V)), tiles)
        d_table: Any = own[0]
        d_bias = own[1]
        if d_bias is not None:
            d_bias = _sum_over(d_bias, axes)
        return _join(d_x, targets_BT), (_scatter_sum(d_table, axes), d_bias)

    d_losses = (grads.nll, grads.objective, grads.soft)
    inputs = (layer.x, targets_BT, _x(teacher), d_losses)
    d_x, (d_table, d_bias) = _on_rows(
        gradients,
        (*inputs, *_weights(layer), *_weights(teacher)),
        specs=(rows, rows, rows, rows, None, None, None, None),
        out=(rows, (_scattered(layer.table_VD, axes), None)),
    )
    d_table = d_table.astype(layer.table_VD.dtype)
    if layer.bias_V is not None:
        d_bias = d_bias.astype(layer.bias_V.dtype)
    return OutputLayer(d_x, d_table, d_bias, softcap=layer.softcap), None, None


_token_losses.defvjp(_forward, _backward)


def _losses(
    options: _Options, logits: Array, targets: Array, taught_logits: Array | None
) -> tuple[Array, Array, Array | None]:
    """Return of each token its nats, the training loss, and the part of a teacher."""
    nll, objective = cross_entropy(
        logits,
        targets,
        label_smoothing=options.label_smoothing,
        z_loss=options.z_loss,
    )
    if taught_logits is None:
        return nll, objective, None
    soft = soft_loss(logits, taught_logits, temperature=options.temperature)
    return nll, mix(objective, soft, weight=options.weight), soft


def _teacher_logits(
    teacher: OutputLayer | None, x: Array | None, table_VD: Any, bias_V: Any
) -> Array | None:
    """Return the logits of a tile of a teacher's hidden states, None without one."""
    if teacher is None or x is None:
        return None
    return OutputLayer(x, table_VD, bias_V, softcap=teacher.softcap).logits()


def _x(layer: OutputLayer | None) -> Array | None:
    return None if layer is None else layer.x


def _cap(layer: OutputLayer, raw: Array) -> Array:
    return layer.softcap * jnp.tanh(raw / layer.softcap) if layer.softcap else raw


def _weights(layer: OutputLayer | None) -> tuple[Array | None, Array | None]:
    """Return table and bias; the table is cast, and gathered, once for all tiles."""
    if layer is None:
        return None, None
    return layer.table_VD.astype(layer.x.dtype), layer.bias_V


def _tiles(options: _Options, *arrays: Any) -> tuple[Any, ...]:
    """Cut arrays (B, T, ...), or trees of them, to (tiles, B, tile, ...)."""

    def cut(x: Array) -> Array:
        B, T = x.shape[:2]
        size = -(-T // options.num_tiles)
        num = -(-T // size)
        x = jnp.pad(x, [(0, 0), (0, num * size - T), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(B, num, size, *x.shape[2:]), 1, 0)

    return tuple(jax.tree.map(cut, x) for x in arrays)


def _join(x: Array, like_BT: Array) -> Array:
    """Join tiles (tiles, B, tile, ...) along the length, the inverse of `_tiles`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(len(like_BT), -1, *x.shape[3:])[:, : like_BT.shape[1]]


def _rows(layer: OutputLayer) -> PartitionSpec | None:
    """Return how rows and their length are split on the mesh; None if they are not."""
    spec = activation_spec(layer.x.shape[:2], "batch", "length")
    mesh = jax.sharding.get_abstract_mesh()
    split = math.prod(mesh.shape[axis] for axis in _axes(spec))
    return None if split == 1 else spec


def _axes(spec: PartitionSpec) -> tuple[str, ...]:
    """Return the axes of the mesh that split rows or their length."""
    rows, length = spec
    return (*(rows or ()), *([length] if length else []))


def _sum_over(x: Array, axes: tuple[str, ...]) -> Array:
    return jax.lax.psum(x, axes) if axes else x


def _scattered(table_VD: Array, axes: tuple[str, ...]) -> PartitionSpec | None:
    """Return how `_scatter_sum` leaves the gradient of a table; None if whole."""
    mesh = jax.sharding.get_abstract_mesh()
    if "fsdp" not in axes or table_VD.shape[1] % mesh.shape["fsdp"]:
        return None
    return PartitionSpec(None, "fsdp")


def _scatter_sum(d_table_VD: Array, axes: tuple[str, ...]) -> Array:
    """Sum over the devices of all rows; each keeps its own columns, as of the table.

    To sum all columns on every device would send twice the bytes.
    """
    if _scattered(d_table_VD, axes) is None:
        return _sum_over(d_table_VD, axes)
    own = jax.lax.psum_scatter(d_table_VD, "fsdp", scatter_dimension=1, tiled=True)
    return _sum_over(own, tuple(axis for axis in axes if axis != "fsdp"))


def _on_rows(
    compute: Callable[..., Any],
    inputs: tuple[Any, ...],
    *,
    specs: tuple[Any, ...],
    out: Any,
) -> Any:
    """Compute on each device for its own rows, with the whole table.

    The axis that splits the vocabulary is left to the compiler.
    """
    if specs[0] is None:
        return compute(*inputs)
    whole = PartitionSpec()
    fill = lambda spec: whole if spec is None else spec
    return jax.shard_map(
        compute,
        in_specs=tuple(fill(spec) for spec in specs),
        out_specs=jax.tree.map(fill, out, is_leaf=lambda x: x is None),
        axis_names={*_axes(specs[0])},
        check_vma=False,
    )(*inputs)
