"""Hugging Face directories to workdirs, and back; without PyTorch.

README.md in this directory shows the steps.
"""

import dataclasses
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh
from rich.filesize import decimal

from lmjax import models
from lmjax.config.experiment import Config, MeshConfig
from lmjax.config.matrices import QuantizeConfig
from lmjax.config.model import LabelHeadConfig
from lmjax.config.text_task import CausalLMConfig
from lmjax.data.tokenizers.tokenizer import (
    Tokenizer,
    find_tokenizer,
    load_tokenizer,
)
from lmjax.errors import UserError, nearest
from lmjax.fileio import read_json
from lmjax.interop import (
    generation,
    hub,
    labels,
    packed_export,
    sentence_transformers,
    text_length,
    tokenizer,
)
from lmjax.interop.family import Family
from lmjax.interop.gguf import reading as gguf
from lmjax.interop.packed import open_packed
from lmjax.interop.registry import choose_family, find_family, read_config
from lmjax.interop.safetensors import (
    Spec,
    TensorFiles,
    open_tensors,
    write_tensors,
)
from lmjax.interop.table import Table
from lmjax.interop.transfer import export_tensors, import_params
from lmjax.models import Model
from lmjax.nn import lora, quantized
from lmjax.parallel import sharding
from lmjax.progress import ProgressBar
from lmjax.run import workdir
from lmjax.run.checkpoint import Step, restore_params, save_params
from lmjax.run.staging import check_unused, staged_directory
from lmjax.storage.paths import open_path
from lmjax.types import Params

log = logging.getLogger(__name__)

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_PROGRESS_DELAY = 2.0  # seconds before a progress bar is shown


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of an import or an export, to be printed."""

    directory: Path
    architecture: str  # the class in transformers
    num_parameters: int
    tokenizer: str

    def __str__(self) -> str:
        return (
            f"{self.directory}: {self.architecture}, {self.num_parameters:,} "
            f"parameters, tokenizer: {self.tokenizer}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class HFCheckpoint:
    """A Hugging Face directory whose config has been read; its tensors have not."""

    directory: Path
    family: Family
    architecture: str  # the class in transformers
    config: Config
    files: TensorFiles
    origin: str  # the directory, or its name on the hub
    dense: tuple[Path, ...] = ()  # the directories of sentence-transformers' layers

    @property
    def table(self) -> Table:
        """The table of the tensors in the files."""
        model = self.config.model
        return labels.name_heads(self.family.table(model), model, self.config.task)

    def load_params(self, model: Model, shardings: Params) -> Params:
        """Load the parameters in float32.

        Args:
          model: of `config.model`.
          shardings: of the parameters.

        Raises:
          UserError: the tensors do not match the config.
        """
        table = self.table
        total = sum(tensor.num_bytes for tensor in self.files.tensors.values())
        shapes = {k: v for k, v in model.shapes.items() if k != "embedding"}
        with progress_bar(f"reading {self.directory.name}", total) as bar:
            params = import_params(
                self.files, table, shapes, shardings, on_bytes=bar.advance
            )
        for i, directory in enumerate(self.dense):
            name = f"dense_{i}"
            params.setdefault("embedding", {})[name] = import_params(
                open_tensors(directory),
                sentence_transformers.DENSE,
                model.shapes["embedding"][name],
                shardings["embedding"][name],
            )
        return params


def open_hf(source: str | Path, *, flag: str = "--from") -> HFCheckpoint:
    """Open a Hugging Face directory, or fetch one from the hub, or a GGUF file.

    Args:
      source: the directory, the name of a model of the hub, ORG/NAME, or the file.
      flag: how errors name it.

    Raises:
      UserError: it holds no model that lmjax supports.
    """
    opened = _open_gguf(source, flag=flag)
    root = opened[0] if opened else hub.find_directory(str(source), flag=flag)
    modules = sentence_transformers.find_modules(root)
    directory = modules[0][1] if modules else root
    file = directory / "config.json"
    values = generation.override_config(read_json(file), directory)
    family = find_family(values, file=str(file))
    if values.get("auto_map"):
        log.warning("%s: auto_map: code of its own is not run", file)
    files = open_packed(
        opened[1] if opened else open_tensors(directory),
        values.pop("quantization_config", None),
        model_type=family.model_type,
        file=str(file),
    )
    length = text_length.read_max_length(directory)
    config = read_config(
        family, values, files.tensors, file=str(file), max_length=length
    )
    if isinstance(config.task, CausalLMConfig) and config.model.can_generate:
        write = generation.read_decoding(directory, model=config.model)
        task = dataclasses.replace(config.task, write=write)
        config = dataclasses.replace(config, task=task)
    if modules:
        config = _with_modules(config, root, modules, tokenizer_length=length)
    tokenizer_config = find_tokenizer(directory)
    if not getattr(config.model, "lm_head", True) and not config.task.uses_classifier:
        log.warning("%s: a base model: it gives hidden states, no logits", directory)
    if tokenizer_config is not None:
        config = dataclasses.replace(config, tokenizer=tokenizer_config)
    return HFCheckpoint(
        directory=directory,
        family=family,
        architecture=(values.get("architectures") or [family.model_type])[0],
        config=config,
        files=files,
        origin=str(Path(source).expanduser().resolve())
        if Path(source).expanduser().exists()
        else str(source),
        dense=tuple(path for kind, path in modules if kind == "Dense"),
    )


def _open_gguf(source: str | Path, *, flag: str) -> tuple[Path, TensorFiles] | None:
    """Open a GGUF file; None if `source` is something else.

    Raises:
      UserError: it is to be more than imported, or cannot be read.
    """
    file = Path(source).expanduser()
    if file.suffix != gguf.SUFFIX or not file.is_file():
        return None
    if flag != "--from":
        raise UserError(
            f"{flag}={source}: import it first: lmjax import --from={source} "
            "--workdir=DIR"
        )
    return gguf.open_gguf(file)


def _with_modules(
    config: Config,
    root: Path,
    modules: list[tuple[str, Path]],
    *,
    tokenizer_length: int,
) -> Config:
    """Return the config with what the modules make of hidden states."""
    model = config.model
    if not isinstance(model, LabelHeadConfig):
        raise UserError(
            f"{root / 'modules.json'}: lmjax has no vectors of an encoder-decoder"
        )
    embedding = sentence_transformers.read_embedding(
        root,
        modules,
        dim=model.width,
        max_length=model.max_length,
        tokenizer_length=tokenizer_length,
    )
    model = dataclasses.replace(model, text_embedding=embedding)
    return dataclasses.replace(config, model=model)


def import_hf(
    source: str | Path,
    directory: str | Path,
    mesh: Mesh | None = None,
    *,
    ignore_generation: bool = False,
) -> Summary:
    """Create a workdir from a Hugging Face directory, or from a model of the hub.

    Args:
      source: a directory with config.json and safetensors files, or ORG/NAME.
      directory: the workdir; if anything fails it is not created.
      mesh: of the parameters; by default they are sharded over all devices.
      ignore_generation: import a model although lmjax does not have all settings of
        generation that come with it; each of them is named.

    Raises:
      UserError: the model cannot be read, or the workdir is not empty.
    """
    target = open_path(directory).expanduser().absolute()
    check_unused(target, flag="--workdir")
    checkpoint = open_hf(source)
    if checkpoint.config.model.can_generate:
        generation.check_supported(checkpoint.directory, ignore=ignore_generation)
    config = checkpoint.config
    has_tokenizer = config.tokenizer.kind != "ids"
    with staged_directory(target, flag="--workdir") as staging:
        opened = tokenizer.open_tokenizer(config, checkpoint.directory)
        if jax.process_index() == 0:
            opened.save(staging / "tokenizer")
        if has_tokenizer:  # the workdir must not depend on the original directory
            path = str(target / "tokenizer")
            config = dataclasses.replace(
                config, tokenizer=dataclasses.replace(config.tokenizer, path=path)
            )
        config = dataclasses.replace(config, init_from=checkpoint.origin)
        model, shardings = build_model(config, mesh)
        save_params(staging, checkpoint.load_params(model, shardings))
        if jax.process_index() == 0:
            workdir.write_config(staging, config)
    return Summary(
        directory=target,
        architecture=checkpoint.architecture,
        num_parameters=count_params(model),
        tokenizer="its own" if has_tokenizer else "none, texts are token ids",
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
    """A model of a workdir as Hugging Face's files would have it; nothing is written.

    Attributes:
      config: of the workdir.
      model: of floats, without adapters.
      params: of the model.
      codes: of the matrices that `params` lacks, if there are some.
      table: the table of its tensors.
      family: whose class computes the model.
      values: the config.json.
      tokenizer: of the workdir.
      files: of the tokenizer, by name.
    """

    config: Config
    model: Model
    params: Params
    codes: packed_export.Codes | None
    table: Table
    family: Family
    values: dict[str, Any]
    tokenizer: Tokenizer
    files: dict[str, bytes]

    @property
    def architecture(self) -> str:
        """The class in transformers."""
        return str(self.values["architectures"][0])


def open_export(source: Path, step: Step, *, dtype: str | None) -> Exported:
    """Return what an export of a workdir writes.

    Args:
      source: the workdir.
      step: of the checkpoint.
      dtype: the name of that of the weights, in config.json; None: float32, and codes
        of a quantized model as they are.

    Raises:
      ConfigError: transformers has no architecture that computes the same.
      UserError: a file cannot be read.
    """
    config = workdir.read_config(source)
    model, params, codes = _restore_merged(
        source, step, config, keeps_codes=dtype is None
    )
    family, values = choose_family(model)
    table = labels.name_heads(family.table(model.config), model.config, config.task)
    if codes is not None:
        prefix = family.prefix_to_drop(values["architectures"][0], table)
        values["quantization_config"] = packed_export.describe_format(
            codes, table, params, prefix=prefix
        )
    values |= labels.write_task(config.task, values["architectures"][0])
    saved = load_tokenizer(source / "tokenizer")
    values = {
        **tokenizer.export_settings(saved),
        **values,
        "torch_dtype": dtype or "float32",
    }
    if model.config.kind == "decoder":
        # The defaults of the class are ids of its first model, not of this one.
        values = dict.fromkeys(_SPECIAL_IDS) | values
    return Exported(
        config=config,
        model=model,
        params=params,
        codes=codes,
        table=table,
        family=family,
        values=values,
        tokenizer=saved,
        files=_tokenizer_files(saved, config, values),
    )


def export_hf(
    directory: str | Path,
    target: str | Path,
    *,
    step: Step = None,
    dtype: str | None = None,
) -> Summary:
    """Write the model of a workdir as a directory that transformers can load.

    Args:
      directory: the workdir.
      target: the new directory; if anything fails it is not created.
      step: of the checkpoint; by default the last one.
      dtype: of the weights in the files, one of `DTYPES`; None: float32, and a
        quantized model in its own codes.

    Raises:
      ConfigError: transformers has no architecture that computes the same.
      UserError: a file cannot be read or written.
    """
    if dtype not in (None, *DTYPES):
        assert dtype is not None
        hint = nearest(dtype, list(DTYPES))
        raise UserError(f"--dtype={dtype}: allowed: {', '.join(DTYPES)}{hint}")
    source, target = open_path(directory).expanduser(), open_path(target).expanduser()
    check_unused(target, flag="--to")
    e = open_export(source, step, dtype=dtype)
    modules = sentence_transformers.write_modules(e.model.config)
    others = {
        "config.json": json.dumps(e.values, indent=2).encode() + b"\n",
        **_generation_files(e.tokenizer, e.config, e.model, e.values),
        **sentence_transformers.encode_files(modules),
    }
    dense = e.params.get("embedding", {})
    params = {name: tree for name, tree in e.params.items() if name != "embedding"}
    prefix = e.family.prefix_to_drop(e.architecture, e.table)
    numbers = DTYPES[dtype or "float32"]
    specs, arrays = export_tensors(params, e.table, dtype=numbers)
    if e.codes is not None:
        packed = packed_export.export_codes(e.codes, e.table)
        specs, arrays = specs | packed[0], itertools.chain(arrays, packed[1])
    specs = {name.removeprefix(prefix): spec for name, spec in specs.items()}
    total = sum(spec.num_bytes for spec in specs.values())
    with (
        staged_directory(target, flag="--to") as staging,
        progress_bar(f"writing {target.name}", total) as bar,
    ):
        _write_tensors(staging, specs, report_bytes(arrays, bar.advance))
        if jax.process_index() == 0:
            for name, content in (e.files | others).items():
                (staging / name).parent.mkdir(exist_ok=True)
                (staging / name).write_bytes(content)
        for i in range(len(dense)):
            target_i = staging / sentence_transformers.dense_directory(i)
            _write_dense(dense[f"dense_{i}"], target_i, dtype=numbers)
    names = ", ".join(sorted(e.files)) or "none"
    return Summary(target, e.architecture, count_params(e.model), names)


def _restore_merged(
    source: Path, step: Step, config: Config, *, keeps_codes: bool
) -> tuple[Model, Params, packed_export.Codes | None]:
    """Return a model without adapters and heads that are not of its task.

    Args:
      source: the workdir.
      step: of the checkpoint.
      config: of the workdir.
      keeps_codes: of a quantized model, unless it has adapters, which add to its
        matrices.

    Returns:
      The model of floats, its parameters, and the codes of those matrices that the
      parameters lack.
    """
    model, params = restore_model(source, step)
    codes: packed_export.Codes | None = None
    quantize = model.config.quantize
    if keeps_codes and quantize.stores_codes and not model.config.adapter_rank:
        params, codes = packed_export.split_codes(params, quantize)
        dense = quantized.without_codes(model.config)
    else:
        if quantize.stores_codes or quantize.stores_table:
            log.warning("%s: is quantized; its weights are written as floats", source)
        if model.config.low_rank.fraction:
            log.warning("%s: is of low rank; its matrices are written whole", source)
        params, dense = quantized.dequantize_params(params, model.config)
        params, dense = lora.multiply_factors(params, dense)
    params, dense = lora.merge_adapters(params, dense)
    if dense.quantize != QuantizeConfig():  # of decoding, or of training alone
        dense = quantized.without_codes(dense)
    if dense != model.config:
        model = models.build(dense, platform=jax.default_backend())
    model, params = labels.drop_unused_heads(model, params, config.task)
    return model, params, codes


def _tokenizer_files(
    saved: Tokenizer, config: Config, values: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return the files of a tokenizer, by name, for a model of this config.json."""
    files = dict(tokenizer.export_files(saved, config, model_config=values))
    if config.task.uses_classifier:
        files = text_length.write_max_length(files, config.data.length)
    return files


def _generation_files(
    saved: Tokenizer, config: Config, model: Model, values: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return generation_config.json of a model that generates, else nothing."""
    write = getattr(config.task, "write", None)
    if write is None or not model.config.can_generate:
        return {}
    write = tokenizer.end_turns(write, saved, config)
    settings = generation.write_settings(write, model=model.config, values=values)
    return {generation.FILE: json.dumps(settings, indent=2).encode() + b"\n"}


def _write_tensors(
    directory: Path, specs: Mapping[str, Spec], arrays: Iterator[np.ndarray]
) -> None:
    """Write tensors by the first process; the others help to gather each."""
    if jax.process_index() == 0:
        write_tensors(directory, specs, arrays)
    for _ in arrays:
        pass


def _write_dense(params: Params, directory: Path, *, dtype: Any) -> None:
    """Write a layer of sentence-transformers into its directory."""
    specs, arrays = export_tensors(params, sentence_transformers.DENSE, dtype=dtype)
    _write_tensors(directory, specs, arrays)


def build_model(config: Config, mesh: Mesh | None) -> tuple[Model, Params]:
    """Return a model and the shardings of its parameters.

    Args:
      config: of the model.
      mesh: of the parameters; by default they are sharded over all devices, or
        replicated if their sizes do not allow that.
    """
    devices = jax.devices() if mesh is None else mesh.devices.flat
    model = models.build(config.model, platform=devices[0].platform)
    mesh = _default_mesh(model) if mesh is None else mesh
    return model, sharding.param_shardings(model.axes, model.shapes, mesh)


def _default_mesh(model: Model) -> Mesh:
    """Return a mesh of all devices that shards the parameters if their sizes allow."""
    sharded = [MeshConfig(data=1, fsdp=-1)]
    return sharding.fitting_mesh(sharded, axes=model.axes, shapes=model.shapes)


def restore_model(source: Path, step: Step) -> tuple[Model, Params]:
    """Return the model of a workdir, and the parameters of a checkpoint."""
    config = workdir.read_config(source)
    model = models.build(config.model, platform=jax.devices()[0].platform)
    mesh = _default_mesh(model)
    return model, restore_params(source, config, model, mesh, step=step)


def count_params(model: Model) -> int:
    """Return the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(model.shapes))


def report_bytes(
    arrays: Iterator[np.ndarray], advance: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """Yield arrays, and tell the bytes of each once it has been used."""
    for array in arrays:
        yield array
        advance(array.nbytes)
        del array


def progress_bar(title: str, total: int) -> ProgressBar:
    """Return a bar that counts bytes, shown if it takes more than a moment."""
    return ProgressBar(
        title,
        total=total,
        delay=_PROGRESS_DELAY,
        visible=jax.process_index() == 0,
        format_count=decimal,
    )
