"""Quantized matrices in files that others read, code for code.

  int8, fp8, int4   as compressed-tensors does, vLLM's own, which transformers reads
  nf4               as bitsandbytes does

The embedding table and the head are written as floats, if they were quantized: those
formats have codes for linear layers alone.

O outputs, I inputs of a linear layer, G groups of inputs.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.config.matrices import QuantizeConfig
from lmjax.errors import UserError
from lmjax.interop.safetensors import Spec
from lmjax.interop.table import Entry, Table
from lmjax.nn.quantized import NF4
from lmjax.types import Array, Params, named_leaves

_INT = np.dtype(np.int32)
_STATE = "quant_state.bitsandbytes__nf4"
_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # that bitsandbytes has


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    """The quantized matrices of a model.

    Attributes:
      config: of the model.
      matrices: codes and scales, stacked over layers, by the dotted path of a matrix
        ("decoder.blocks.mlp.up.kernel").
    """

    config: QuantizeConfig
    matrices: Mapping[str, tuple[Array, Array]]

    @property
    def format(self) -> str:
        """The name in compressed-tensors. Integers for float inputs must be packed."""
        if self.config.weights == "fp8":
            return "float-quantized"
        return "int-quantized" if self.config.activations else "pack-quantized"


def describe_format(
    codes: Codes, table: Table, params: Params, *, prefix: str
) -> dict[str, Any]:
    """Return the `quantization_config` of a config.json.

    Args:
      codes: of the model.
      table: of its tensors.
      params: those that are floats.
      prefix: that the names of the tensors lack.

    Raises:
      UserError: the files cannot hold a matrix.
    """
    config, group = codes.config, _common_group(codes, table)
    floats = _float_modules(table, params, prefix=prefix)
    if config.weights == "nf4":
        if group not in _BLOCKS:
            raise UserError(
                f"--to: groups of {group} inputs: bitsandbytes has blocks of "
                f"{', '.join(map(str, _BLOCKS))}; --dtype=float32 writes floats"
            )
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": "float32",
            "llm_int8_skip_modules": floats,
        }
    weights: dict[str, Any] = {
        "num_bits": 4 if config.weights == "int4" else 8,
        "type": "float" if config.weights == "fp8" else "int",
        "symmetric": True,
        "dynamic": False,
        "strategy": "group" if group else "channel",
        "group_size": group or None,
    }
    activations = {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "dynamic": True,
        "strategy": "token",
    }
    scheme = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": activations if config.activations else None,
        "format": codes.format,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": codes.format,
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": floats,
    }


def _float_modules(table: Table, params: Params, *, prefix: str) -> list[str]:
    """Return the linear layers that have no codes: heads, poolers and the like."""
    leaves = named_leaves(params)
    names = {"lm_head.weight", *table.copies, *table.aliases}
    for entry in table.entries:
        if entry.param in leaves and entry.layout in ("linear", "conv1d"):
            names |= {n for _, n in entry.tensor_names(leaves[entry.param].shape)}
    modules = {n.removeprefix(prefix).removesuffix(".weight") for n in names}
    return sorted(name for name in modules if not name.endswith(".bias"))


def _common_group(codes: Codes, table: Table) -> int:
    """Return how many inputs share a scale in the files; 0: all of an output.

    A matrix whose last inputs are fewer than a group (heads) has smaller ones: then the
    scales of the others are repeated.

    Raises:
      UserError: the groups do not divide one another.
    """
    if not codes.config.group:
        return 0
    sizes = {_group_of(*arrays) for arrays in codes.matrices.values()}
    smallest = min(sizes)
    if any(size % smallest for size in sizes):
        raise UserError(
            f"--to: groups of {', '.join(map(str, sorted(sizes)))} inputs: one size "
            "must divide the others; --dtype=float32 writes floats"
        )
    return smallest


def _group_of(codes: Array, scales: Array) -> int:
    return 2 * codes.size // scales.size  # two codes a byte


def split_codes(params: Params, config: QuantizeConfig) -> tuple[Params, Codes]:
    """Return the parameters without codes, and the codes.

    Args:
      params: of a quantized model.
      config: of the model.

    Returns:
      The rest, with a quantized embedding table as floats; and the matrices.
    """
    found: dict[str, tuple[Array, Array]] = {}

    def split(tree: Any, path: str) -> Any:
        if not isinstance(tree, dict):
            return tree
        new = {key: split(leaf, f"{path}{key}.") for key, leaf in tree.items()}
        if "codes" in tree:
            found[f"{path}kernel"] = new.pop("codes"), new.pop("scales")
        if "embedding_codes" in tree:
            codes, scales = new.pop("embedding_codes"), new.pop("embedding_scales")
            new["embedding"] = codes.astype(jnp.float32) * scales[:, None]
        return new

    return split(params, ""), Codes(config, found)


@dataclasses.dataclass(frozen=True, eq=False)
class _Matrix:
    """One layer of a quantized matrix."""

    prefix: str  # of its tensors' names, with a dot at the end
    codes: Array  # of all layers
    scales: Array
    layer: int
    num_outputs: int

    def gather(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Return codes (O, bytes of a row) and scales (O, G) on the host.

        Args:
          group: inputs that share a scale; 0: all of an output.
        """
        arrays = (_gather(array, self.layer) for array in (self.codes, self.scales))
        return self._flatten(*arrays, group=group)

    def empty(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Return arrays of the same shapes and dtypes."""
        arrays = (np.empty(a.shape[1:], a.dtype) for a in (self.codes, self.scales))
        return self._flatten(*arrays, group=group)

    def _flatten(
        self, codes: np.ndarray, scales: np.ndarray, *, group: int
    ) -> tuple[np.ndarray, np.ndarray]:
        times = _group_of(self.codes, self.scales) // group if group else 1
        scale_OG = scales.reshape(self.num_outputs, -1).repeat(times, axis=1)
        return codes.reshape(self.num_outputs, -1), scale_OG


def export_codes(
    codes: Codes, table: Table
) -> tuple[dict[str, Spec], Iterator[np.ndarray]]:
    """Return the tensors of quantized matrices; as `transfer.export_tensors`.

    Args:
      codes: of the model.
      table: of the model.

    Raises:
      UserError: the files cannot hold a matrix.
    """
    entries = {entry.param: entry for entry in table.entries}
    layers = [
        matrix
        for param, arrays in codes.matrices.items()
        for matrix in _layers(entries[param], *arrays, codes.config)
    ]
    pack = functools.partial(_PACK[codes.config.weights], codes.format)
    group = _common_group(codes, table)
    specs = {
        matrix.prefix + end: Spec(array.dtype, array.shape)
        for matrix in layers
        for end, array in pack(*matrix.empty(group)).items()
    }

    def gather_tensors() -> Iterator[np.ndarray]:
        for matrix in layers:
            yield from pack(*matrix.gather(group)).values()

    return specs, gather_tensors()


def _layers(
    entry: Entry, codes: Array, scales: Array, config: QuantizeConfig
) -> Iterator[_Matrix]:
    """Yield the layers of a matrix.

    Raises:
      UserError: the files cannot hold it.
    """
    if entry.layout != "linear" or entry.num_parts > 1:
        raise UserError(
            f"--to: {entry.tensor.format(layer=0)}: is transposed, or holds several "
            "matrices: codes cannot be written; --dtype=float32 writes floats"
        )
    outputs = codes.shape[1 : codes.ndim - entry.num_inputs]
    num_bytes = math.prod(codes.shape[codes.ndim - entry.num_inputs :])
    if config.weights in ("int4", "int8") and num_bytes % _INT.itemsize:
        raise UserError(
            f"--to: {entry.param} has {num_bytes} bytes of codes for an output: four "
            "are packed in an integer; --dtype=float32 writes floats"
        )
    for layer, name in entry.tensor_names(codes.shape):
        assert layer is not None, name
        prefix = name.removesuffix("weight")
        yield _Matrix(prefix, codes, scales, layer, math.prod(outputs))


def _gather(stacked: Array, layer: int) -> np.ndarray:
    """Return a layer of a parameter on the host, of whichever devices have it."""
    sharding = stacked.sharding
    assert isinstance(sharding, NamedSharding), sharding
    take = _compile_take(NamedSharding(sharding.mesh, PartitionSpec()))
    return np.asarray(take(stacked, layer))


@functools.cache
def _compile_take(sharding: NamedSharding) -> Any:
    return jax.jit(lambda stacked, layer: stacked[layer], out_shardings=sharding)


def _pack_int4(
    form: str, codes: np.ndarray, scale_OG: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the tensors of a linear layer, by the ends of their names."""
    # Eight codes an integer, lowest bits first: the bytes as they are.
    return _packed(codes, scale_OG, num_inputs=2 * codes.shape[1])


def _pack_bytes(
    form: str, codes: np.ndarray, scale_OG: np.ndarray
) -> dict[str, np.ndarray]:
    if form != "pack-quantized":
        return {"weight": codes, "weight_scale": scale_OG}
    shifted = (codes.astype(np.int16) + 128).astype(np.uint8)
    return _packed(shifted, scale_OG, num_inputs=codes.shape[1])


def _packed(
    codes: np.ndarray, scale_OG: np.ndarray, *, num_inputs: int
) -> dict[str, np.ndarray]:
    return {
        "weight_packed": np.ascontiguousarray(codes).view(_INT),
        "weight_scale": scale_OG,
        "weight_shape": np.array([len(codes), num_inputs], np.int64),
    }


def _pack_nf4(
    form: str, codes: np.ndarray, scale_OG: np.ndarray
) -> dict[str, np.ndarray]:
    num_outputs, num_inputs = len(codes), 2 * codes.shape[1]
    swapped = (codes << 4) | (codes >> 4)  # there the first code is in the high bits
    state = {
        "quant_type": "nf4",
        "blocksize": num_inputs // scale_OG.shape[1],
        "dtype": "float32",
        "shape": [num_outputs, num_inputs],
    }
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return {
        "weight": swapped.reshape(-1, 1),
        "weight.absmax": scale_OG.astype(np.float32).reshape(-1),
        "weight.quant_map": NF4,
        f"weight.{_STATE}": text,
    }


_PACK = {
    "int8": _pack_bytes,
    "fp8": _pack_bytes,
    "int4": _pack_int4,
    "nf4": _pack_nf4,
}
