"""What verbs print about a workdir or a config, beside training it."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from lmjax import models, tasks
from lmjax.config.experiment import Config
from lmjax.data import example_datasets, pipeline
from lmjax.data.datasets import Datasets
from lmjax.data.stores import manifest
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.inference.language_model import load
from lmjax.models import flops
from lmjax.parallel import sharding
from lmjax.run import workdir
from lmjax.run.checkpoint import Step
from lmjax.train.compiled import make_program
from lmjax.train.evaluate import Evaluation, prediction_metric_names


def after_training(config: Config, directory: Path) -> None:
    """Print where the results lie, beside compressors if the config asks, a sample."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    last = {line["split"]: line for line in _metrics(directory / "metrics.jsonl")}
    found = [p for p in directory.glob("samples/*.txt") if p.stem.isdecimal()]
    samples = sorted(found, key=lambda p: int(p.stem))
    if samples:
        console.print(f"\n{samples[-1].read_text(errors='replace')}", markup=False)
    task = tasks.build(config.task)
    names = task.headline_metrics
    if config.task.compares_predictions:
        names = ("loss", *prediction_metric_names(config))
    table = Table("split", *(name.replace("_", " ") for name in names))
    for split in ("valid", "test"):
        if split in last:
            values = (last[split].get(name) for name in names)
            cells = ("-" if value is None else f"{value:.4g}" for value in values)
            table.add_row(split, *cells)
    if config.eval.compressors and task.scores_text:
        documents = pipeline.open_documents(config)["valid"]
        for name, bits in pipeline.compressors(documents).items():
            table.add_row(f"valid, {name} -9", "", "", f"{bits:.4g}")
    console.print(table)
    written = ("metrics.jsonl", "tensorboard/", "checkpoints/", "samples/")
    there = ", ".join(name for name in written if (directory / name).exists())
    console.print(f"results: {directory}/ ({there})", markup=False)
    if example_datasets.reads_examples(config):
        command = f"lmjax predict --workdir={directory} --input=... --output=..."
        console.print(f"next:    {command}", markup=False)
    elif not config.model.mute:
        command = f"lmjax generate --workdir={directory} --prompt='...'"
        console.print(f"next:    {command}", markup=False)


def evaluate_workdir(
    directory: Path, *, step: Step, overrides: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the metrics of a checkpoint on the valid split, then on the test split.

    The run's own stores are read, whatever has become of its corpus, unless overrides
    point `data` elsewhere.

    Raises:
      ConfigError: an override of what is the run's own, or text that cannot be read.
    """
    saved = workdir.read_config(directory)
    lm = load(directory, step=step, overrides=overrides)
    datasets = _held_out(lm.config, saved, lm.tokenizer, directory=directory)
    with jax.set_mesh(lm.mesh):
        evaluation = Evaluation(make_program(lm.config, lm.mesh), datasets)
        for split in datasets.stores:
            metrics = evaluation.metrics(split, lm.params)
            yield {"step": lm.step, "split": split, **metrics}


def _held_out(
    config: Config, saved: Config, tokenizer: Tokenizer, *, directory: Path
) -> Datasets:
    """Open the stores of a run, or make those of the text that overrides point to."""
    same = pipeline.same_text(config, saved)
    stores = manifest.open_held_out(directory) if same else None
    if stores:
        return Datasets(tokenizer=tokenizer, stores=stores)
    # The run's own stores are not to be replaced.
    place = config.data.store or str(directory / "store" / "eval")
    data = dataclasses.replace(config.data, store=place)
    config = dataclasses.replace(config, data=data)
    return pipeline.prepare_held_out(config, tokenizer, workdir=directory)


def _metrics(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of metrics.jsonl, damaged lines left out."""
    for line in file.read_bytes().splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and "split" in values:
            yield values


def describe(config: Config, *, num_devices: int) -> None:
    """Print each parameter's shape, axes and part on one device, then the totals.

    Args:
      config: the experiment.
      num_devices: devices of a mesh that need not exist; 0 for as many as the mesh
        says (1 for an axis of -1).
    """
    config = pipeline.with_vocabulary(config)
    axes = dataclasses.asdict(config.mesh).values()
    mesh = sharding.abstract_mesh(
        config.mesh, num_devices or math.prod(max(axis, 1) for axis in axes)
    )
    model = models.build(config.model, platform="cpu")
    shardings = sharding.param_shardings(model.axes, model.shapes, mesh)
    table = Table(box=None)
    for column in ("parameter", "shape", "axes", "sharding", "on a device"):
        table.add_column(column, no_wrap=True)
    total = local = 0
    for (path, leaf), names, s in zip(
        jax.tree_util.tree_leaves_with_path(model.shapes),
        jax.tree.leaves(model.axes, is_leaf=lambda x: isinstance(x, tuple)),
        jax.tree.leaves(shardings),
        strict=True,
    ):
        part = s.shard_shape(leaf.shape)
        total, local = total + leaf.size, local + math.prod(part)
        table.add_row(
            jax.tree_util.keystr(path, simple=True, separator="."),
            _shape(leaf.shape),
            ", ".join(names),
            ", ".join(axis or "-" for axis in s.spec),
            _shape(part),
        )
    # Wide enough for whole names; a terminal wraps what does not fit it.
    console = Console(highlight=False, soft_wrap=True, width=200)
    console.print(table)
    data = config.data
    batch = tasks.build(config.task).batch_shapes(
        1, data.length, target_length=data.target_length
    )
    cost = flops.flops_per_token(model.config, model.shapes, batch=batch)
    console.print(f"parameters: {total:,} ({total * 4 / 2**30:.3g} GiB in float32)")
    console.print(f"mesh: {dict(mesh.shape)}: {local:,} parameters on each device")
    console.print(f"training FLOPs a token: {cost:.4g} (length {config.data.length})")


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
