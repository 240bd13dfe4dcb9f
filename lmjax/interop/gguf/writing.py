"""The model of a workdir as a GGUF file: `lmjax export --to=FILE.gguf`."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax.errors import UserError, nearest
from lmjax.fileio import open_atomic, write_errors
from lmjax.interop.gguf import settings, tensors, vocabulary
from lmjax.interop.hf import (
    Exported,
    Summary,
    count_params,
    open_export,
    progress_bar,
    report_bytes,
)
from lmjax.interop.safetensors import Spec
from lmjax.interop.tokenizer import find_template
from lmjax.interop.transfer import export_tensors
from lmjax.run.checkpoint import Step
from lmjax.storage.paths import is_remote, open_path

# `general.file_type`, which says what most of the tensors are.
_FILE_TYPES = {"float32": 0, "float16": 1, "q4_0": 2, "q8_0": 7, "bfloat16": 32}


def export_gguf(
    directory: str | Path,
    target: str | Path,
    *,
    step: Step = None,
    dtype: str | None = None,
) -> Summary:
    """Write the model of a workdir as a GGUF file, which llama.cpp reads.

    Args:
      directory: the workdir.
      target: the new file; if anything fails it is not created.
      step: of the checkpoint; by default the last one.
      dtype: of its matrices, one of `tensors.FORMATS`; None: float32.

    Raises:
      UserError: the format has no such model or tokenizer, or a file cannot be read or
        written.
    """
    allowed, dtype = list(tensors.FORMATS), dtype or "float32"
    if dtype not in allowed:
        raise UserError(
            f"--dtype={dtype}: allowed in GGUF: {', '.join(allowed)}"
            f"{nearest(dtype, allowed)}"
        )
    source, target = open_path(directory).expanduser(), open_path(target).expanduser()
    if target.exists():
        raise UserError(f"--to={target}: exists already")
    if is_remote(target):
        raise UserError(f"--to={target}: must be a local file")
    check_installed(target)
    exported = open_export(source, step, dtype=dtype)
    fields = _fields(exported, dtype=dtype)
    specs, arrays = export_tensors(
        exported.params, exported.table, dtype=np.dtype(np.float32)
    )
    total = sum(spec.num_bytes for spec in specs.values())
    with progress_bar(f"writing {target.name}", total) as bar:
        arrays = report_bytes(arrays, bar.advance)
        try:
            if jax.process_index() == 0:
                _write(target, fields, exported.values, specs, arrays, dtype=dtype)
        finally:
            if jax.process_count() > 1:  # all help to gather each
                for _ in arrays:
                    pass
    return Summary(
        target,
        exported.architecture,
        count_params(exported.model),
        f"{fields['tokenizer.ggml.model']} ({fields['tokenizer.ggml.pre']})",
    )


def check_installed(target: Path) -> None:
    """Check that the package `gguf` is installed.

    Raises:
      UserError: it is not.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--to={target}: writing GGUF needs the package gguf: pip install "
            "'lmjax[gguf]'"
        ) from error


def _fields(exported: Exported, *, dtype: str) -> dict[str, Any]:
    """Return the keys of the file and their values.

    Raises:
      UserError: the format has no such model or tokenizer.
    """
    values, files = exported.values, exported.files
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    template = config.get("chat_template")
    if "chat_template.jinja" in files:
        template = files["chat_template.jinja"].decode()
    return {
        **settings.from_hf(values),
        **vocabulary.from_tokenizer(
            exported.tokenizer,
            find_template(exported.tokenizer, exported.config),
            num_tokens=values["vocab_size"],
            chat_template=template if isinstance(template, str) else None,
        ),
        "general.file_type": _FILE_TYPES[dtype],
        "general.quantization_version": 2,
    }


def _write(
    target: Path,
    fields: Mapping[str, Any],
    values: Mapping[str, Any],
    specs: Mapping[str, Spec],
    arrays: Iterator[np.ndarray],
    *,
    dtype: str,
) -> None:
    """Write a file, a tensor at a time.

    Raises:
      UserError: it cannot be written.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(None, values["model_type"])
    for key, value in fields.items():
        _add(writer, key, value)
    factors = _rope_factors(values)
    if factors is not None:
        writer.add_tensor_info(
            tensors.ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes
        )
    formats = {n: tensors.choose_format(n, s.shape, dtype) for n, s in specs.items()}
    for name, spec in specs.items():
        tensors.add_info(writer, name, spec.shape, formats[name])
    with write_errors(target), open_atomic(target) as out:
        partial = Path(out.name)
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for (name, _), array in zip(specs.items(), arrays, strict=True):
            heads = tensors.rotated_heads(name, values)
            rows = tensors.interleave(array, heads) if heads else array
            writer.write_tensor_data(tensors.encode(rows, formats[name]))
        writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    """Add a key with the type that llama.cpp reads."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _rope_factors(values: Mapping[str, Any]) -> np.ndarray | None:
    """Return what divides the frequencies in Llama 3's scaling, if it has that."""
    scaling = values.get("rope_scaling")
    if not scaling or scaling["rope_type"] != "llama3":
        return None
    return settings.llama3_factors(
        scaling, theta=values["rope_theta"], head_dim=values["head_dim"]
    )
