"""Hugging Face directories to workdirs, and back; without PyTorch."""

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from lmjax import models, sharding, workdir
from lmjax.checkpoint import Checkpoints
from lmjax.config import Config, ConfigError, MeshConfig, TokenizerConfig, nearest
from lmjax.interop.families import choose_family, find_family, read_config
from lmjax.interop.staging import refuse_occupied, staged
from lmjax.interop.tensors import open_tensors, read_json, write_tensors
from lmjax.interop.transfer import export_tensors, import_params
from lmjax.models import Model
from lmjax.types import Params

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}
# What a hub is asked for: no pickles, no weights of other frameworks.
_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.spm", "*.txt", "*.bpe", "*.jinja"]
_PATIENCE_SECONDS = 2.0  # after which a progress bar is shown


@dataclasses.dataclass(frozen=True)
class Transferred:
    """What an import or export has moved."""

    directory: Path
    architecture: str  # theirs
    num_parameters: int
    tokenizer: str

    def __str__(self) -> str:
        return (
            f"{self.directory}: {self.architecture}, {self.num_parameters:,} "
            f"parameters, tokenizer: {self.tokenizer}"
        )


def import_hf(
    source: str | Path, directory: str | Path, mesh: Mesh | None = None
) -> Transferred:
    """Make a workdir of a Hugging Face directory, or of a model on its hub.

    Args:
      source: a directory with config.json and safetensors files, or ORG/NAME.
      directory: the workdir to be; nothing is left there if anything goes wrong.
      mesh: where the parameters pass through; by default all devices, split.

    Raises:
      ConfigError: the model cannot be read, or the workdir holds something already.
    """
    target = Path(directory).expanduser()
    refuse_occupied(target, flag="--workdir")
    origin = _locate(str(source))
    where = str(origin / "config.json")
    values = read_json(origin / "config.json")
    family = find_family(values, where=where)
    tensors = open_tensors(origin)
    config = read_config(family, values, tensors.entries, where=where)
    with staged(target, flag="--workdir") as part:
        tokenizer = _import_tokenizer(origin, part)
        if tokenizer is not None:
            config = dataclasses.replace(config, tokenizer=tokenizer)
        model, shardings = _place(config, mesh)
        total = sum(entry.num_bytes for entry in tensors.entries.values())
        with _progress(f"reading {origin.name}", total) as advance:
            params = import_params(
                tensors,
                family.table(config.model),
                model.shapes,
                shardings,
                on_bytes=advance,
            )
        checkpoints = Checkpoints(part, config.checkpoint)
        checkpoints.save_params(params, step=0)
        checkpoints.close()
        if jax.process_index() == 0:
            workdir.write_config(part, config)
    return Transferred(
        directory=target,
        architecture=(values.get("architectures") or [family.model_type])[0],
        num_parameters=_count(model.shapes),
        tokenizer="none" if tokenizer is None else tokenizer.kind,
    )


def export_hf(
    directory: str | Path,
    target: str | Path,
    *,
    step: int | None = None,
    dtype: str = "float32",
) -> Transferred:
    """Write the model of a workdir as a directory that transformers reads.

    Args:
      directory: the workdir.
      target: the directory to be; nothing is left there if anything goes wrong.
      step: of a checkpoint; by default the newest.
      dtype: of the weights in the files.

    Raises:
      ConfigError: no model of transformers computes what this one does.
    """
    if dtype not in DTYPES:
        hint = nearest(dtype, list(DTYPES))
        raise ConfigError(f"--dtype={dtype}: allowed: {', '.join(DTYPES)}{hint}")
    source, goal = Path(directory).expanduser(), Path(target).expanduser()
    refuse_occupied(goal, flag="--to")
    config = workdir.read_config(source)
    model, shardings = _place(config, None)
    family, values = choose_family(model)
    architecture = values["architectures"][0]
    table = family.table(config.model)
    with staged(goal, flag="--to") as part:
        params = _restore(source, config, model, shardings, step)
        specs, arrays = export_tensors(params, table, dtype=DTYPES[dtype])
        if architecture.endswith("Model") and family.kind == "encoder":  # no head
            specs = {name.removeprefix(table.prefix): s for name, s in specs.items()}
        total = sum(spec.num_bytes for spec in specs.values())
        with _progress(f"writing {goal.name}", total) as advance:
            arrays = _counted(arrays, advance)
            if jax.process_index() == 0:
                write_tensors(part, specs, arrays)
            for _ in arrays:  # a part of each array lies with the other processes
                pass
        if jax.process_index() == 0:
            text = json.dumps({**values, "torch_dtype": dtype}, indent=2)
            (part / "config.json").write_text(text + "\n")
    return Transferred(goal, architecture, _count(model.shapes), "none")


def _import_tokenizer(origin: Path, part: Path) -> TokenizerConfig | None:
    """Put the tokenizer of a Hugging Face directory into a workdir, if it has one."""
    return None


def _locate(source: str) -> Path:
    """Return a local directory: the one named, or a snapshot of the hub's model."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        raise ConfigError(
            f"--from={source}: neither a directory nor the name of a model (ORG/NAME)"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"--from={source}: no such directory; to fetch a model of that name, "
            "install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(source, allow_patterns=_PATTERNS))
    except Exception as error:  # of its many: the network, the name, a licence
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"--from={source}: no such directory, and it cannot be fetched: {first}"
        ) from error


def _place(config: Config, mesh: Mesh | None) -> tuple[Model, Params]:
    """Return the model, and where its parameters go: split if their sizes allow it."""
    meshes = [mesh] if mesh is not None else [MeshConfig(data=1, fsdp=-1), MeshConfig()]
    for candidate in meshes:
        if isinstance(candidate, MeshConfig):
            candidate = sharding.make_mesh(candidate)
        platform = candidate.devices.flat[0].platform
        model = models.build(config.model, platform=platform)
        try:
            return model, sharding.param_shardings(model.axes, model.shapes, candidate)
        except ConfigError:
            if candidate is mesh:
                raise
    raise AssertionError("copies on all devices always fit")


def _restore(
    source: Path, config: Config, model: Model, shardings: Params, step: int | None
) -> Params:
    like = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        model.shapes,
        shardings,
    )
    checkpoints = Checkpoints(source, config.checkpoint, read_only=True)
    ema = config.optim.ema_decay > 0
    return checkpoints.restore_params(like, step=checkpoints.find(step), ema=ema)


def _count(shapes: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _counted(
    arrays: Iterator[np.ndarray], advance: Callable[[int], None]
) -> Iterator[np.ndarray]:
    for array in arrays:
        yield array
        advance(array.nbytes)
        del array


@contextlib.contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield what is told of bytes done; shows a bar once that takes its time."""
    begin = time.monotonic()
    bar = Progress(
        TextColumn(title),
        BarColumn(),
        DownloadColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(title, total=total)

    def advance(num_bytes: int) -> None:
        bar.advance(task, num_bytes)
        if time.monotonic() - begin > _PATIENCE_SECONDS and jax.process_index() == 0:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()
