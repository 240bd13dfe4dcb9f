"""How parameters correspond to the tensors of another program, as data.

A row says where one parameter of ours, or a layer of a stacked one, is found in their
files, and how it lies there. Each tensor and each parameter is accounted for: none is
left over, none is made up.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lmjax.config.model import ModelConfig
from lmjax.errors import ConfigError
from lmjax.interop.settings import Settings
from lmjax.interop.tensors import Tensors
from lmjax.types import Array, Params, named_leaves


def has(names: Collection[str], ending: str) -> bool:
    """Return whether one of the tensors is called so, prefixes aside."""
    return any(name == ending or name.endswith("." + ending) for name in names)


Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter and its tensor.

    `theirs` has `{layer}` in its name where ours is stacked. `how` their tensor lies:

    - "same": the same shape;
    - "flat": our dimensions in one;
    - "row": after a dimension of 1;
    - "linear": (outputs, inputs), each flattened: torch's Linear;
    - "conv1d": (inputs, outputs), each flattened: GPT-2's Conv1D.
    """

    ours: str
    theirs: str
    how: Literal["same", "flat", "row", "linear", "conv1d"] = "same"
    num_inputs: int = 1  # of our dimensions
    part: int = 0  # which of the equal parts, along the outputs
    data_shards: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """All rows of a family, and the names it knows besides.

    Rows whose parameter a model lacks do not apply to it.
    """

    rows: tuple[Row, ...]
    prefix: str = ""  # theirs; files of a model without head may lack it
    ignorable: tuple[str, ...] = ()  # patterns of tensors that carry nothing learned
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # Tensors that take another's place where that one is not, and are idle else.
    stand_ins: Mapping[str, str] = dataclasses.field(default_factory=dict)


def norm(ours: str, theirs: str) -> tuple[Row, Row]:
    """Return the rows of a norm."""
    return (
        Row(f"{ours}.scale", f"{theirs}.weight"),
        Row(f"{ours}.bias", f"{theirs}.bias"),
    )


def linear(ours: str, theirs: str, *, num_inputs: int = 1) -> tuple[Row, Row]:
    """Return the rows of torch's Linear."""
    return (
        Row(f"{ours}.kernel", f"{theirs}.weight", "linear", num_inputs),
        Row(f"{ours}.bias", f"{theirs}.bias", "flat"),
    )


def their_shape(row: Row, shape: Shape) -> Shape:
    """Return the shape of the part of their tensor that holds ours of `shape`."""
    inputs, outputs = shape[: row.num_inputs], shape[row.num_inputs :]
    match row.how:
        case "same":
            return shape
        case "flat":
            return (math.prod(shape),)
        case "row":
            return (1, *shape)
        case "linear":
            return (math.prod(outputs), math.prod(inputs))
        case "conv1d":
            return (math.prod(inputs), math.prod(outputs))


def parts_axis(row: Row) -> int:
    """Return the dimension of their tensor along which its parts lie."""
    return 1 if row.how == "conv1d" else 0


def whole_shape(row: Row, shape: Shape) -> Shape:
    """Return the shape of their tensor, all its parts together."""
    axis, sizes = parts_axis(row), list(their_shape(row, shape))
    sizes[axis] *= row.data_shards
    return tuple(sizes)


def their_spec(row: Row, spec: Sequence[Any]) -> PartitionSpec:
    """Return how their part is split where ours is split as `spec` says.

    Of dimensions that lie flattened in one, the first may be split.
    """
    inputs, outputs = spec[: row.num_inputs], spec[row.num_inputs :]
    match row.how:
        case "same":
            return PartitionSpec(*spec)
        case "flat":
            return PartitionSpec(_first(spec))
        case "row":
            return PartitionSpec(None, *spec)
        case "linear":
            return PartitionSpec(_first(outputs), _first(inputs))
        case "conv1d":
            return PartitionSpec(_first(inputs), _first(outputs))


def _first(spec: Sequence[Any]) -> Any:
    return None if any(axis is not None for axis in spec[1:]) else spec[0]


def to_ours(row: Row, theirs: Array, shape: Shape) -> Array:
    """Return our parameter of `shape` from its part of their tensor."""
    if row.how != "linear":
        return theirs.reshape(shape)
    # Transpose last: what is read is split as their shape is.
    inputs, outputs = shape[: row.num_inputs], shape[row.num_inputs :]
    theirs = theirs.reshape(*outputs, *inputs)
    order = [*range(len(outputs), len(shape)), *range(len(outputs))]
    return jnp.transpose(theirs, order)


def to_theirs(row: Row, ours: Array) -> Array:
    """Return the part of their tensor from our parameter."""
    shape = their_shape(row, ours.shape)
    if row.how == "linear":
        order = [*range(row.num_inputs, ours.ndim), *range(row.num_inputs)]
        ours = jnp.transpose(ours, order)
    return ours.reshape(shape)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Where a parameter, or a layer of it, comes from."""

    row: Row
    layer: int | None  # None: the parameter is not stacked
    name: str  # theirs, in the files


def names(row: Row, shape: Shape) -> Iterator[tuple[int | None, str]]:
    """Yield each layer that a row speaks of, and the tensor's name."""
    if "{layer}" not in row.theirs:
        yield None, row.theirs
        return
    for layer in range(shape[0]):
        yield layer, row.theirs.format(layer=layer)


def unstacked(row: Row, shape: Shape) -> Shape:
    """Return the shape of a parameter, less the layers if it is stacked."""
    return shape[1:] if "{layer}" in row.theirs else shape


def rows_of(table: Table, shapes: Mapping[str, Any]) -> list[Row]:
    """Return the rows that apply to a model, in the table's order."""
    rows = [row for row in table.rows if row.ours in shapes]
    ours = [row.ours for row in rows]
    assert sorted(ours) == sorted(shapes), set(shapes) ^ set(ours)
    return rows


def account(tensors: Tensors, table: Table, shapes: Params) -> dict[str, list[Piece]]:
    """Return the pieces of each parameter, having accounted for every tensor.

    Raises:
      ConfigError: a tensor is missing, left over, or not of the shape that the config
        implies; a copy differs from what it is a copy of.
    """
    flat = named_leaves(shapes)
    rows = rows_of(table, flat)
    wanted = {name for row in rows for _, name in names(row, flat[row.ours].shape)}
    found, left_over = _match(tensors, table, wanted)
    _refuse_missing(tensors, sorted(wanted - set(found)))
    if left_over:
        raise ConfigError(
            f"{tensors.directory}: {_few(left_over)} are no part of the model that "
            "config.json describes"
        )
    pieces: dict[str, list[Piece]] = {}
    for row in rows:
        shape = flat[row.ours].shape
        expected = whole_shape(row, unstacked(row, shape))
        for layer, name in names(row, shape):
            _check(tensors, found[name], expected)
            pieces.setdefault(row.ours, []).append(Piece(row, layer, found[name]))
    return pieces


def _match(
    tensors: Tensors, table: Table, wanted: set[str]
) -> tuple[dict[str, str], list[str]]:
    """Return the name in the files of each wanted tensor, and the tensors left over."""
    found: dict[str, str] = {}
    copies: dict[str, list[str]] = {}
    stand_ins: dict[str, str] = {}
    left_over = []
    for name in tensors.entries:
        match = next((n for n in _spellings(name, table) if n in wanted), None)
        if match is None:
            copy = next((n for n in _spellings(name, table) if n in table.copies), None)
            idle = next(
                (n for n in _spellings(name, table) if n in table.stand_ins), None
            )
            if copy is not None and table.copies[copy] in wanted:
                copies.setdefault(table.copies[copy], []).append(name)
            elif idle is not None and table.stand_ins[idle] in wanted:
                stand_ins[table.stand_ins[idle]] = name
            elif not any(re.search(pattern, name) for pattern in table.ignorable):
                left_over.append(name)
        elif match in found:
            raise ConfigError(
                f"{tensors.directory}: holds both {found[match]!r} and {name!r}"
            )
        else:
            found[match] = name
    for match, aliases in copies.items():
        original = found.setdefault(match, aliases[0])
        for alias in aliases:
            _refuse_difference(tensors, original, alias)
    return stand_ins | found, left_over


def _spellings(name: str, table: Table) -> Iterator[str]:
    """Yield a name as the table may have it: with the prefix, and with new endings."""
    for old, new in (("", ""), (".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old):
            spelt = name.removesuffix(old) + new
            yield from (spelt, table.prefix + spelt)


def _refuse_missing(tensors: Tensors, missing: list[str]) -> None:
    if missing:
        raise ConfigError(
            f"{tensors.directory}: {_few(missing)} that config.json implies are missing"
        )


def _few(found: Sequence[str]) -> str:
    """Return how many tensors these are, and the first of them."""
    shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
    return f"{len(found)} tensors ({shown})"


def _check(tensors: Tensors, name: str, expected: Shape) -> None:
    entry = tensors.entries[name]
    if entry.shape != expected:
        raise ConfigError(
            f"{entry.file}: tensor {name!r} has shape {list(entry.shape)}; config.json "
            f"implies {list(expected)}"
        )
    if not jnp.issubdtype(entry.dtype, jnp.floating):
        raise ConfigError(
            f"{entry.file}: tensor {name!r} is of dtype {entry.dtype}, not floating"
        )


_ROWS_AT_A_TIME = 1024


def _refuse_difference(tensors: Tensors, original: str, copy: str) -> None:
    """Raise if a copy of a tensor is not one: the config says they are tied."""
    a, b = tensors.entries[original], tensors.entries[copy]
    same = (a.dtype, a.shape) == (b.dtype, b.shape)
    starts = range(0, a.shape[0] if same and a != b else 0, _ROWS_AT_A_TIME)
    for start in starts:
        rows = (slice(start, start + _ROWS_AT_A_TIME),)
        same &= tensors.read(original, rows).tobytes() == (
            tensors.read(copy, rows).tobytes()
        )
    if not same:
        raise ConfigError(
            f"{tensors.directory}: {copy!r} differs from {original!r}, of which the "
            "config makes it a copy (is tie_word_embeddings in config.json right?)"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How to read and write the models of one `model_type`."""

    model_type: str
    architectures: tuple[str, ...]  # that are read
    defaults: Mapping[str, Any]  # of transformers' config class
    # Fields of our model config, from the settings and the tensors' names.
    config_from_hf: Callable[[Settings, Collection[str]], dict[str, Any]]
    # Settings, `architectures` included. What they cannot say is lost: the caller
    # reads them back and compares.
    config_to_hf: Callable[[Any], dict[str, Any]]
    table: Callable[[ModelConfig], Table]
    kind: str = "decoder"
    # Fields of our task config, where the files hold a head for one.
    task_from_hf: Callable[[Settings, Collection[str]], dict[str, Any]] = (
        lambda settings, names: {}
    )

    def settings(self, values: Mapping[str, Any], *, where: str) -> Settings:
        """Return the settings of a config.json of this family."""
        return Settings(values, self.defaults, where=where)
