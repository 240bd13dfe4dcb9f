"""Hugging Face directories to workdirs, and back; without PyTorch."""

import contextlib
import dataclasses
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from lmjax import models
from lmjax.config.experiment import Config, MeshConfig
from lmjax.config.tokenizer import TokenizerConfig
from lmjax.data.tokenizers.plain import Ids
from lmjax.data.tokenizers.sentencepiece import SentencePiece
from lmjax.data.tokenizers.tokenizer import (
    Tokenizer,
    find_tokenizer,
    load_tokenizer,
    make_tokenizer,
)
from lmjax.errors import ConfigError, UserError, nearest
from lmjax.interop import labels
from lmjax.interop.layout import Family, Table
from lmjax.interop.registry import choose_family, find_family, read_config
from lmjax.interop.staging import refuse_occupied, staged
from lmjax.interop.tensors import Spec, Tensors, open_tensors, read_json, write_tensors
from lmjax.interop.transfer import export_tensors, import_params
from lmjax.models import Model
from lmjax.nn import lora
from lmjax.parallel import sharding
from lmjax.run import workdir
from lmjax.run.checkpoint import Checkpoints, Step, save_params
from lmjax.types import Params

log = logging.getLogger(__name__)

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


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
    """A Hugging Face directory: its config is read, its tensors are not yet."""

    directory: Path
    family: Family
    architecture: str  # theirs
    config: Config
    tensors: Tensors

    def read(self, model: Model, shardings: Params) -> Params:
        """Return the parameters, float32, each in its sharding.

        Raises:
          ConfigError: the tensors are not those of the config.
        """
        total = sum(entry.num_bytes for entry in self.tensors.entries.values())
        with _progress(f"reading {self.directory.name}", total) as advance:
            return import_params(
                self.tensors,
                labels.named(self.family.table(self.config.model), self.config.task),
                model.shapes,
                shardings,
                on_bytes=advance,
            )


def open_hf(source: str | Path, *, flag: str = "--from") -> Opened:
    """Open a local Hugging Face directory, or fetch one from the hub by its name.

    Raises:
      ConfigError: it holds no model that lmjax knows.
    """
    origin = _locate(str(source), flag)
    where = str(origin / "config.json")
    values = read_json(origin / "config.json")
    family = find_family(values, where=where)
    tensors = open_tensors(origin)
    config = read_config(family, values, tensors.entries, where=where)
    tokenizer = find_tokenizer(origin)
    if tokenizer is not None:
        config = dataclasses.replace(config, tokenizer=tokenizer)
    return Opened(
        directory=origin,
        family=family,
        architecture=(values.get("architectures") or [family.model_type])[0],
        config=config,
        tensors=tensors,
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
    target = Path(directory).expanduser().absolute()
    refuse_occupied(target, flag="--workdir")
    opened = open_hf(source)
    _tell_unheard(opened.directory)
    with staged(target, flag="--workdir") as part:
        tokenizer = _tokenizer(opened)
        config = opened.config
        if jax.process_index() == 0:
            tokenizer.save(part / "tokenizer")
        if config.tokenizer.kind != "ids":  # the workdir stands alone
            kept = dataclasses.replace(config.tokenizer, path=str(target / "tokenizer"))
            config = dataclasses.replace(config, tokenizer=kept)
        model, shardings = place(config, mesh)
        params = opened.read(model, shardings)
        save_params(part, params)
        if jax.process_index() == 0:
            workdir.write_config(part, config)
    return Transferred(
        directory=target,
        architecture=opened.architecture,
        num_parameters=_count(model.shapes),
        tokenizer=_described(opened.config.tokenizer),
    )


def export_hf(
    directory: str | Path,
    target: str | Path,
    *,
    step: Step = None,
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
    task = workdir.read_config(source).task
    model, params = labels.used(*merged(*restore(source, step)), task)
    family, values = choose_family(model)
    values |= labels.settings_of(task, values["architectures"][0])
    architecture = values["architectures"][0]
    table = labels.named(family.table(model.config), task)
    tokenizer = load_tokenizer(source / "tokenizer")
    files = _tokenizer_files(tokenizer)
    with staged(goal, flag="--to") as part:
        specs, arrays = export_tensors(params, table, dtype=DTYPES[dtype])
        cut = surplus_prefix(family, architecture, table)
        specs = {name.removeprefix(cut): spec for name, spec in specs.items()}
        _write_weights(part, specs, arrays, title=f"writing {goal.name}")
        if jax.process_index() == 0:
            special = _special_settings(tokenizer)
            values = {**special, **values, "torch_dtype": dtype}
            (part / "config.json").write_text(json.dumps(values, indent=2) + "\n")
            for name, content in files.items():
                (part / name).write_bytes(content)
    described = ", ".join(sorted(files)) or "none"
    return Transferred(goal, architecture, _count(model.shapes), described)


def surplus_prefix(family: Family, architecture: str, table: Table) -> str:
    """Return what names in the table begin with, but not in a model without head."""
    headless = family.kind == "encoder" and architecture.endswith("Model")
    return table.prefix if headless else ""


def _tokenizer(opened: Opened) -> Tokenizer:
    """Return the directory's tokenizer, or one that reads and writes ids.

    Raises:
      ConfigError: it cannot be read, or has more ids than the model.
    """
    size = opened.config.model.vocab_size
    if opened.config.tokenizer.kind == "ids":
        return Ids(size, stop_ids=_stop_ids(opened.directory, size))
    tokenizer = make_tokenizer(opened.config.tokenizer, documents=None, seed=0)
    if tokenizer.vocab_size > size:
        raise ConfigError(
            f"{opened.directory}: its tokenizer has {tokenizer.vocab_size} ids, but "
            f"config.json says vocab_size = {size}"
        )
    return tokenizer


# Settings of generate() in transformers that ours has no word for.
_UNHEARD = (
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
)


def _tell_unheard(origin: Path) -> None:
    """Say which settings of generation are not honoured."""
    for name in ("generation_config.json", "config.json"):
        values = read_json(origin / name) if (origin / name).is_file() else {}
        for key in _UNHEARD:
            if values.get(key):
                log.warning("%s: %s = %s: not honoured", name, key, values[key])


def _stop_ids(origin: Path, vocab_size: int) -> tuple[int, ...]:
    """Return what ends a text, as the model's own settings say it."""
    for name in ("generation_config.json", "config.json"):
        if (origin / name).is_file():
            found = read_json(origin / name).get("eos_token_id")
            listed = found if isinstance(found, list) else [found]
            if ids := [i for i in listed if type(i) is int and 0 <= i < vocab_size]:
                return tuple(ids)
    return ()


def _tokenizer_files(tokenizer: Tokenizer) -> Mapping[str, bytes]:
    """Return what a Hugging Face directory has of a tokenizer."""
    if isinstance(tokenizer, SentencePiece):
        return {"tokenizer.model": tokenizer.model}
    return getattr(tokenizer, "files", {})


def _special_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the special ids as config.json has them."""
    stop = [int(i) for i in tokenizer.stop_ids]
    found = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": stop[0] if len(stop) == 1 else stop or None,
        "pad_token_id": tokenizer.pad_id,
    }
    return {key: value for key, value in found.items() if value is not None}


def _described(config: TokenizerConfig) -> str:
    return "none, texts are token ids" if config.kind == "ids" else "its own"


def _locate(source: str, flag: str) -> Path:
    """Return a local directory: the one named, or a snapshot of the hub's model."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        raise ConfigError(
            f"{flag}={source}: neither a directory nor the name of a model (ORG/NAME)"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"{flag}={source}: no such directory; to fetch a model of that name, "
            "install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(source, allow_patterns=_PATTERNS))
    except Exception as error:  # of its many: the network, the name, a licence
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{flag}={source}: no such directory, and it cannot be fetched: {first}"
        ) from error


def place(config: Config, mesh: Mesh | None) -> tuple[Model, Params]:
    """Return the model, and where its parameters go: split if their sizes allow it."""
    meshes = [mesh] if mesh is not None else [MeshConfig(data=1, fsdp=-1), MeshConfig()]
    for candidate in meshes:
        if isinstance(candidate, MeshConfig):
            candidate = sharding.make_mesh(candidate)
        platform = candidate.devices.flat[0].platform
        model = models.build(config.model, platform=platform)
        try:
            return model, sharding.param_shardings(model.axes, model.shapes, candidate)
        except UserError:
            if candidate is mesh:
                raise
    raise AssertionError("copies on all devices always fit")


def restore(source: Path, step: Step) -> tuple[Model, Params]:
    """Return the model of a workdir and its parameters."""
    config = workdir.read_config(source)
    model, shardings = place(config, None)
    like = sharding.with_shardings(model.shapes, shardings)
    checkpoints = Checkpoints(source, config.checkpoint, read_only=True)
    ema = config.optim.ema_decay > 0
    params = checkpoints.restore_params(like, step=checkpoints.find(step), ema=ema)
    return model, params


def merged(model: Model, params: Params) -> tuple[Model, Params]:
    """Return the same model with its adapters, if it has any, in its matrices."""
    if not model.config.adapter_rank:
        return model, params
    params, plain = lora.merge_adapters(params, model.config)
    return models.build(plain, platform=jax.default_backend()), params


def _count(shapes: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _write_weights(
    part: Path, specs: Mapping[str, Spec], arrays: Iterator[np.ndarray], *, title: str
) -> None:
    total = sum(spec.num_bytes for spec in specs.values())
    with _progress(title, total) as advance:
        arrays = _counted(arrays, advance)
        if jax.process_index() == 0:
            write_tensors(part, specs, arrays)
        for _ in arrays:  # a part of each array lies with the other processes
            pass


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
        if bar.live.is_started:  # else it would leave an empty line
            bar.stop()
