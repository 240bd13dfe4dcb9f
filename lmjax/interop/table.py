"""Tables: which tensor of the files holds which parameter, and in which layout.

A parameter is named by its dotted path in the tree ("decoder.blocks.mlp.up.kernel"), a
tensor by its name in the files ("model.layers.{layer}.mlp.up_proj.weight"). Parameters
of blocks are stacked: their first dimension is the layer. The files have a tensor for
each layer.

A table is data, and is read in both directions: to import and to export. This module
has its arithmetic: shapes, sharding and transposes. It reads and writes no file.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lmjax.types import Array

T = TypeVar("T")
Shape = tuple[int, ...]
Layout = Literal["same", "flat", "unsqueezed", "linear", "conv1d"]

# Tensors of heads, as regular expressions. Files may hold some that the class of the
# model does not use: of its pretraining, or of another task.
HEADS = (
    r"^(cls|classifier|pre_classifier|classification_head|lm_head|qa_outputs|score)\.",
    r"^(vocab_(transform|layer_norm|projector)|v_head|sop_classifier|embed_out)\.",
    r"(^|\.)pooler\.dense\.",
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter and the tensor that holds it.

    Attributes:
      param: the dotted path of the parameter.
      tensor: the name of the tensor, with `{layer}` in it if the parameter is stacked.
      layout: the dimensions of the tensor, given those of the parameter (of one layer):
        "same": no change;
        "flat": all flattened into one;
        "unsqueezed": a dimension of 1 before them;
        "linear": (outputs, inputs), each flattened, as in `torch.nn.Linear`;
        "conv1d": (inputs, outputs), each flattened, as in GPT-2's `Conv1D`.
      num_inputs: the number of input dimensions of the parameter; they come first.
      part: where several parameters are concatenated in one tensor, along the outputs,
        the position of this one.
      num_parts: the number of such parts; all of them have the same shape.
      span: the number of parts, from `part` on, that this parameter takes.
      num_groups: the number of times that the parts follow one another: each parameter
        is split into so many (heads).
      first_layer: of those that have a tensor. The parameter's rows of the layers
        before it have no effect.
    """

    param: str
    tensor: str
    layout: Layout = "same"
    num_inputs: int = 1
    part: int = 0
    num_parts: int = 1
    span: int = 1
    num_groups: int = 1
    first_layer: int = 0

    @property
    def is_stacked(self) -> bool:
        """Return whether the parameter has a tensor for each layer."""
        return "{layer}" in self.tensor

    def tensor_names(self, shape: Shape) -> list[tuple[int | None, str]]:
        """Return (layer, tensor name) for each tensor of a parameter of `shape`.

        The layer is None if the parameter is not stacked.
        """
        if not self.is_stacked:
            return [(None, self.tensor)]
        layers = range(self.first_layer, shape[0])
        return [(i, self.tensor.format(layer=i)) for i in layers]

    def layer_shape(self, shape: Shape) -> Shape:
        """Return the shape of one layer; all of `shape` if nothing is stacked.

        Shapes and shardings in the methods below are those of one layer.
        """
        return shape[1:] if self.is_stacked else shape

    @property
    def concat_axis(self) -> int:
        """Return the dimension of the tensor along which its parts are concatenated."""
        return 1 if self.layout == "conv1d" else 0

    def part_shape(self, shape: Shape) -> Shape:
        """Return the shape of this parameter's part of the tensor."""
        return self._rearrange(shape, math.prod)

    def tensor_shape(self, shape: Shape) -> Shape:
        """Return the shape of the tensor with all its parts."""
        sizes = list(self.part_shape(shape))
        sizes[self.concat_axis] = self.num_rows(sizes[self.concat_axis])
        return tuple(sizes)

    def tensor_bounds(self, start: int, stop: int, *, size: int) -> tuple[int, int]:
        """Return where rows of this parameter's part are in the tensor.

        Args:
          start: the first row, along `concat_axis`.
          stop: the row after the last one.
          size: the number of all rows of the part.
        """
        if self.num_groups == 1:
            offset = self.part * (size // self.span)
            return offset + start, offset + stop
        # All parts of the groups, of which `take` chooses.
        assert start * self.num_groups % size == stop * self.num_groups % size == 0
        return self.num_rows(start), self.num_rows(stop)

    def take(self, rows: np.ndarray, *, size: int) -> np.ndarray:
        """Return this parameter's rows of those that `tensor_bounds` names."""
        if self.num_groups == 1:
            return rows
        axis, unit = self.concat_axis, size // (self.num_groups * self.span)
        shape = (*rows.shape[:axis], -1, self.num_parts, unit, *rows.shape[axis + 1 :])
        chosen = range(self.part, self.part + self.span)
        own = np.take(rows.reshape(shape), chosen, axis=axis + 1)
        return own.reshape(*rows.shape[:axis], -1, *rows.shape[axis + 1 :])

    def join(self, parts: Sequence[Array]) -> Array:
        """Return the tensor of the parts of all its parameters, in their order."""
        axis, groups = self.concat_axis, self.num_groups
        if groups == 1:
            return jnp.concatenate(parts, axis=axis)
        before, after = parts[0].shape[:axis], parts[0].shape[axis + 1 :]
        grouped = [part.reshape(*before, groups, -1, *after) for part in parts]
        return jnp.concatenate(grouped, axis=axis + 1).reshape(*before, -1, *after)

    def num_rows(self, size: int) -> int:
        """Return how many rows a tensor has in which this part has `size`."""
        return size // self.span * self.num_parts

    def rows(self, size: int) -> np.ndarray:
        """Return which rows of the tensor are those of this part, (size,)."""
        shape = (self.num_groups, self.num_parts, -1)
        rows = np.arange(self.num_rows(size)).reshape(shape)
        return rows[:, self.part : self.part + self.span].reshape(-1)

    def rows_of(self, num_rows: int) -> np.ndarray:
        """Return which of the rows of a tensor are those of this part."""
        return self.rows(num_rows // self.num_parts * self.span)

    def take_part(self, tensor: np.ndarray) -> np.ndarray:
        """Return this parameter's part of a whole tensor."""
        axis = self.concat_axis
        return np.take(tensor, self.rows_of(tensor.shape[axis]), axis=axis)

    def part_spec(self, spec: Sequence[Any]) -> PartitionSpec:
        """Return how the part is sharded, given the sharding of the parameter.

        Args:
          spec: a mesh axis or None for each dimension of the parameter.
        """
        return PartitionSpec(*self._rearrange(spec, _flattened_axis))

    def to_param(self, part: Array, shape: Shape) -> Array:
        """Return the parameter of `shape`, given its part of the tensor."""
        if self.layout != "linear":
            return part.reshape(shape)
        # Transpose last: each device has read a slice of the tensor as it is stored.
        inputs, outputs = shape[: self.num_inputs], shape[self.num_inputs :]
        order = [*range(len(outputs), len(shape)), *range(len(outputs))]
        return jnp.transpose(part.reshape(*outputs, *inputs), order)

    def to_part(self, param: Array) -> Array:
        """Return this parameter's part of the tensor; the inverse of `to_param`."""
        shape = self.part_shape(param.shape)
        if self.layout == "linear":
            order = [*range(self.num_inputs, param.ndim), *range(self.num_inputs)]
            param = jnp.transpose(param, order)
        return param.reshape(shape)

    def _rearrange(
        self, dims: Sequence[T], flatten: Callable[[Sequence[T]], T]
    ) -> tuple[T, ...]:
        """Return a value for each dimension of the tensor, given the parameter's."""
        inputs, outputs = dims[: self.num_inputs], dims[self.num_inputs :]
        match self.layout:
            case "same":
                return tuple(dims)
            case "flat":
                return (flatten(dims),)
            case "unsqueezed":
                return (flatten(()), *dims)
            case "linear":
                return (flatten(outputs), flatten(inputs))
            case "conv1d":
                return (flatten(inputs), flatten(outputs))


def _flattened_axis(axes: Sequence[Any]) -> Any:
    """Return the mesh axis over which dimensions flattened into one are sharded.

    That of the first, but None if another is sharded: a shard is not contiguous then.
    """
    return axes[0] if axes and all(axis is None for axis in axes[1:]) else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """All entries of a family, and the other tensors that its files may hold.

    Attributes:
      entries: for all parameters that a model of the family may have.
      prefix: of the tensor names; files of a model without a head may lack it.
      ignored: regular expressions of tensors that hold nothing trained.
      heads: regular expressions of the tensors of heads: those that belong to no
        parameter of the model are left out, and the log says so.
      answer_head: the module that predicts the ends of answers, in place of that
        of other labels, `classifier`.
      tag_head: of a decoder, the module that predicts the labels of tokens.
      copies: tensors that are equal to another one, by name: tied embeddings.
      aliases: tensors that older files have in place of another one. If both are there,
        the alias is ignored; exports write both.
      names: other names of tensors, in other versions of transformers.
      constants: tensors that hold nothing trained, but that exports write: transformers
        reports them as missing.
    """

    entries: tuple[Entry, ...]
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    heads: tuple[str, ...] = HEADS
    answer_head: str = "qa_outputs"
    tag_head: str = "score"
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    constants: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def entries_for(self, params: Mapping[str, Any]) -> list[Entry]:
        """Return the entries of a model with these parameters, in the table's order."""
        entries = [entry for entry in self.entries if entry.param in params]
        found = [entry.param for entry in entries]
        assert sorted(found) == sorted(params), set(params) ^ set(found)
        return entries


def norm(param: str, tensor: str) -> tuple[Entry, Entry]:
    """Return the entries of a LayerNorm or RMSNorm; of the latter only one applies."""
    return (
        Entry(f"{param}.scale", f"{tensor}.weight"),
        Entry(f"{param}.bias", f"{tensor}.bias"),
    )


def linear(param: str, tensor: str, *, num_inputs: int = 1) -> tuple[Entry, Entry]:
    """Return the entries of a `torch.nn.Linear`."""
    return (
        Entry(f"{param}.kernel", f"{tensor}.weight", "linear", num_inputs),
        Entry(f"{param}.bias", f"{tensor}.bias", "flat"),
    )
