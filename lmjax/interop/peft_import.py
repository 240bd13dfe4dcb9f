"""Import of PEFT's LoRA adapters, onto a model that they were trained for.

Adapters of matrices in blocks stay adapters; those of other matrices are merged. Ranks
and scales may differ from module to module: ours have one rank, the largest, and one
scale, and the difference is a factor of `lora_b`.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lmjax import models
from lmjax.config.experiment import Config, parse, to_dict
from lmjax.config.matrices import MATRICES
from lmjax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from lmjax.errors import UserError
from lmjax.interop import labels, tokenizer
from lmjax.interop.hf import Summary, build_model, open_hf, restore_model
from lmjax.interop.hub import ADAPTER_CONFIG
from lmjax.interop.peft import TASK_TYPES
from lmjax.interop.peft_files import Adapters, read_settings, read_tensors
from lmjax.interop.places import Places, check_tied, set_part
from lmjax.interop.registry import FAMILIES, choose_family
from lmjax.interop.table import Entry, Table
from lmjax.nn import lora
from lmjax.run import workdir
from lmjax.run.checkpoint import save_params
from lmjax.run.staging import check_unused, staged_directory
from lmjax.storage.paths import open_path
from lmjax.types import Params, named_leaves

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Base:
    """The model that adapters belong to."""

    config: Config
    params: Params
    tokenizer: Tokenizer
    origin: str


def import_adapters(
    source: str | Path,
    directory: str | Path,
    *,
    base: str = "",
    mesh: Mesh | None = None,
) -> Summary:
    """Create a workdir from a model and adapters for it.

    Args:
      source: a directory with adapter_config.json and adapter_model.safetensors.
      directory: the workdir; if anything fails it is not created.
      base: a workdir, a Hugging Face directory, or a name on the hub; by default the
        directory that adapter_config.json names.
      mesh: of the parameters; by default they are sharded over all devices.

    Raises:
      UserError: the adapters cannot be read, or do not fit the base.
    """
    source, target = (
        Path(source).expanduser(),
        open_path(directory).expanduser().absolute(),
    )
    check_unused(target, flag="--workdir")
    settings = read_settings(source / ADAPTER_CONFIG)
    tensors = read_tensors(source)
    found = _load_base(_find_base(base, settings, source), mesh)
    adapters = Adapters(source, settings, tensors)
    config, leaves = _apply(adapters, found, _make_config(found, settings, adapters))
    with staged_directory(target, flag="--workdir") as staging:
        if jax.process_index() == 0:
            found.tokenizer.save(staging / "tokenizer")
        if config.tokenizer.kind not in ("ids", "bytes"):
            path = str(target / "tokenizer")
            own = dataclasses.replace(config.tokenizer, kind="tokenizers", path=path)
            config = dataclasses.replace(config, tokenizer=own)
        model, shardings = build_model(config, mesh)
        placed = {
            name: jax.device_put(leaves[name], sharding)
            for name, sharding in named_leaves(shardings).items()
        }
        tree = jax.tree.structure(model.shapes)
        save_params(staging, jax.tree.unflatten(tree, list(placed.values())))
        if jax.process_index() == 0:
            workdir.write_config(staging, config)
    count = sum(leaf.size for leaf in leaves.values())
    rank = config.model.adapter_rank
    return Summary(target, f"LoRA adapters of rank {rank}", count, "that of the base")


def _find_base(base: str, settings: Mapping[str, Any], source: Path) -> str:
    """Return the directory or name of the base."""
    if base:
        return base
    named = settings.get("base_model_name_or_path") or ""
    if not Path(named).expanduser().is_dir() or not named:
        raise UserError(
            f"--base: must name the model of these adapters, a workdir or a Hugging "
            f"Face model; {source / ADAPTER_CONFIG} has base_model_name_or_path = "
            f"{named!r}, which is no directory here"
        )
    return str(named)


def _load_base(path: str, mesh: Mesh | None) -> _Base:
    """Return the base, without adapters of its own."""
    directory = open_path(path).expanduser()
    if (directory / "checkpoints").is_dir():
        config = workdir.read_config(directory)
        model, params = restore_model(directory, None)
        params, own = lora.merge_adapters(params, model.config)
        config = dataclasses.replace(config, model=own)
        opened = load_tokenizer(directory / "tokenizer")
        return _Base(config, params, opened, str(directory.resolve()))
    checkpoint = open_hf(path, flag="--base")
    config = checkpoint.config
    model, shardings = build_model(config, mesh)
    opened = tokenizer.open_tokenizer(config, checkpoint.directory)
    params = checkpoint.load_params(model, shardings)
    return _Base(config, params, opened, checkpoint.origin)


def _make_config(
    base: _Base, settings: Mapping[str, Any], adapters: Adapters
) -> Config:
    """Return the config of the base with the head that comes with the adapters."""
    sections = to_dict(base.config)
    model, task, data = (sections[name] for name in ("model", "task", "data"))
    model.pop("lora", None)
    kinds = {name: kind for kind, name in TASK_TYPES.items()}
    kind = kinds.get(str(settings.get("task_type")))
    if kind:
        heads = ("classifier", "score", "qa_outputs")
        found = [adapters.saved.get(f"{name}.weight") for name in heads]
        weight = next((array for array in found if array is not None), None)
        if weight is not None and len(weight) != len(base.config.task.output_names):
            model["num_labels"] = len(weight)
            names = labels.default_labels(len(weight))
            task = {"kind": kind}
            if labels.HEADS[kind].names_labels:
                task["labels"] = names
        if model["kind"] == "encoder" and labels.HEADS[kind].uses_pooler:
            model["pooler"] = True
        if model["kind"] == "decoder" and weight is not None:
            model["label_bias"] = any(
                f"{name}.bias" in adapters.saved for name in heads
            )
    lengths = {name: data[name] for name in ("length", "target_length")}
    return parse(
        {
            "init_from": base.origin,
            "model": model,
            "tokenizer": sections["tokenizer"],
            "task": task,
            "data": {"source": "none", **lengths},
        }
    )


def _find_table(config: Config) -> Table:
    """Return the table of tensors of a model."""
    name = getattr(config.model, "family", "")
    family = next((f for f in FAMILIES if f.model_type == name), None)
    if family is None:
        family, _ = choose_family(models.build(config.model, platform="cpu"))
    return labels.name_heads(family.table(config.model), config.model, config.task)


def _apply(
    adapters: Adapters, base: _Base, config: Config
) -> tuple[Config, dict[str, np.ndarray]]:
    """Return the config with adapters, and all parameters.

    Raises:
      UserError: a tensor belongs to no parameter, or has another shape; or a parameter
        is nowhere.
    """
    table = _find_table(config)
    shapes = named_leaves(models.build(config.model, platform="cpu").shapes)
    places = Places(table, shapes, adapters.file)
    old = named_leaves(base.params)
    leaves = {
        name: np.array(old[name])
        for name, leaf in shapes.items()
        if name in old and old[name].shape == leaf.shape
    }
    trained: dict[str, None] = {}
    for name, value in adapters.saved.items():
        check_tied(name, adapters.saved, table, places)
        for entry, layer in places.find(name, value.shape):
            empty = np.zeros(shapes[entry.param].shape, np.float32)
            leaf = leaves.setdefault(entry.param, empty)
            set_part(leaf, entry, layer, value)
            trained[entry.param] = None
    if missing := sorted(shapes.keys() - leaves.keys()):
        raise UserError(
            f"{adapters.file}: has no {missing[0]}, which the base lacks, too, or has "
            "in another shape"
        )
    in_blocks: dict[str, list[tuple[Entry, int, str]]] = {}
    for module, pair in adapters.pairs.items():
        name, shape = f"{module}.weight", (len(pair["B"]), pair["A"].shape[1])
        found = places.find(name, shape, adapted=True)
        matrix = found[0][0].param.removesuffix(".kernel").partition(".blocks.")[2]
        if found[0][1] is not None and matrix in MATRICES:
            for entry, i in found:
                in_blocks.setdefault(entry.param, []).append((entry, i or 0, module))
            continue
        if name in places.tied:
            raise UserError(f"{adapters.file}: {module}: an adapter of tied weights")
        log.info("%s: the adapter is merged into its matrix", module)
        delta = adapters.scale(module) * pair["B"] @ pair["A"]
        for entry, i in found:
            leaf = leaves[entry.param]
            part = np.asarray(
                entry.to_part(jax.numpy.asarray(leaf if i is None else leaf[i]))
            )
            delta = delta.T if entry.layout == "conv1d" else delta
            set_part(leaf, entry, i, part + delta, whole=False)
        trained[found[0][0].param] = None
    if not in_blocks:
        return config, leaves
    return _add_adapters(adapters, config, leaves, in_blocks, [*trained])


def _add_adapters(
    adapters: Adapters,
    config: Config,
    leaves: dict[str, np.ndarray],
    in_blocks: Mapping[str, list[tuple[Entry, int, str]]],
    trained: list[str],
) -> tuple[Config, dict[str, np.ndarray]]:
    """Return the config and the parameters with the adapters of matrices in blocks."""
    modules = [module for uses in in_blocks.values() for _, _, module in uses]
    rank = max(len(adapters.pairs[module]["A"]) for module in modules)
    scale = adapters.scale(modules[0])
    matrices = {p.removesuffix(".kernel").partition(".blocks.")[2] for p in in_blocks}
    sections = to_dict(config)
    sections["model"]["lora"] = {
        "rank": rank,
        "alpha": scale * rank,
        "targets": tuple(sorted(matrices)),
    }
    sections["optim"]["trainable"] = tuple(trained)
    config = parse(sections)
    shapes = named_leaves(models.build(config.model, platform="cpu").shapes)
    for name, leaf in shapes.items():
        if name not in leaves:
            leaves[name] = np.zeros(leaf.shape, np.float32)
    for param, uses in in_blocks.items():
        path = param.removesuffix(".kernel")
        a_LIR, b_LRO = (leaves[f"{path}.{name}"] for name in lora.NAMES)
        for entry, i, module in uses:
            a, b = (adapters.pairs[module][side] for side in "AB")
            b = b[entry.rows_of(len(b))] * (adapters.scale(module) / scale)
            r = len(a)
            a_LIR[i][..., :r] = a.T.reshape(*a_LIR.shape[1:-1], r)
            b_LRO[i][:r] = b.T.reshape(r, *b_LRO.shape[2:])
    return config, {name: leaves[name] for name in shapes}
