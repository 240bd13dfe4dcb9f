"""Reports: of a finished run, and of the parameters of a model."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from lmjax import models, tasks
from lmjax.config.experiment import Config
from lmjax.data import compressors, example_datasets, pipeline
from lmjax.parallel import sharding
from lmjax.run.metric_log import read_metrics
from lmjax.training.evaluate import prediction_metric_names
from lmjax.types import named_leaves


def after_training(config: Config, directory: Path) -> None:
    """Print the last sample, a table of the final metrics, and where the results are.

    The table has a line for gzip and for xz if `eval.compressors` is set.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    last = {line["split"]: line for line in read_metrics(directory)}
    samples = [p for p in directory.glob("samples/*.txt") if p.stem.isdecimal()]
    if samples:
        newest = max(samples, key=lambda path: int(path.stem))
        console.print(f"\n{newest.read_text(errors='replace')}", markup=False)
    task = tasks.build(config.task)
    names = task.headline_metrics
    if config.task.compares_predictions:
        names = ("loss", *prediction_metric_names(config))
    table = Table("split", *(name.replace("_", " ") for name in names))
    for split in ("valid", "test"):
        if split in last:
            values = (last[split].get(name) for name in names)
            cells = (
                f"{value:.4g}" if isinstance(value, int | float) else "-"
                for value in values
            )
            table.add_row(split, *cells)
    if config.eval.compressors and task.scores_text:
        documents = pipeline.open_sources(config)["valid"]
        for name, bits in compressors.bits_per_byte(documents).items():
            table.add_row(f"valid, {name} -9", "", "", f"{bits:.4g}")
    console.print(table)
    outputs = ("metrics.jsonl", "tensorboard/", "checkpoints/", "samples/")
    existing = ", ".join(name for name in outputs if (directory / name).exists())
    console.print(f"results: {directory}/ ({existing})", markup=False)
    if example_datasets.reads_examples(config):
        command = f"lmjax predict --workdir={directory} --input=... --output=..."
        console.print(f"next:    {command}", markup=False)
    elif config.model.can_generate:
        command = f"lmjax generate --workdir={directory} --prompt='...'"
        console.print(f"next:    {command}", markup=False)


def describe(config: Config, *, num_devices: int) -> None:
    """Print the shape, axes and shard of each parameter, and the totals.

    Args:
      config: the experiment.
      num_devices: the devices to shard over, which need not exist; 0: those of
        `config.mesh`, where an axis of -1 counts as 1.
    """
    config = pipeline.resolve_vocabulary(config)
    axes = dataclasses.asdict(config.mesh).values()
    mesh = sharding.abstract_mesh(
        config.mesh, num_devices or math.prod(max(axis, 1) for axis in axes)
    )
    model = models.build(config.model, platform="cpu")
    shardings = sharding.param_shardings(model.axes, model.shapes, mesh)
    table = Table(box=None)
    for column in ("parameter", "shape", "axes", "sharding", "shard"):
        table.add_column(column, no_wrap=True)
    total = local = 0
    for (name, leaf), names, s in zip(
        named_leaves(model.shapes).items(),
        jax.tree.leaves(model.axes, is_leaf=lambda x: isinstance(x, tuple)),
        jax.tree.leaves(shardings),
        strict=True,
    ):
        shard = s.shard_shape(leaf.shape)
        total, local = total + leaf.size, local + math.prod(shard)
        table.add_row(
            name,
            _shape(leaf.shape),
            ", ".join(names),
            ", ".join(axis or "-" for axis in s.spec),
            _shape(shard),
        )
    # Wide enough for all names; a narrower terminal wraps the lines.
    console = Console(highlight=False, soft_wrap=True, width=200)
    console.print(table)
    data = config.data
    batch = tasks.build(config.task).batch_shapes(
        1, data.length, target_length=data.target_length
    )
    cost = model.flops_per_token(batch)
    console.print(f"parameters: {total:,} ({total * 4 / 2**30:.3g} GiB in float32)")
    console.print(f"mesh: {dict(mesh.shape)}: {local:,} parameters per device")
    console.print(f"training FLOPs per token: {cost:.4g} (length {config.data.length})")


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
