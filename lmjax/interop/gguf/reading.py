"""A GGUF file, read as the Hugging Face directory that it stands for."""

import functools
import json
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.errors import UserError
from lmjax.interop.gguf import settings, vocabulary
from lmjax.interop.gguf.tensors import ROPE_FACTORS, hf_name, rotated_heads, separate
from lmjax.interop.safetensors import StoredTensor, TensorFiles
from lmjax.interop.unpacked import UnpackedFiles

SUFFIX = ".gguf"


def open_gguf(file: Path) -> tuple[Path, TensorFiles]:
    """Open a GGUF file.

    The values of its tensors are read, in float32, when they are asked for.

    Args:
      file: the file, of a single part.

    Returns:
      A directory with its config.json and tokenizer, which is there as long as the
      second value: the tensors by their names in a Hugging Face directory.

    Raises:
      UserError: the file is damaged, or holds what is not supported; or the package
        `gguf` is not installed.
    """
    reader = _open_reader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("split.count", 1) > 1:
        raise UserError(f"{file}: one of {fields['split.count']} parts; merge them")
    found = {tensor.name: tensor for tensor in reader.tensors}
    factors = found.pop(ROPE_FACTORS, None)
    shapes = {hf_name(n): tuple(map(int, t.shape[::-1])) for n, t in found.items()}
    values = settings.to_hf(
        fields,
        shapes=shapes,
        rope_factors=None if factors is None else np.asarray(factors.data),
        file=str(file),
    )
    tensors, make = {}, {}
    for name, tensor in found.items():
        hf = hf_name(name)
        offset = int(tensor.data_offset)
        tensors[hf] = StoredTensor(np.dtype(np.float32), shapes[hf], file, offset)
        make[hf] = functools.partial(
            _read, tensor, num_heads=rotated_heads(hf, values), file=file
        )
    texts = vocabulary.to_files(fields, file=str(file))
    stops = vocabulary.stop_ids(fields)
    directory = Path(tempfile.mkdtemp()) / file.name
    directory.mkdir()
    files = UnpackedFiles(directory, tensors, make=make)
    weakref.finalize(files, shutil.rmtree, directory.parent, ignore_errors=True)
    ids = {"eos_token_id": stops} if stops else {}
    texts["config.json"] = json.dumps({**values, **ids}).encode()
    for name, content in texts.items():
        (directory / name).write_bytes(content)
    return directory, files


def _open_reader(file: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError(
            f"{file}: reading GGUF needs the package gguf: pip install 'lmjax[gguf]'"
        ) from error
    try:
        return GGUFReader(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except Exception as error:  # of many classes, from bytes that say anything
        raise UserError(f"{file}: not a GGUF file, or damaged: {error}") from error


def _read(tensor: Any, *, num_heads: int, file: Path) -> np.ndarray:
    """Return the values of a tensor, float32."""
    from gguf.quants import dequantize

    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise UserError(
            f"{file}: {tensor.name}: format {tensor.tensor_type.name} cannot be read"
        ) from error
    values = np.asarray(values, np.float32).reshape(tuple(tensor.shape[::-1]))
    return separate(values, num_heads) if num_heads else values
