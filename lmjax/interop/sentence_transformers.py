"""The modules of sentence-transformers around a model: what a text's vector is.

modules.json lists a Transformer, then a Pooling, Dense layers and a Normalize; each has
a directory with its config.json, and a Dense layer its weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmjax.config.model import (
    Activation,
    DenseConfig,
    LabelHeadConfig,
    ModelConfig,
    Pooling,
    TextEmbeddingConfig,
)
from lmjax.errors import UserError, nearest
from lmjax.fileio import read_json
from lmjax.interop.hf_config import HFConfig
from lmjax.interop.table import Entry, Table

DENSE = Table(
    entries=(
        Entry("kernel", "linear.weight", "linear"),
        Entry("bias", "linear.bias", "flat"),
    ),
    heads=(),
)
_LIBRARY = "sentence_transformers.models"
# By its names for ours; concatenated in this order where its older settings name some.
_POOLING: dict[str, Pooling] = {
    "cls": "first",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
_ACTIVATIONS: dict[str, Activation] = {
    "torch.nn.modules.linear.Identity": "none",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
}
_ORDER = ("Transformer", "Pooling", "Dense", "Normalize")
_SIZE_FILES = "sentence_*_config.json"


def find_modules(directory: Path) -> list[tuple[str, Path]]:
    """Return the kind and the directory of each module; none without modules.json.

    Raises:
      UserError: lmjax has no such module, or not in this order.
    """
    file = directory / "modules.json"
    if not file.is_file():
        return []
    try:
        listed = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    modules = []
    for module in listed if isinstance(listed, list) else [None]:
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise UserError(f"{file}: expected a list of objects, each with its type")
        kind = module["type"].split(".")[-1]
        if kind not in _ORDER:
            raise UserError(
                f"{file}: type = {module['type']!r}: not supported"
                f"{nearest(kind, _ORDER)}; supported: {', '.join(_ORDER)}"
            )
        modules.append((kind, directory / str(module.get("path") or "")))
    kinds = [kind for kind, _ in modules]
    once = [kind for kind in kinds if kind != "Dense"]
    if kinds != sorted(kinds, key=_ORDER.index) or len(once) != len(set(once)):
        raise UserError(
            f"{file}: {', '.join(kinds)}: not supported in this order; expected "
            "Transformer, Pooling, any number of Dense, Normalize"
        )
    if not kinds or kinds[0] != "Transformer" or (kinds[1:] and "Pooling" not in kinds):
        raise UserError(
            f"{file}: {', '.join(kinds)}: expected a Transformer and a Pooling first"
        )
    return modules


def read_embedding(
    directory: Path,
    modules: list[tuple[str, Path]],
    *,
    dim: int,
    max_length: int,
    tokenizer_length: int,
) -> TextEmbeddingConfig:
    """Return what the vector of a text is.

    Args:
      directory: the one with modules.json.
      modules: of `find_modules`, at least one.
      dim: of the model's hidden states.
      max_length: of the model.
      tokenizer_length: where the tokenizer cuts texts; 0: nowhere.

    Raises:
      UserError: lmjax does not support the value of a key.
    """
    fields = _read_length(modules[0][1], tokenizer_length or max_length)
    fields["max_length"] = min(fields["max_length"], max_length)
    fields["prompt"] = prompt = _read_prompt(directory)
    dense: list[DenseConfig] = []
    size = dim
    for kind, path in modules[1:]:
        # Older versions write nothing for a Normalize.
        hf = _open(path, may_lack=kind == "Normalize")
        if kind == "Pooling":
            fields["pooling"] = _read_pooling(hf, dim, has_prompt=bool(prompt))
            size = dim * len(fields["pooling"])
        elif kind == "Dense":
            dense.append(_read_dense(hf, size))
            size = dense[-1].dim
        else:
            for key in ("module_input_name", "module_output_name"):
                hf.require(key, None, "sentence_embedding")
            fields["normalize"] = True
    return TextEmbeddingConfig(**fields, dense=tuple(dense))


def write_modules(model: ModelConfig) -> dict[str, Any]:
    """Return the files of the modules by their names, as JSON values.

    None if the vector of a text is what it is without any: the mean.
    """
    if not isinstance(model, LabelHeadConfig):
        return {}
    config = model.text_embedding
    if config == TextEmbeddingConfig():
        return {}
    size = model.width * len(config.pooling)
    names = {ours: theirs for theirs, ours in _POOLING.items()}
    chosen = [names[mode] for mode in config.pooling]
    pooling: dict[str, Any] = {"word_embedding_dimension": model.width}
    if chosen == sorted(set(chosen), key=[*_POOLING].index):
        flags = {name: _flag(name) for name in _POOLING}
        pooling |= {flag: name in chosen for name, flag in flags.items()}
    else:  # an order that only newer versions can have
        pooling["pooling_mode"] = chosen
    files: dict[str, Any] = {}
    kinds = ["Transformer", "Pooling", *["Dense"] * len(config.dense)]
    kinds += ["Normalize"] * config.normalize
    paths = ["", *[f"{i}_{kind}" for i, kind in enumerate(kinds)][1:]]
    files["modules.json"] = [
        {"idx": i, "name": str(i), "path": path, "type": f"{_LIBRARY}.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    files[f"{paths[1]}/config.json"] = pooling
    for i, layer in enumerate(config.dense):
        files[f"{dense_directory(i)}/config.json"] = _write_dense(layer, size)
        size = layer.dim
    if config.normalize:
        files[f"{paths[-1]}/config.json"] = {}
    files["sentence_bert_config.json"] = {
        "max_seq_length": config.max_length
        or min(model.max_length, model.max_positions),
        "do_lower_case": config.lowercase,
    }
    if config.prompt:
        prompts = {"prompts": {"default": config.prompt}}
        name = {"default_prompt_name": "default"}
        files["config_sentence_transformers.json"] = prompts | name
    return files


def dense_directory(index: int) -> str:
    """Return the directory of a Dense layer of an export."""
    return f"{2 + index}_Dense"


def encode_files(files: Mapping[str, Any]) -> dict[str, bytes]:
    """Return JSON values as the contents of files."""
    return {
        name: (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
        for name, value in files.items()
    }


def _open(directory: Path, *, may_lack: bool) -> HFConfig:
    file = directory / "config.json"
    values = {} if may_lack and not file.is_file() else read_json(file)
    tanh = "torch.nn.modules.activation.Tanh"
    defaults = {"bias": True, "activation_function": tanh}  # of a Dense layer
    return HFConfig(values, defaults, file=str(file))


def _read_length(directory: Path, default: int) -> dict[str, Any]:
    """Return the length at which texts are cut, and whether they lose capitals."""
    for file in sorted(directory.glob(_SIZE_FILES)):
        hf = HFConfig(read_json(file), {"do_lower_case": False}, file=str(file))
        return {
            "max_length": hf.get_int("max_seq_length", default) or default,
            "lowercase": hf.get_bool("do_lower_case"),
        }
    return {"max_length": default}


def _read_prompt(directory: Path) -> str:
    """Return the text that is put before each text by default."""
    file = directory / "config_sentence_transformers.json"
    if not file.is_file():
        return ""
    hf = HFConfig(read_json(file), {}, file=str(file))
    name, prompts = hf.get("default_prompt_name"), hf.get("prompts") or {}
    if not name:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise hf.error("default_prompt_name", "expected one of the prompts")
    return str(prompts[name])


def _read_pooling(hf: HFConfig, dim: int, *, has_prompt: bool) -> tuple[Pooling, ...]:
    key = "word_embedding_dimension"
    key = key if hf.get(key) is not None else "embedding_dimension"
    if hf.get_int(key, dim) != dim:
        raise hf.error(key, f"expected {dim}, the size of the hidden states")
    if has_prompt:
        hf.require("include_prompt", None, True)
    modes = hf.get("pooling_mode")
    if modes is None:
        modes = [name for name in _POOLING if hf.get(_flag(name))] or ["mean"]
        known = {_flag(name) for name in _POOLING}
        for other in hf.values:
            if other.startswith("pooling_mode_") and other not in known:
                hf.require(other, False)
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or {*map(str, modes)} - {*_POOLING}:
        allowed = ", ".join(_POOLING)
        raise hf.error("pooling_mode", f"expected one or several of {allowed}")
    return tuple(_POOLING[mode] for mode in modes)


def _flag(name: str) -> str:
    """Return the key of the older settings for a way of pooling."""
    has_tokens = name in ("mean_sqrt_len_tokens", "lasttoken")
    suffix = "" if has_tokens else "_token" if name == "cls" else "_tokens"
    return f"pooling_mode_{name}{suffix}"


def _read_dense(hf: HFConfig, size: int) -> DenseConfig:
    hf.require("use_residual", None, False)
    for key in ("module_input_name", "module_output_name"):
        hf.require(key, None, "sentence_embedding")
    if hf.get_int("in_features") != size:
        raise hf.error("in_features", f"expected {size}, the size of what comes before")
    return DenseConfig(
        dim=hf.get_int("out_features"),
        bias=hf.get_bool("bias"),
        activation=hf.look_up("activation_function", _ACTIVATIONS),
    )


def _write_dense(layer: DenseConfig, size: int) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    return {
        "in_features": size,
        "out_features": layer.dim,
        "bias": layer.bias,
        "activation_function": names[layer.activation],
    }
