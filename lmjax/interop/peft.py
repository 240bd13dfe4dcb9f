"""Export of what a run with LoRA adapters has learned, in the files of PEFT.

PEFT adapts whole modules of transformers, and saves the modules that were trained
themselves as they are: `target_modules` and `modules_to_save`.
"""

import dataclasses
import json
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lmjax import models
from lmjax.config.experiment import Config
from lmjax.errors import ConfigError, UserError
from lmjax.interop import labels
from lmjax.interop.hf import Summary, restore_model
from lmjax.interop.registry import choose_family
from lmjax.interop.safetensors import Spec, write_file
from lmjax.interop.table import Entry, Table
from lmjax.interop.transfer import export_tensors
from lmjax.nn import lora
from lmjax.run import workdir
from lmjax.run.checkpoint import Step
from lmjax.run.staging import check_unused, staged_directory
from lmjax.storage.paths import open_path
from lmjax.types import Array, Params, named_leaves

log = logging.getLogger(__name__)

PREFIX = "base_model.model."  # PEFT's, of the names of all tensors
TASK_TYPES = {
    "classify": "SEQ_CLS",
    "tag": "TOKEN_CLS",
    "span_qa": "QUESTION_ANS",
}
_MODEL_TASK_TYPES = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM"}

# Settings that are the same for all adapters.
_CONSTANTS: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "lora_dropout": 0.0,
    "inference_mode": True,
}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """LoRA of one module: delta = alpha / rank * b @ a, of shape (outputs, inputs)."""

    a: np.ndarray  # (rank, inputs)
    b: np.ndarray  # (outputs, rank)


def export_adapters(
    directory: str | Path, target: str | Path, *, step: Step = None
) -> Summary:
    """Write the adapters of a workdir, and all else that it learned, as PEFT does.

    Args:
      directory: the workdir.
      target: the new directory; if anything fails it is not created.
      step: of a checkpoint, or "best"; by default the last one.

    Raises:
      UserError: there are no adapters.
      ConfigError: transformers has no architecture that computes the same, or PEFT
        cannot express what was learned.
    """
    source, target = open_path(directory).expanduser(), open_path(target).expanduser()
    check_unused(target, flag="--to")
    config = workdir.read_config(source)
    if not config.model.adapter_rank:
        raise UserError(f"--workdir={source}: has no adapters (model.lora.rank = 0)")
    model, adapted = restore_model(source, step)
    params, base = lora.merge_adapters(adapted, model.config)
    merged = models.build(base, platform=jax.default_backend())
    merged, params = labels.drop_unused_heads(merged, params, config.task)
    params = {name: tree for name, tree in params.items() if name != "embedding"}
    family, values = choose_family(merged)
    values |= labels.write_task(config.task, values["architectures"][0])
    table = labels.name_heads(family.table(merged.config), merged.config, config.task)
    modules = _Modules(
        table, params, family.prefix_to_drop(values["architectures"][0], table)
    )
    base_name, learned = _find_learned(config, params)
    saved = modules.that_hold(learned)
    adapters = {
        module: adapter
        for module, adapter in _read_adapters(table, adapted, modules).items()
        if not any(module == m or module.startswith(m + ".") for m in saved)
    }
    if not adapters:
        raise ConfigError(
            f"config.optim.trainable = {config.optim.trainable}: all matrices with "
            "adapters are trained themselves, too; export without --adapters"
        )
    tensors = {
        f"{PREFIX}{module}.lora_{side.upper()}.weight": getattr(adapter, side)
        for module, adapter in adapters.items()
        for side in ("a", "b")
    }
    for name, array in modules.read(saved):
        tensors[PREFIX + name] = array
    settings = {
        "task_type": _task_type(config),
        "base_model_name_or_path": base_name,
        **_lora_settings(config, modules, adapters),
        "modules_to_save": modules.shorten(saved, separator="") or None,
        "fan_in_fan_out": any(entry.layout == "conv1d" for entry in table.entries),
    }
    _write_files(target, tensors, _CONSTANTS | settings)
    count = sum(array.size for array in tensors.values())
    more = f" and {len(saved)} whole modules" if saved else ""
    return Summary(target, f"LoRA adapters{more}", count, "none")


def _write_files(
    target: Path, tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> None:
    specs = {name: Spec(np.dtype(np.float32), a.shape) for name, a in tensors.items()}
    with staged_directory(target, flag="--to") as staging:
        if jax.process_index() == 0:
            file = staging / "adapter_model.safetensors"
            write_file(file, specs, iter(tensors.values()))
            text = json.dumps(settings, indent=2)
            (staging / "adapter_config.json").write_text(text + "\n")


class _Modules:
    """The modules of transformers that hold the parameters of a model.

    Args:
      table: of the model.
      params: without adapters.
      prefix: that the names of tensors lack in the class of transformers.
    """

    def __init__(self, table: Table, params: Params, prefix: str) -> None:
        self.params, self.prefix = named_leaves(params), prefix
        self.table = table
        self.tensors: dict[str, set[str]] = {}  # the parameters in each tensor
        for entry in table.entries_for(self.params):
            for _, name in entry.tensor_names(self.params[entry.param].shape):
                self.tensors.setdefault(name, set()).add(entry.param)
        for copies in (table.copies, table.aliases, table.names):
            for name, original in copies.items():
                if original in self.tensors:
                    self.tensors.setdefault(name, self.tensors[original])
        self.names = {self.module_of(name) for name in self.tensors}

    def module_of(self, tensor: str) -> str:
        """Return the module of a tensor, "" of one that belongs to the whole model."""
        return tensor.removeprefix(self.prefix).rpartition(".")[0]

    def that_hold(self, params: set[str]) -> list[str]:
        """Return the modules of some parameters, none of them within another.

        Raises:
          ConfigError: a tensor belongs to no module.
        """
        found: dict[str, None] = {}
        for tensor, held in self.tensors.items():
            if not held.isdisjoint(params):
                module = self.module_of(tensor)
                if not module:
                    raise ConfigError(
                        f"config.optim.trainable: {min(held)} was trained, which is "
                        f"{tensor} in transformers and belongs to no module that PEFT "
                        "can save; export without --adapters"
                    )
                found[module] = None
        return [m for m in found if not any(m.startswith(o + ".") for o in found)]

    def read(self, modules: Collection[str]) -> Iterable[tuple[str, np.ndarray]]:
        """Yield the tensors of some modules, float32, by their names."""
        wanted = {
            tensor
            for tensor in self.tensors
            if any(
                tensor.removeprefix(self.prefix).startswith(m + ".") for m in modules
            )
        }
        params = set().union(*(self.tensors[tensor] for tensor in wanted))
        subset = {name: self.params[name] for name in sorted(params)}
        specs, arrays = export_tensors(subset, self.table, dtype=np.float32)
        values = dict(zip(specs, arrays, strict=True))
        for copies in (self.table.copies, self.table.aliases, self.table.names):
            for name, original in copies.items():
                if original in values:
                    values.setdefault(name, values[original])
        for name in sorted(wanted):
            yield name.removeprefix(self.prefix), values[name]

    def shorten(self, modules: Collection[str], *, separator: str) -> list[str]:
        """Return names that match these modules, and no others, by their ends.

        Args:
          modules: full names.
          separator: that must come before the end of a name: PEFT demands a "." for
            modules with adapters, and nothing for those that are saved.
        """
        names: dict[str, None] = {}
        for module in modules:
            end = _within_block(module)
            matched = {m for m in self.names if m == end or m.endswith(separator + end)}
            names[end if matched <= set(modules) else module] = None
        return sorted(names)


def _within_block(module: str) -> str:
    """Return what follows the number of the block in the name of a module."""
    parts = module.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[0] + 1 :]) if numbers else module


def _read_adapters(
    table: Table, params: Params, modules: _Modules
) -> dict[str, Adapter]:
    """Return the adapters of all modules.

    Where several matrices are parts of one tensor (GPT-2's query, key and value), that
    of the tensor has the sum of their ranks: its `b` is block-diagonal.
    """
    leaves = named_leaves(params)
    found: dict[str, list[tuple[Entry, np.ndarray, np.ndarray]]] = {}
    for entry in table.entries:
        layer = entry.param.removesuffix(".kernel")
        if f"{layer}.lora_a" not in leaves:
            continue
        a_LIR, b_LRO = (_to_host(leaves[f"{layer}.{name}"]) for name in lora.NAMES)
        rank = a_LIR.shape[-1]
        for i, (a, b) in enumerate(zip(a_LIR, b_LRO, strict=True)):
            module = modules.module_of(entry.tensor.format(layer=i))
            part = (entry, a.reshape(-1, rank).T, b.reshape(rank, -1).T)
            found.setdefault(module, []).append(part)
    return {module: _join_parts(parts) for module, parts in found.items()}


def _join_parts(parts: list[tuple[Entry, np.ndarray, np.ndarray]]) -> Adapter:
    """Return one adapter of all matrices that are parts of one tensor."""
    a = np.concatenate([a for _, a, _ in parts])
    entry, _, b_OR = parts[0]
    rank = b_OR.shape[1]
    b = np.zeros((entry.num_rows(len(b_OR)), len(a)), np.float32)
    for i, (entry, _, b_OR) in enumerate(parts):
        b[entry.rows(len(b_OR)), i * rank : (i + 1) * rank] = b_OR
    return Adapter(np.ascontiguousarray(a, np.float32), b)


def _lora_settings(
    config: Config, modules: _Modules, adapters: Mapping[str, Adapter]
) -> dict[str, Any]:
    """Return the keys of adapter_config.json that say where the adapters are."""
    rank, scale = config.model.adapter_rank, config.model.adapter_scale
    settings: dict[str, Any] = {
        "r": rank,
        "lora_alpha": scale * rank,
        "target_modules": modules.shorten(adapters, separator="."),
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    for module, adapter in adapters.items():
        if (larger := len(adapter.a)) != rank:
            name = _within_block(module)
            settings["rank_pattern"][name] = larger
            settings["alpha_pattern"][name] = scale * larger
    return settings


def _find_learned(config: Config, params: Params) -> tuple[str | None, set[str]]:
    """Return the base of the adapters, and the parameters that differ from it.

    A run that went on with the adapters of another workdir has the base of that one,
    and what was learned there counts, too.

    Returns:
      A directory or a name of the hub, None where there is none that transformers
      reads; and the names of parameters, without adapters.
    """
    names = named_leaves(params)
    learned = {name for name in names if config.optim.is_trainable(name)}
    if config.task.uses_classifier:
        learned |= {name for name in names if name.startswith("classifier.")}
    lora_config = getattr(config.model, "lora", None)
    path = open_path(config.init_from).expanduser()
    while config.init_from and (path / "checkpoints").is_dir():
        config = workdir.read_config(path)
        own = getattr(config.model, "lora", None)
        if config.data.source != "none" and own != lora_config:
            log.warning(
                "base_model_name_or_path is null: the base of these adapters is the "
                "model of the run %s; export that as well, for PEFT to add them to",
                path,
            )
            return None, learned
        if own == lora_config:
            learned |= {name for name in names if config.optim.is_trainable(name)}
        path = open_path(config.init_from).expanduser()
    if not config.init_from:
        return None, learned
    return str(path.resolve()) if path.is_dir() else config.init_from, learned


def _task_type(config: Config) -> str | None:
    """Return PEFT's name for the kind of model; None: it has none for it."""
    if config.task.kind in TASK_TYPES:
        return TASK_TYPES[config.task.kind]
    if config.model.kind == "encoder" and not getattr(config.model, "mlm_head", False):
        return "FEATURE_EXTRACTION"
    return _MODEL_TASK_TYPES.get(config.model.kind)


def _to_host(x: Array) -> np.ndarray:
    """Return a whole array, which may be sharded over several processes."""
    sharding = x.sharding
    assert isinstance(sharding, NamedSharding), sharding
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    return np.asarray(jax.jit(lambda x: x, out_shardings=replicated)(x))
