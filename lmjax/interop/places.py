"""Tensors by name, and the parameters that they hold, for a few at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lmjax.errors import UserError
from lmjax.interop.table import Entry, Table


class Places:
    """Which parameters the tensors of a table hold.

    Args:
      table: of the model.
      shapes: of its parameters.
      file: for errors.
    """

    def __init__(self, table: Table, shapes: Mapping[str, Any], file: Path) -> None:
        self.table, self.shapes, self.file = table, shapes, file
        self.places: dict[str, list[tuple[Entry, int | None]]] = {}
        for entry in table.entries_for(shapes):
            for layer, name in entry.tensor_names(shapes[entry.param].shape):
                self.places.setdefault(name, []).append((entry, layer))
        copies = {n: o for n, o in table.copies.items() if o in self.places}
        aliases = {n: o for n, o in table.aliases.items() if o in self.places}
        self.tied = {n for n in (*copies, *copies.values()) if n not in self.places}
        self.tied |= set(copies.values()) if self.tied else set()
        for name, original in {**aliases, **copies}.items():
            self.places.setdefault(name, self.places[original])

    def spell(self, name: str) -> str:
        """Return the name in the table of a tensor, which may lack the prefix."""
        name = self.table.names.get(name, name)
        return name if name in self.places else self.table.prefix + name

    def find(
        self, name: str, shape: tuple[int, ...], *, adapted: bool = False
    ) -> list[tuple[Entry, int | None]]:
        """Return the parameters, and their layers, that a tensor holds.

        Args:
          name: of the tensor.
          shape: of the tensor.
          adapted: the shape is (outputs, inputs), whatever the layout.

        Raises:
          UserError: there is none, or of another shape.
        """
        found = self.places.get(self.spell(name))
        if not found:
            raise UserError(f"{self.file}: {name}: the base has no such tensor")
        entry = found[0][0]
        own = entry.tensor_shape(entry.layer_shape(self.shapes[entry.param].shape))
        own = own[::-1] if adapted and entry.layout == "conv1d" else own
        if own != shape:
            raise UserError(
                f"{self.file}: {name} has the shape {list(shape)}, in the base "
                f"{list(own)}"
            )
        return found


def check_tied(
    name: str, saved: Mapping[str, np.ndarray], table: Table, places: Places
) -> None:
    """Check that tied weights come together, and are equal.

    Raises:
      UserError: one was trained without the others.
    """
    spelled = places.spell(name)
    original = table.copies.get(spelled, spelled)
    if not {spelled, original} & places.tied:
        return
    group = [n for n, o in table.copies.items() if o == original and n in places.places]
    by_name = {places.spell(n): array for n, array in saved.items()}
    names = {original, *group}
    arrays = [by_name[n] for n in names if n in by_name]
    if len(arrays) < len(names) or any((a != arrays[0]).any() for a in arrays):
        raise UserError(
            f"{places.file}: {name} is tied to {', '.join(group)} in the base, but not "
            "here; untie the base (tie_word_embeddings), or save all with the same "
            "values"
        )


def set_part(
    leaf: np.ndarray,
    entry: Entry,
    layer: int | None,
    tensor: np.ndarray,
    *,
    whole: bool = True,
) -> None:
    """Set a parameter, of one layer, to its part of a tensor.

    Args:
      leaf: the parameter; changed in place.
      entry: of the table.
      layer: None: it is not stacked.
      tensor: all of it, or the part.
      whole: which of them.
    """
    if whole and entry.num_parts > 1:
        tensor = entry.take_part(tensor)
    shape = leaf.shape if layer is None else leaf.shape[1:]
    value = np.asarray(entry.to_param(jnp.asarray(tensor), shape))
    leaf[... if layer is None else layer] = value
