"""Quantized matrices in files that others read, code for code.

  int8, fp8, int4   as compressed-tensors does, which vLLM and transformers read
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
from lmjax.types import Array, Params

_INT = np.dtype(np.int32)
_STATE = "quant_state.bitsandbytes__nf4"
_FORMATS = {
    "int8": "int-quantized",
    "fp8": "float-quantized",
    "int4": "pack-quantized",
}


def describe_format(config: QuantizeConfig) -> dict[str, Any]:
    """Return the `quantization_config` of a config.json.

    Args:
      config: of the model; `weights` is set.
    """
    if config.weights == "nf4":
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": "float32",
            "llm_int8_skip_modules": ["lm_head"],
        }
    weights: dict[str, Any] = {
        "num_bits": 4 if config.weights == "int4" else 8,
        "type": "float" if config.weights == "fp8" else "int",
        "symmetric": True,
        "dynamic": False,
        "strategy": "group" if config.group else "channel",
        "group_size": config.group or None,
    }
    activations = {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "dynamic": True,
        "strategy": "token",
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": activations if config.activations else None,
    }
    name = _FORMATS[config.weights]
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group | {"format": name}},
        "ignore": ["lm_head"],
    }


def split_codes(params: Params) -> tuple[Params, dict[str, tuple[Array, Array]]]:
    """Return the parameters without codes, and codes and scales of each matrix.

    Args:
      params: of a quantized model.

    Returns:
      The rest, with a quantized embedding table as floats; and by the dotted path of a
      matrix ("decoder.blocks.mlp.up.kernel"), its stacked codes and scales.
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

    return split(params, ""), found


@dataclasses.dataclass(frozen=True, eq=False)
class _Matrix:
    """One layer of a quantized matrix."""

    prefix: str  # of its tensors' names, with a dot at the end
    codes: Array  # of all layers
    scales: Array
    layer: int
    num_outputs: int

    def gather(self) -> tuple[np.ndarray, np.ndarray]:
        """Return codes (O, bytes of a row) and scales (O, G) on the host."""
        arrays = (_gather(array, self.layer) for array in (self.codes, self.scales))
        codes, scales = (array.reshape(self.num_outputs, -1) for array in arrays)
        return codes, scales

    def empty(self) -> tuple[np.ndarray, np.ndarray]:
        """Return arrays of the same shapes and dtypes."""
        arrays = (np.empty(a.shape[1:], a.dtype) for a in (self.codes, self.scales))
        codes, scales = (array.reshape(self.num_outputs, -1) for array in arrays)
        return codes, scales


def export_codes(
    matrices: Mapping[str, tuple[Array, Array]], table: Table, config: QuantizeConfig
) -> tuple[dict[str, Spec], Iterator[np.ndarray]]:
    """Return the tensors of quantized matrices; as `transfer.export_tensors`.

    Args:
      matrices: codes and scales, as `split_codes` returns them.
      table: of the model.
      config: of the model.

    Raises:
      UserError: the files cannot hold a matrix.
    """
    entries = {entry.param: entry for entry in table.entries}
    layers = [
        matrix
        for param, (codes, scales) in matrices.items()
        for matrix in _layers(entries[param], codes, scales, config)
    ]
    pack = _pack_nf4 if config.weights == "nf4" else _pack_compressed_tensors
    specs = {
        matrix.prefix + end: Spec(array.dtype, array.shape)
        for matrix in layers
        for end, array in pack(*matrix.empty()).items()
    }

    def gather_tensors() -> Iterator[np.ndarray]:
        for matrix in layers:
            yield from pack(*matrix.gather()).values()

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
    if config.weights == "int4" and num_bytes % _INT.itemsize:
        raise UserError(
            f"--to: {entry.param} has {2 * num_bytes} inputs: eight codes of four bits "
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


def _pack_compressed_tensors(
    codes: np.ndarray, scale_OG: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the tensors of a linear layer, by the ends of their names."""
    if codes.dtype != np.uint8:
        return {"weight": codes, "weight_scale": scale_OG}
    shape = np.array([len(codes), 2 * codes.shape[1]], np.int64)
    # Eight codes an integer, lowest bits first: the bytes as they are.
    packed = np.ascontiguousarray(codes).view(_INT)
    return {"weight_packed": packed, "weight_scale": scale_OG, "weight_shape": shape}


def _pack_nf4(codes: np.ndarray, scale_OG: np.ndarray) -> dict[str, np.ndarray]:
    """Return the tensors of a linear layer, by the ends of their names."""
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
