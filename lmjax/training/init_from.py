"""A run that begins with the parameters of another, or of a Hugging Face directory."""

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
from lmjax.errors import ConfigError
from lmjax.interop.hf import open_hf
from lmjax.models import Model
from lmjax.nn import lora
from lmjax.parallel import sharding
from lmjax.run.checkpoint import restore_params
from lmjax.run.workdir import has_checkpoints, read_config
from lmjax.training.compiled import Program
from lmjax.types import Array, Params, TrainState, named_leaves

log = logging.getLogger(__name__)

# What a task adds to a model: it may be new, and may be left behind. All else must
# be there, in the same shape but for the axes that can grow.
HEADS = ("head", "pooler", "pair", "classifier")
GROWING = ("vocab", "length", "token_types")


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """Where parameters come from: the config they go with, and how to read them."""

    config: Config
    read: Callable[[Model, Mesh], Params]  # each laid over the mesh as its axes say


def open_origin(path: str) -> Origin:
    """Return what a workdir, a Hugging Face directory or a hub name holds.

    Raises:
      ConfigError: it holds no model that can be read.
    """
    directory = Path(path).expanduser()
    if (directory / "checkpoints").is_dir():
        return _open_workdir(directory)
    opened = open_hf(path, flag="config.init_from")
    read = lambda model, mesh: opened.load_params(
        model, sharding.param_shardings(model.axes, model.shapes, mesh)
    )
    return Origin(opened.config, read)


def sections(path: str, *, workdir: Path | None = None) -> dict[str, Any]:
    """Return the model and tokenizer sections that a config takes over by default.

    Args:
      path: what `init_from` says.
      workdir: of a run that may have begun with it already; its own word counts then.
    """
    begun = workdir is not None and has_checkpoints(workdir)
    config = read_config(workdir) if begun and workdir is not None else None
    if config is None or config.init_from != path:
        config = open_origin(path).config
    model = to_dict(config.model)
    model.pop("num_labels", None)  # which follow from the task
    return {"model": model, "tokenizer": to_dict(config.tokenizer)}


def initial_state(program: Program) -> TrainState:
    """Return the state before the first step, fresh or begun with `init_from`.

    Raises:
      ConfigError: the parameters to begin with are not this model's.
    """
    key = jax.random.key(program.config.seed)
    if not program.config.init_from:
        return program.init(key)
    return program.init_from_params(key, initial_params(program, key))


def initial_params(program: Program, key: Array) -> Params:
    """Return the parameters that `config.init_from` says a run begins with.

    Heads that the origin has not, adapters, and the rows by which the vocabulary or
    the positions grew, are initialised afresh; the log names them.

    Raises:
      ConfigError: the origin is of another shape, naming the parameter.
    """
    path = f"config.init_from = {program.config.init_from!r}"
    origin = open_origin(program.config.init_from)
    model = models.build(
        origin.config.model, platform=program.mesh.devices.flat[0].platform
    )
    given = origin.read(model, program.mesh)
    ours, theirs = (getattr(m.config, "lora", None) for m in (program.model, model))
    if model.config.adapter_rank and ours != theirs:
        given, _ = lora.merge_adapters(given, model.config)
    old, new = named_leaves(given), named_leaves(program.state_shapes.params)
    axes = named_leaves(program.model.axes, is_leaf=lambda x: isinstance(x, tuple))
    if origin.config.task.output_names != program.config.task.output_names:
        # Another classifier.
        old = {n: p for n, p in old.items() if not n.startswith("classifier.")}
    fresh = [name for name in new if name not in old]
    grown = [name for name in new if name not in fresh and _grew(name, old, new, axes)]
    lost = [name for name in old if name not in new]
    for name in filter(_essential, fresh):
        raise ConfigError(f"{path}: has no {name}, which config.model has")
    for name in filter(_essential, lost):
        raise ConfigError(f"{path}: has {name}, which config.model has not")
    _refuse_frozen(
        program, [name for name in fresh if name.split(".")[-1] not in lora.NAMES]
    )
    log.info("%s: %s", path, _summary(len(new) - len(fresh), fresh, grown, lost))
    for line in list_changes(origin.config.model, program.config.model, "config.model"):
        log.info("%s: %s", path, line)
    made = _draw(program, key, [*fresh, *grown])
    flat = {name: old[name] for name in new if name in old} | made
    for name in grown:
        flat[name] = _overlay(made[name], old[name])
    leaves = [flat[name] for name in new]
    return jax.tree.unflatten(jax.tree.structure(program.state_shapes.params), leaves)


def _open_workdir(directory: Path) -> Origin:
    config = read_config(directory)
    tokenizer = dataclasses.replace(
        config.tokenizer, kind="tokenizers", path=str(directory / "tokenizer")
    )

    read = lambda model, mesh: restore_params(directory, config, model, mesh)
    return Origin(dataclasses.replace(config, tokenizer=tokenizer), read)


def _essential(name: str) -> bool:
    """Return whether a parameter is neither of a head nor of an adapter."""
    parts = name.split(".")
    return parts[0] not in HEADS and parts[-1] not in lora.NAMES


def _grew(
    name: str, old: dict[str, Any], new: dict[str, Any], axes: dict[str, Any]
) -> bool:
    """Return whether a parameter got longer where it may.

    Raises:
      ConfigError: it has changed otherwise.
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


def _refuse_frozen(program: Program, fresh: Sequence[str]) -> None:
    """Raise if what is new would never learn.

    Raises:
      ConfigError: naming a parameter.
    """
    learns = named_leaves(program.optimizer.learns)
    for name in fresh:
        if not learns[name]:
            raise ConfigError(
                f"config.optim.trainable: {name} is new, and frozen it would stay as "
                f"drawn; add '{name.split('.')[0]}.*'"
            )


def _draw(program: Program, key: Array, names: Sequence[str]) -> dict[str, Array]:
    """Initialise only the named parameters, each laid out as the state has it."""
    if not names:
        return {}
    shapes = named_leaves(program.state_shapes.params)

    def init(key: Array) -> dict[str, Array]:
        flat = named_leaves(program.model.init(key))
        return {name: flat[name] for name in names}

    shardings = {name: shapes[name].sharding for name in names}
    return jax.jit(init, out_shardings=shardings)(key)


def _overlay(fresh: Array, old: Array) -> Array:
    """Return `fresh` with `old` in its corner."""
    put = functools.partial(jax.lax.dynamic_update_slice, start_indices=[0] * old.ndim)
    return jax.jit(put, out_shardings=fresh.sharding)(fresh, old)


def _summary(
    num_read: int, fresh: Sequence[str], grown: Sequence[str], lost: Sequence[str]
) -> str:
    parts = [f"{num_read} parameters read"]
    for word, names in (("fresh", fresh), ("grown", grown), ("left out", lost)):
        if names:
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            parts.append(f"{word}: {', '.join(names[:6])}{more}")
    return "; ".join(parts)
