"""The teacher of a run: a trained model in a workdir, which its step asks."""

import dataclasses
import functools
from pathlib import Path

import jax
from jax.sharding import Mesh

from lmjax import models
from lmjax.config.experiment import Config
from lmjax.config.preference import PreferenceConfig
from lmjax.data.sources.documents import expand_path
from lmjax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from lmjax.errors import ConfigError, UserError
from lmjax.models import Model
from lmjax.nn import lora
from lmjax.parallel import sharding
from lmjax.run.checkpoint import restore_params
from lmjax.run.workdir import read_config
from lmjax.tasks.distill import Teacher
from lmjax.types import Params, named_leaves

_LEAF = "config.task.distill.teacher"
_INPUT_LEAVES = ("casing", "mark_predicate")  # of a task: the types of tokens


def check(config: Config) -> None:
    """Check before training that the teacher knows what the run is about, if any.

    Its tokenizer is checked by `load_teacher`.

    Raises:
      ConfigError: there is no such workdir, or its task, labels, vocabulary or sizes do
        not suit the run.
    """
    if not config.task.distill.teacher:
        return
    teacher, where = _read(config)
    own, model = config.model, teacher.model
    if teacher.task.kind != config.task.kind:
        raise ConfigError(
            f"{where}: was trained for config.task.kind = {teacher.task.kind!r}, not "
            f"{config.task.kind!r}"
        )
    if {*teacher.task.output_names} != {*config.task.output_names}:
        raise ConfigError(
            f"{where}: has the labels {', '.join(teacher.task.output_names)}, not "
            f"{', '.join(config.task.output_names)}"
        )
    # A text is classified whole, but words and tokens at places that differ.
    reads = lambda m: (m.is_encoder_decoder, m.is_bidirectional)
    if reads(model) != reads(own) and config.task.kind != "classify":
        raise ConfigError(
            f"{where}: its config.model.kind = {model.kind!r} reads texts otherwise "
            f"than {own.kind!r}"
        )
    for leaf in _INPUT_LEAVES:
        found, wanted = (getattr(c.task, leaf, None) for c in (teacher, config))
        if found != wanted:
            raise ConfigError(
                f"{where}: has config.task.{leaf} = {found!r}, not {wanted!r}"
            )
    if model.vocab_size != own.vocab_size:
        raise ConfigError(
            f"{where}: its config.model.vocab_size = {model.vocab_size}, but here "
            f"{own.vocab_size}"
        )
    longest = max(config.data.length, config.data.target_length)
    if longest > model.longest_text:
        raise ConfigError(
            f"{where}: its config.model.max_length = {model.max_length}, but here "
            f"config.data has rows of {longest}"
        )
    if config.task.distill.hidden and model.width != own.width:
        raise ConfigError(
            f"config.task.distill.hidden = {config.task.distill.hidden:g}: the hidden "
            f"states of {config.task.distill.teacher} are {model.width} wide, here "
            f"{own.width}; config.task.distill.relations compares any"
        )


def shape_teacher(config: Config, mesh: Mesh) -> Teacher | None:
    """Return the teacher of a run with shapes and shardings for parameters, if any.

    Raises:
      ConfigError: as for `check`, or the mesh does not divide a size.
    """
    if needs_copy(config):
        model = _build(config, config, mesh)
        return Teacher(model=model, params=_shapes(model, mesh))
    if not config.task.distill.teacher:
        return None
    check(config)
    own, _ = _read(config)
    model = _build(own, config, mesh)
    labels = own.task.output_names
    return Teacher(
        model=model,
        params=_shapes(model, mesh),
        labels=tuple(labels.index(label) for label in config.task.output_names),
    )


def needs_copy(config: Config) -> bool:
    """Return whether the task compares the model with a copy of how it began."""
    return _has_reference(config) and not _trains_adapters_alone(config)


def starts_without_adapters(config: Config) -> bool:
    """Return whether the task compares the model with itself without its adapters.

    Then they must add nothing as the run begins.
    """
    return _has_reference(config) and _trains_adapters_alone(config)


def _has_reference(config: Config) -> bool:
    task = config.task
    return isinstance(task, PreferenceConfig) and task.needs_reference


@functools.cache
def _trains_adapters_alone(config: Config) -> bool:
    if not config.model.adapter_rank:
        return False
    names = named_leaves(models.build(config.model, platform="cpu").shapes)
    trained = [name for name in names if config.optim.is_trainable(name)]
    return all(name.rpartition(".")[2] in lora.NAMES for name in trained)


def _shapes(model: Model, mesh: Mesh) -> Params:
    shardings = sharding.param_shardings(model.axes, model.shapes, mesh)
    return sharding.with_shardings(model.shapes, shardings)


def load_teacher(
    config: Config, shaped: Teacher | None, *, tokenizer: Tokenizer, mesh: Mesh
) -> Teacher | None:
    """Return the teacher of a run with its parameters, split as the mesh says.

    Args:
      config: of the run.
      shaped: of `shape_teacher`.
      tokenizer: of the run.
      mesh: of the run.

    Raises:
      UserError: its parameters cannot be read.
      ConfigError: it has another tokenizer.
    """
    if shaped is None:
        return None
    own, where = _read(config)
    directory = _directory(config)
    found = load_tokenizer(directory / "tokenizer")
    if found.fingerprint() != tokenizer.fingerprint():
        raise ConfigError(f"{where}: has another tokenizer than this run")
    params = restore_params(directory, own, shaped.model, mesh)
    return dataclasses.replace(shaped, params=params)


def teaching_flops(teacher: Teacher | None, batch: dict[str, jax.Array]) -> float:
    """Return the FLOPs of asking the teacher about one token: a forward pass."""
    return 0.0 if teacher is None else teacher.model.flops_per_token(batch) / 3


def _directory(config: Config) -> Path:
    return expand_path(config.task.distill.teacher, leaf=_LEAF)


def _read(config: Config) -> tuple[Config, str]:
    """Return the config of the teacher, and how errors begin."""
    where = f"{_LEAF} = {config.task.distill.teacher!r}"
    directory = _directory(config)
    try:
        return read_config(directory), where
    except UserError as error:  # it names the flag of other verbs
        text = str(error).removeprefix(f"--workdir={directory}: ")
        raise ConfigError(f"{where}: {text}") from error


def _build(own: Config, config: Config, mesh: Mesh) -> Model:
    """Return the network of the teacher, which computes as that of the run does."""
    model = own.model.for_inference()
    model = dataclasses.replace(model, dtype=config.model.dtype)
    platform = mesh.devices.flat[0].platform
    return models.build(model, platform=platform, mesh=mesh)
