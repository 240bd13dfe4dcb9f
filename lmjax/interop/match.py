"""Every tensor of the files and every parameter of the model, matched one to one.

Nothing is made up: a parameter without its tensor is an error. So is a tensor that no
parameter takes, unless it is of a head that the class of the model does not use: these
are left out, and the log says so.
"""

import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from lmjax.errors import UserError
from lmjax.interop.safetensors import TensorFiles
from lmjax.interop.table import Entry, Shape, Table
from lmjax.types import Params, named_leaves

log = logging.getLogger(__name__)

_COMPARED_ROWS = 1024  # of two copies, read at a time


class Match(NamedTuple):
    """A tensor of the files, and the parameter that it holds."""

    entry: Entry
    layer: int | None  # of the parameter; None: it is not stacked
    tensor: str  # its name in the files


def match_tensors(
    files: TensorFiles,
    table: Table,
    shapes: Params,
    *,
    on_dropped: Callable[[list[str]], None] | None = None,
) -> dict[str, list[Match]]:
    """Match the tensors of the files to the parameters of a model.

    Args:
      files: the tensors; only copies are read, to compare them.
      table: of the model's family.
      shapes: of the parameters.
      on_dropped: called with the tensors that are left out, if there are some; by
        default the log names them.

    Returns:
      The tensors of each parameter, in the order of the layers.

    Raises:
      UserError: a tensor is missing, unexpected, or of another shape than config.json
        implies; two tied tensors differ.
    """
    leaves = named_leaves(shapes)
    entries = table.entries_for(leaves)
    expected = {
        name
        for entry in entries
        for _, name in entry.tensor_names(leaves[entry.param].shape)
    }
    found, unexpected = _find_tensors(files, table, expected)
    if missing := sorted(expected - set(found)):
        raise UserError(
            f"{files.directory}: {_summarize(missing)} missing; config.json implies "
            "them"
        )
    dropped = [name for name in unexpected if _is_any(table.heads, name)]
    if unexpected := [name for name in unexpected if name not in dropped]:
        raise UserError(
            f"{files.directory}: {_summarize(unexpected)} unexpected; the model that "
            "config.json describes has none of that name"
        )
    if dropped and on_dropped is not None:
        on_dropped(dropped)
    elif dropped:
        log.warning(
            "%s: left out, as the class that config.json names has no such head: %s",
            files.directory,
            _summarize(dropped),
        )
    matches: dict[str, list[Match]] = {}
    for entry in entries:
        shape = leaves[entry.param].shape
        for layer, name in entry.tensor_names(shape):
            _check_tensor(
                files, found[name], entry.tensor_shape(entry.layer_shape(shape))
            )
            match = Match(entry, layer, found[name])
            matches.setdefault(entry.param, []).append(match)
    return matches


def _find_tensors(
    files: TensorFiles, table: Table, expected: Collection[str]
) -> tuple[dict[str, str], list[str]]:
    """Return the name in the files of each expected tensor, and unexpected tensors."""
    found: dict[str, str] = {}
    copies: dict[str, list[str]] = {}
    aliases: dict[str, str] = {}
    unexpected = []
    for name in files.tensors:
        spellings = list(_spellings(name, table))
        tensor = next((s for s in spellings if s in expected), "")
        original = next((table.copies[s] for s in spellings if s in table.copies), "")
        aliased = next((table.aliases[s] for s in spellings if s in table.aliases), "")
        if tensor in found:
            raise UserError(
                f"{files.directory}: holds both {found[tensor]!r} and {name!r}, which "
                "are the same tensor"
            )
        if tensor:
            found[tensor] = name
        elif original in expected:
            copies.setdefault(original, []).append(name)
        elif aliased in expected:
            aliases[aliased] = name
        elif not _is_any(table.ignored, name):
            unexpected.append(name)
    for tensor, names in copies.items():
        first = found.setdefault(tensor, names[0])
        for name in names:
            _check_equal(files, first, name)
    return aliases | found, unexpected


def _is_any(patterns: Sequence[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _spellings(name: str, table: Table) -> Iterator[str]:
    """Yield the names that a table may have for a tensor of the files.

    Files of a model without a head may lack the prefix. TensorFlow's checkpoints call
    the parameters of LayerNorm gamma and beta.
    """
    for old, new in (("", ""), (".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old):
            spelling = name.removesuffix(old) + new
            for full in (spelling, table.prefix + spelling):
                yield table.names.get(full, full)


def _summarize(names: Sequence[str]) -> str:
    first = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} tensors ({first})"


def _check_tensor(files: TensorFiles, name: str, shape: Shape) -> None:
    tensor = files.tensors[name]
    if tensor.shape != shape:
        raise UserError(
            f"{tensor.file}: tensor {name!r} has shape {list(tensor.shape)}; "
            f"config.json implies {list(shape)}"
        )
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise UserError(
            f"{tensor.file}: tensor {name!r} has dtype {tensor.dtype}; expected a "
            "floating-point dtype"
        )


def _check_equal(files: TensorFiles, original: str, copy: str) -> None:
    a, b = files.tensors[original], files.tensors[copy]
    equal = (a.dtype, a.shape) == (b.dtype, b.shape)
    if equal and a != b:
        for start in range(0, a.shape[0], _COMPARED_ROWS):
            rows = (slice(start, start + _COMPARED_ROWS),)
            # As bytes: equal NaNs are equal.
            first, second = files.read(original, rows), files.read(copy, rows)
            equal &= first.tobytes() == second.tobytes()
    if not equal:
        raise UserError(
            f"{files.directory}: {copy!r} differs from {original!r}, to which "
            "config.json ties it (is tie_word_embeddings right?)"
        )
