"""Which parameters are hidden matrices, and which of their dimensions are inputs."""

from lmjax.types import Array

# Axes of matrices that are not hidden ones: embeddings and other tables, heads,
# classifiers and poolers, and adapters, which are factors of a matrix.
OUTER_AXES = {"vocab", "features", "token_types", "buckets", "rank"}


def is_hidden_matrix(name: str, axes: tuple[str, ...]) -> bool:
    """Return whether a parameter is the kernel of a layer between other layers.

    Args:
      name: dotted, as of `types.named_leaves`.
      axes: its logical axes.
    """
    return name.rpartition(".")[2] == "kernel" and not OUTER_AXES & {*axes}


def split_axes(axes: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the dimensions of a matrix that are inputs, and those that are outputs."""
    dims = [i for i, axis in enumerate(axes) if axis != "layers"]
    cut = 1 if axes[dims[0]] in ("embed", "rank") else len(dims) - 1
    return tuple(dims[:cut]), tuple(dims[cut:])


def flatten(x: Array, axes: tuple[str, ...]) -> Array:
    """Return a matrix, or a stack of them, as (L, inputs, outputs); L is 1 of one."""
    inputs, _ = split_axes(axes)
    num_layers = x.shape[0] if axes[0] == "layers" else 1
    num_inputs = 1
    for dim in inputs:
        num_inputs *= x.shape[dim]
    return x.reshape(num_layers, num_inputs, -1)
