"""Tensors that are made of others, in files, when they are read."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lmjax.errors import UserError
from lmjax.interop.safetensors import TensorFiles, allocate


@dataclasses.dataclass(frozen=True, eq=False)
class UnpackedFiles(TensorFiles):
    """Tensors, some of which are made when they are read.

    Attributes:
      make: from the name of such a tensor to its values, of the dtype and shape that
        `tensors` says; raises `UserError`, or `ValueError` if what it reads is damaged.
      files: the others; None: there are none.
    """

    make: Mapping[str, Callable[[], np.ndarray]]
    files: TensorFiles | None = None
    # The last one, by name: devices ask for its slices one after another.
    last: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def read(self, name: str, index: Sequence[slice] = ()) -> np.ndarray:
        """Read a tensor, or a slice of it; as `TensorFiles.read`."""
        if name not in self.make:
            assert self.files is not None, name
            return self.files.read(name, index)
        part = self._make(name)[tuple(index)]
        out = allocate(part.shape, part.dtype)
        out[...] = part
        return out

    def _make(self, name: str) -> np.ndarray:
        if name in self.last:
            return self.last[name]
        spec = self.tensors[name]
        try:
            values = self.make[name]()
        except (ValueError, IndexError) as error:
            raise UserError(f"{spec.file}: {name}: damaged: {error}") from error
        if values.shape != spec.shape:
            raise UserError(
                f"{spec.file}: {name}: unpacks to the shape {values.shape}, not "
                f"{spec.shape}"
            )
        self.last.clear()
        self.last[name] = values
        return values
