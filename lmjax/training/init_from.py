"""Begin a run with the parameters of another run or of a Hugging Face model."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lmjax import models
from lmjax.config.experiment import Config, to_dict
from lmjax.config.parse import list_changes
from lmjax.data.sources.documents import expand_path
from lmjax.errors import ConfigError, UserError
from lmjax.interop.hf import open_hf
from lmjax.models import Model
from lmjax.nn import lora
from lmjax.parallel import sharding
from lmjax.run.checkpoint import open_checkpoints, restore_params
from lmjax.run.workdir import has_checkpoints, keep_reference_step, read_config
from lmjax.tasks.distill import Teacher
from lmjax.training.compiled import Program
from lmjax.training.teacher import needs_copy, starts_without_adapters
from lmjax.types import Array, Params, TrainState, named_axes, named_leaves

log = logging.getLogger(__name__)

# Parameters that a task adds to a model: they may be new, and may be left out. All
# others must be there, with the same shape except for the axes that may grow.
HEADS = ("head", "pooler", "pair", "classifier", "embedding")
GROWING = ("vocab", "length", "token_types")


@dataclasses.dataclass(frozen=True, eq=False)
class PretrainedCheckpoint:
    """Pretrained parameters: their config, and how to read them."""

    config: Config
    read: Callable[[Model, Mesh], Params]  # split over the mesh as the model says


def open_pretrained(path: str, *, step: int | None = None) -> PretrainedCheckpoint:
    """Open a workdir, a Hugging Face directory, or a model of the Hugging Face hub.

    Args:
      path: of one of them.
      step: of a workdir; by default the newest.

    Raises:
      UserError: it holds no model that can be read.
    """
    directory = expand_path(path, leaf="config.init_from")
    if (directory / "checkpoints").is_dir():
        return _open_workdir(directory, step=step)
    opened = open_hf(path, flag="config.init_from")
    read = lambda model, mesh: opened.load_params(
        model, sharding.param_shardings(model.axes, model.shapes, mesh)
    )
    return PretrainedCheckpoint(opened.config, read)


def sections(path: str, *, workdir: Path | None = None) -> dict[str, Any]:
    """Return what `init_from` sets by default: the model, the tokenizer, constraints.

    Constraints are ids that the model must or must not write. The zeros of a model that
    was pruned stay.

    Args:
      path: the value of `init_from`.
      workdir: of the run. If it began with `init_from` before, the sections come from
        its own config: what `path` names may be gone.
    """
    resumes = workdir is not None and has_checkpoints(workdir)
    config = None
    if resumes and workdir is not None:
        with contextlib.suppress(UserError):  # damaged: the loop says so
            config = read_config(workdir)
    if config is None or config.init_from != path:
        config = open_pretrained(path).config
    model = to_dict(config.model)
    model.pop("num_labels", None)  # follows from the task
    model.pop("text_embedding", None)  # of the model as it was trained before
    for leaf in ("attention_bias", "mlp_bias"):  # so that `use_bias` can be changed
        if model.get(leaf) == model.get("use_bias"):
            model.pop(leaf, None)
    write = getattr(config.task, "write", None)
    pruned = config.optim.prune.method != "none"
    return {
        **({"optim": {"prune": {"method": "keep"}}} if pruned else {}),
        "model": model,
        "tokenizer": to_dict(config.tokenizer),
        "constraints": {} if write is None else write.vocabulary_leaves(),
    }


def initial_state(program: Program) -> TrainState:
    """Return the state before the first step, initialized or from `config.init_from`.

    Raises:
      UserError: the pretrained parameters do not fit the model.
    """
    key = jax.random.key(program.config.seed)
    if not program.config.init_from:
        return program.init(key)
    return program.init_from_params(key, initial_params(program, key))


def load_reference(program: Program, directory: Path) -> Teacher | None:
    """Return the model as the run began, which preferences are compared with, if any.

    With adapters it is the model itself without them, and no second copy.

    Args:
      program: of the run.
      directory: its workdir, which notes the step of `init_from`.

    Raises:
      UserError: what `config.init_from` names cannot be read any more.
    """
    if not needs_copy(program.config):
        return None
    assert program.teacher is not None
    key, source = jax.random.key(program.config.seed), program.config.init_from
    if not source:
        log.warning(
            "config.init_from = '': config.task.loss = %r compares the model with its "
            "random parameters",
            getattr(program.config.task, "loss", ""),
        )
    step = None
    path = expand_path(source, leaf="config.init_from") if source else None
    if path is not None and (path / "checkpoints").is_dir():
        with open_checkpoints(path, read_config(path)) as checkpoints:
            step = keep_reference_step(directory, checkpoints.find(None))
    params = initial_params(program, key, step=step) if source else None
    return dataclasses.replace(
        program.teacher, params=program.first_params(key, params)
    )


def initial_params(program: Program, key: Array, *, step: int | None = None) -> Params:
    """Return the parameters that `config.init_from` names, fitted to the model.

    Those of its newest step, or of the one that is given. Heads that are missing there,
    adapters, and the rows by which the vocabulary or the positions grew, are
    initialized; the log names them.

    Raises:
      UserError: the shapes do not fit; the parameter is named.
    """
    path = f"config.init_from = {program.config.init_from!r}"
    pretrained = open_pretrained(program.config.init_from, step=step)
    platform = program.mesh.devices.flat[0].platform
    model = models.build(pretrained.config.model, platform=platform)
    params = pretrained.read(model, program.mesh)
    before, after = (getattr(m.config, "lora", None) for m in (model, program.model))
    fresh_adapters = before != after or starts_without_adapters(program.config)
    if model.config.adapter_rank and fresh_adapters:
        params, _ = lora.merge_adapters(params, model.config)

    # Which parameters are taken over, initialized, grown, or left out.
    old, new = named_leaves(params), named_leaves(program.state_shapes.params)
    axes = named_axes(program.model.axes)
    if pretrained.config.task.output_names != program.config.task.output_names:
        # The labels differ, and with them the classifier.
        old = {n: p for n, p in old.items() if not n.startswith("classifier.")}
    fresh = [name for name in new if name not in old]
    grown = [name for name in new if name in old and _has_grown(name, old, new, axes)]
    left_out = [name for name in old if name not in new]
    for name in filter(_is_required, fresh):
        raise ConfigError(f"{path}: has no {name}, which config.model has")
    for name in filter(_is_required, left_out):
        raise ConfigError(f"{path}: has {name}, which config.model has not")
    _check_trainable(
        program, [name for name in fresh if name.split(".")[-1] not in lora.NAMES]
    )
    log.info("%s: %s", path, _summarize(len(new) - len(fresh), fresh, grown, left_out))
    changes = list_changes(
        pretrained.config.model, program.config.model, "config.model"
    )
    for line in changes:
        log.info("%s: %s", path, line)

    initialized = _initialize(program, key, [*fresh, *grown])
    flat = {name: old[name] for name in new if name in old} | initialized
    for name in grown:
        flat[name] = _overlay(initialized[name], old[name])
    leaves = [flat[name] for name in new]
    return jax.tree.unflatten(jax.tree.structure(program.state_shapes.params), leaves)


def _open_workdir(directory: Path, *, step: int | None) -> PretrainedCheckpoint:
    config = read_config(directory)
    tokenizer = dataclasses.replace(
        config.tokenizer, kind="tokenizers", path=str(directory / "tokenizer")
    )

    read = lambda model, mesh: restore_params(directory, config, model, mesh, step=step)
    config = dataclasses.replace(config, tokenizer=tokenizer)
    return PretrainedCheckpoint(config, read)


def _is_required(name: str) -> bool:
    """Return whether a parameter belongs neither to a head nor to an adapter."""
    parts = name.split(".")
    return parts[0] not in HEADS and parts[-1] not in lora.NAMES


def _has_grown(
    name: str, old: dict[str, Any], new: dict[str, Any], axes: dict[str, Any]
) -> bool:
    """Return whether a parameter is larger than before, along axes that may grow.

    Raises:
      ConfigError: its shape differs otherwise.
    """
    before, after = old[name].shape, new[name].shape
    if before == after:
        return False
    if len(before) == len(after) and all(
        b == a or (b < a and axis in GROWING)
        for b, a, axis in zip(before, after, axes[name], strict=True)
    ):
        return True
    raise ConfigError(
        f"config.model: parameter {name} has the shape {after}, in config.init_from "
        f"{before}; only {', '.join(GROWING)} may grow (axes {axes[name]})"
    )


def _check_trainable(program: Program, fresh: Sequence[str]) -> None:
    """Check that parameters which are initialized are not frozen.

    Raises:
      ConfigError: one is.
    """
    mask = named_leaves(program.optimizer.trainable_mask)
    for name in fresh:
        if not mask[name]:
            raise ConfigError(
                f"config.optim.trainable: {name} is new, and frozen it would stay "
                f"random; add '{name.split('.')[0]}.*'"
            )


def _initialize(program: Program, key: Array, names: Sequence[str]) -> dict[str, Array]:
    """Initialize only the named parameters, split over the mesh like the state."""
    if not names:
        return {}
    shapes = named_leaves(program.state_shapes.params)

    def init(key: Array) -> dict[str, Array]:
        flat = named_leaves(program.model.init(key))
        return {name: flat[name] for name in names}

    shardings = {name: shapes[name].sharding for name in names}
    return jax.jit(init, out_shardings=shardings)(key)


def _overlay(fresh: Array, old: Array) -> Array:
    """Return `fresh` with its first rows and columns replaced by `old`."""
    put = functools.partial(jax.lax.dynamic_update_slice, start_indices=[0] * old.ndim)
    return jax.jit(put, out_shardings=fresh.sharding)(fresh, old)


def _summarize(
    num_read: int, fresh: Sequence[str], grown: Sequence[str], left_out: Sequence[str]
) -> str:
    parts = [f"{num_read} parameters read"]
    for word, names in (("fresh", fresh), ("grown", grown), ("left out", left_out)):
        if names:
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            parts.append(f"{word}: {', '.join(names[:6])}{more}")
    return "; ".join(parts)
