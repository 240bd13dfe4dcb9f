"""Weights that others have quantized, unpacked while they are read.

The files keep small integers with scales, in the layouts of

- GPTQ (Frantar et al. 2023), as AutoGPTQ and GPTQModel write it;
- AWQ (Lin et al. 2023), as AutoAWQ's "gemm" kernels read it;
- bitsandbytes: int8 by rows (Dettmers et al. 2022), and nf4 and fp4 by blocks (Dettmers
  et al. 2023), with scales that may be quantized themselves;
- fp8 with a scale for each block (DeepSeek-V3);
- compressed-tensors: int8, int4 and fp8 by rows or groups, as LLM Compressor writes
  them, and `lmjax export` does of a quantized workdir.

A model is imported as what these stand for, in float32.

O outputs, I inputs of a linear layer, G groups of inputs.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lmjax.errors import UserError, nearest
from lmjax.interop.safetensors import StoredTensor, TensorFiles
from lmjax.interop.unpacked import UnpackedFiles

_INT = 32  # bits of the integers that hold several weights
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of the outputs in an integer, lowest bits first


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How a method keeps a matrix.

    Attributes:
      suffix: of the name of its main tensor, in place of "weight".
      others: the suffixes of the tensors beside it; "x*" are all that begin with x.
      shape: from a matrix and its main tensor to the shape (O, I).
      unpack: from a matrix to its values, float32 (O, I).
    """

    suffix: str
    others: tuple[str, ...]
    shape: Callable[["_Packed"], tuple[int, ...]]
    unpack: Callable[["_Packed"], np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Packed:
    """A matrix as it lies in files."""

    prefix: str  # of its tensors' names, with a dot at the end
    files: TensorFiles
    settings: Mapping[str, Any]

    def spec(self, suffix: str) -> StoredTensor:
        """Return where a tensor lies.

        Raises:
          UserError: it is missing.
        """
        name = self.prefix + suffix
        if name not in self.files.tensors:
            raise UserError(f"{self.files.directory}: tensor {name!r} is missing")
        return self.files.tensors[name]

    def read(self, suffix: str) -> np.ndarray:
        """Return a tensor; raises as `spec`."""
        self.spec(suffix)
        return self.files.read(self.prefix + suffix)

    def has(self, suffix: str) -> bool:
        """Return whether there is such a tensor."""
        return self.prefix + suffix in self.files.tensors

    @property
    def bits(self) -> int:
        """Return the bits of a weight."""
        return int(self.settings["bits"])

    def error(self, why: str) -> UserError:
        """Return an error about this matrix."""
        return UserError(f"{self.files.directory}: {self.prefix}*: {why}")


def _split_bits(packed: np.ndarray, bits: int) -> np.ndarray:
    """Return the numbers in integers, lowest bits first: (...) -> (..., 32 / bits)."""
    shifts = np.arange(0, _INT, bits, dtype=np.uint32)
    return (packed.view(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)


def _gptq_shape(p: _Packed) -> tuple[int, ...]:
    rows, outputs = p.spec("qweight").shape
    return outputs, rows * _INT // p.bits


def _unpack_gptq(p: _Packed) -> np.ndarray:
    """Inputs are packed in the rows, and the zeros of a group along the outputs."""
    codes = _split_bits(p.read("qweight"), p.bits)  # (I * bits / 32, O, 32 / bits)
    codes_IO = np.moveaxis(codes, -1, 1).reshape(-1, codes.shape[1])
    scales_GO = p.read("scales").astype(np.float32)
    zeros_GO = _split_bits(p.read("qzeros"), p.bits).reshape(len(scales_GO), -1)
    zeros_GO = zeros_GO.astype(np.float32)
    if p.settings.get("checkpoint_format", "gptq") == "gptq":
        zeros_GO += 1  # as they were written from the beginning
    num_inputs = len(codes_IO)
    size = int(p.settings.get("group_size", -1))
    group_I = np.arange(num_inputs) // (size if size > 0 else num_inputs)
    if p.has("g_idx"):
        group_I = p.read("g_idx")
    if not 0 <= group_I.min() <= group_I.max() < len(scales_GO):
        raise p.error(f"{len(scales_GO)} groups of scales, but {group_I.max() + 1}")
    return ((codes_IO - zeros_GO[group_I]) * scales_GO[group_I]).T


def _awq_shape(p: _Packed) -> tuple[int, ...]:
    inputs, columns = p.spec("qweight").shape
    return columns * _INT // p.bits, inputs


def _unpack_awq(p: _Packed) -> np.ndarray:
    """Outputs are packed, in an order of their own, in weights and zeros alike."""
    order = np.argsort(_AWQ_ORDER)
    unpack = lambda name: _split_bits(p.read(name), p.bits)[..., order]
    codes_IO = unpack("qweight").reshape(p.spec("qweight").shape[0], -1)
    scales_GO = p.read("scales").astype(np.float32)
    zeros_GO = unpack("qzeros").reshape(len(scales_GO), -1).astype(np.float32)
    group_I = np.arange(len(codes_IO)) // (len(codes_IO) // len(scales_GO))
    return ((codes_IO - zeros_GO[group_I]) * scales_GO[group_I]).T


_QUANT_STATE = "weight.quant_state.bitsandbytes__"


def _quant_state(p: _Packed) -> Mapping[str, Any]:
    """Return the settings that bitsandbytes keeps beside each matrix."""
    for kind in ("nf4", "fp4"):
        if p.has(_QUANT_STATE + kind):
            try:
                state = json.loads(p.read(_QUANT_STATE + kind).tobytes())
                return {**state, "shape": tuple(map(int, state["shape"]))}
            except (ValueError, KeyError, TypeError) as error:
                raise p.error(f"{_QUANT_STATE}{kind}: damaged: {error}") from error
    raise p.error(f"tensor {_QUANT_STATE}nf4 is missing")


def _unpack_4_bits(p: _Packed) -> np.ndarray:
    """The high half of a byte is the first of two weights; blocks run along rows."""
    state = _quant_state(p)
    packed = p.read("weight").reshape(-1)
    codes = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)
    absmax = p.read("weight.absmax")
    if p.has("weight.nested_absmax"):
        levels = p.read("weight.nested_quant_map").astype(np.float32)
        nested = p.read("weight.nested_absmax").astype(np.float32)
        nested = nested.repeat(int(state["nested_blocksize"]))[: len(absmax)]
        absmax = levels[absmax] * nested + np.float32(state["nested_offset"])
    scales = absmax.astype(np.float32).repeat(int(state["blocksize"]))
    levels = p.read("weight.quant_map").astype(np.float32)
    size = int(np.prod(state["shape"]))
    return (levels[codes[:size]] * scales[:size]).reshape(state["shape"])


def _unpack_8_bits(p: _Packed) -> np.ndarray:
    scales_O = p.read("SCB").astype(np.float32)
    return p.read("weight").astype(np.float32) * (scales_O / 127)[:, None]


def _unpack_fp8(p: _Packed) -> np.ndarray:
    weight_OI = p.read("weight").astype(np.float32)
    scales = p.read("weight_scale_inv").astype(np.float32)
    rows, columns = p.settings.get("weight_block_size") or (128, 128)
    scales_OI = scales.repeat(int(rows), axis=0).repeat(int(columns), axis=1)
    return weight_OI * scales_OI[: weight_OI.shape[0], : weight_OI.shape[1]]


def _compressed_shape(p: _Packed) -> tuple[int, ...]:
    outputs, inputs = map(int, p.read("weight_shape"))
    return outputs, inputs


def _unpack_compressed(p: _Packed) -> np.ndarray:
    """Integers are packed in rows, lowest bits first, with 2^(bits-1) added."""
    num_outputs, num_inputs = _compressed_shape(p)
    codes = _split_bits(p.read("weight_packed"), p.bits)
    levels_OI = codes.reshape(num_outputs, -1)[:, :num_inputs].astype(np.float32)
    zeros_OG = np.full((1, 1), 2 ** (p.bits - 1), np.float32)
    if p.has("weight_zero_point"):  # packed along the outputs
        zeros = _split_bits(p.read("weight_zero_point").T, p.bits)
        zeros_OG = zeros.reshape(len(zeros), -1)[:, :num_outputs].T.astype(np.float32)
    return _scale_rows(p, levels_OI, zeros_OG)


def _unpack_rows(p: _Packed) -> np.ndarray:
    zeros_OG = np.zeros((1, 1), np.float32)
    if p.has("weight_zero_point"):
        zeros_OG = p.read("weight_zero_point").astype(np.float32)
    return _scale_rows(p, p.read("weight").astype(np.float32), zeros_OG)


def _scale_rows(p: _Packed, levels_OI: np.ndarray, zeros_OG: np.ndarray) -> np.ndarray:
    """Return weights of levels, with a scale for a matrix, a row, or groups of it."""
    scale_OG = p.read("weight_scale").astype(np.float32)
    scale_OG = scale_OG.reshape(scale_OG.shape[0] if scale_OG.ndim else 1, -1)
    num_inputs = levels_OI.shape[1]
    group_I = np.arange(num_inputs) // (num_inputs // scale_OG.shape[1])
    if p.has("weight_g_idx"):
        group_I = p.read("weight_g_idx")
    if zeros_OG.size > 1:
        zeros_OG = zeros_OG.reshape(len(zeros_OG), -1)[:, group_I]
    return (levels_OI - zeros_OG) * scale_OG[:, group_I]


_same_shape = lambda p: p.spec("weight").shape
_LAYOUTS = {
    "gptq": _Layout(
        "qweight", ("scales", "qzeros", "g_idx"), _gptq_shape, _unpack_gptq
    ),
    "awq": _Layout("qweight", ("scales", "qzeros"), _awq_shape, _unpack_awq),
    "4bit": _Layout(
        "weight", ("weight.*",), lambda p: _quant_state(p)["shape"], _unpack_4_bits
    ),
    "8bit": _Layout("weight", ("SCB", "weight_format"), _same_shape, _unpack_8_bits),
    "fp8": _Layout("weight", ("weight_scale_inv",), _same_shape, _unpack_fp8),
    "pack-quantized": _Layout(
        "weight_packed",
        ("weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
        _compressed_shape,
        _unpack_compressed,
    ),
    "rows": _Layout(
        "weight",
        ("weight_scale", "weight_zero_point", "input_scale"),
        _same_shape,
        _unpack_rows,
    ),
}
# By a tensor that only a packed matrix of a layout has beside the main one.
_MARKS = {
    "gptq": ".qweight",
    "awq": ".qweight",
    "4bit": ".weight.absmax",
    "8bit": ".SCB",
    "fp8": ".weight_scale_inv",
    "pack-quantized": ".weight_packed",
    "rows": ".weight_scale",
}
# Of compressed-tensors, by the name of its format.
_COMPRESSED = {
    "pack-quantized": "pack-quantized",
    "int-quantized": "rows",
    "float-quantized": "rows",
    "naive-quantized": "rows",
}


def open_packed(
    files: TensorFiles,
    settings: Mapping[str, Any] | None,
    *,
    model_type: str,
    file: str,
) -> TensorFiles:
    """Return the tensors of a directory with packed matrices as float32 ones.

    Args:
      files: the tensors as they lie in files.
      settings: the `quantization_config` of config.json; None: nothing is packed.
      model_type: of config.json.
      file: how errors name the config.json.

    Raises:
      UserError: the method is not known, or needed tensors are missing.
    """
    if not settings:
        return files
    method, settings = _find_method(settings, file=file)
    if model_type == "gpt2":
        raise UserError(
            f"{file}: quantization_config: the matrices of gpt2 are transposed; "
            "quantized ones are not supported"
        )
    layout, mark = _LAYOUTS[method], _MARKS[method]
    prefixes = [n.removesuffix(mark[1:]) for n in files.tensors if n.endswith(mark)]
    if not prefixes:
        raise UserError(f"{file}: quantization_config: no tensor is named *{mark}")
    packed = {
        f"{prefix}weight": _Packed(prefix, files, settings) for prefix in prefixes
    }
    tensors = dict(files.tensors)
    for name, matrix in packed.items():
        main = matrix.spec(layout.suffix)
        for tensor in _names_of(matrix.prefix, layout, files):
            del tensors[tensor]
        shape = layout.shape(matrix)
        tensors[name] = StoredTensor(
            np.dtype(np.float32), shape, main.file, main.offset
        )
    make = {name: functools.partial(layout.unpack, p) for name, p in packed.items()}
    return UnpackedFiles(files.directory, tensors, make=make, files=files)


def _find_method(
    settings: Mapping[str, Any], *, file: str
) -> tuple[str, Mapping[str, Any]]:
    """Return the name of a layout, and the settings of its matrices.

    Raises:
      UserError: the method is not known, or not with these settings.
    """
    where = f"{file}: quantization_config"
    method = str(settings.get("quant_method", ""))
    if method == "bitsandbytes":
        for layout in ("4bit", "8bit"):
            if settings.get(f"load_in_{layout}"):
                return layout, settings
        raise UserError(f"{where}: neither load_in_4bit nor load_in_8bit is true")
    if method == "compressed-tensors":
        return _find_compressed(settings, where=where)
    allowed = ("gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors")
    if method not in allowed:
        raise UserError(
            f"{where}.quant_method = {method!r}: must be one of {', '.join(allowed)}"
            f"{nearest(method, allowed)}"
        )
    bits = {"gptq": (2, 4, 8), "awq": (4,)}.get(method, ())
    if bits and settings.get("bits") not in bits:
        raise UserError(
            f"{where}.bits = {settings.get('bits')!r}: must be one of "
            f"{', '.join(map(str, bits))} for {method}"
        )
    if method == "awq" and settings.get("version", "gemm") != "gemm":
        raise UserError(f"{where}.version = {settings['version']!r}: must be 'gemm'")
    return method, settings


def _find_compressed(
    settings: Mapping[str, Any], *, where: str
) -> tuple[str, Mapping[str, Any]]:
    """Return the layout of a model of compressed-tensors, and its bits.

    Raises:
      UserError: its matrices are of several kinds, or of an unknown one.
    """
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise UserError(f"{where}.config_groups: must be one group")
    (group,) = groups.values()
    form = str(group.get("format") or settings.get("format"))
    if form not in _COMPRESSED:
        raise UserError(
            f"{where}.format = {form!r}: must be one of {', '.join(_COMPRESSED)}"
            f"{nearest(form, list(_COMPRESSED))}"
        )
    bits = (group.get("weights") or {}).get("num_bits")
    if form == "pack-quantized" and bits not in (2, 4, 8):
        raise UserError(
            f"{where}.config_groups.*.weights.num_bits = {bits!r}: must be 2, 4 or 8"
        )
    return _COMPRESSED[form], {"bits": bits}


def _names_of(prefix: str, layout: _Layout, files: TensorFiles) -> list[str]:
    names = [prefix + layout.suffix]
    for suffix in layout.others:
        if suffix.endswith("*"):
            begin = prefix + suffix[:-1]
            names += [name for name in files.tensors if name.startswith(begin)]
        elif prefix + suffix in files.tensors:
            names.append(prefix + suffix)
    return names
