"""Evaluate the checkpoint of a workdir: `lmjax eval`."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from lmjax.config.experiment import Config
from lmjax.data import pipeline
from lmjax.data.datasets import Datasets
from lmjax.data.stores import run_stores
from lmjax.data.stores.verification import verify
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.inference.language_model import load
from lmjax.run import workdir
from lmjax.run.checkpoint import Step
from lmjax.training.compiled import make_program
from lmjax.training.evaluate import Evaluation
from lmjax.training.init_from import load_reference


def evaluate_workdir(
    directory: Path, *, step: Step, overrides: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the metrics of a checkpoint on the valid split, then on the test split.

    The stores in the workdir are read: the files that they were built from need not
    exist any more, unless overrides of `data` name other data.

    Raises:
      UserError: an override changes what training has fixed, or data cannot be read.
    """
    saved = workdir.read_config(directory)
    lm = load(directory, step=step, overrides=overrides)
    datasets = _open_held_out(lm.config, saved, lm.tokenizer, directory=directory)
    verify([store for opened in datasets.stores.values() for store in opened])
    with jax.set_mesh(lm.mesh):
        program = make_program(lm.config, lm.mesh)
        evaluation = Evaluation(program, datasets, load_reference(program, directory))
        evaluation.check()
        for split in datasets.stores:
            metrics = evaluation.metrics(split, lm.params)
            metrics.pop("signatures", None)  # they are logged; a line has numbers
            yield {"step": lm.step, "split": split, **metrics}


def _open_held_out(
    config: Config, saved: Config, tokenizer: Tokenizer, *, directory: Path
) -> Datasets:
    """Open the held-out stores of a run, or build those of the data in overrides."""
    same = pipeline.reads_same_text(config, saved)
    stores = run_stores.open_held_out_stores(directory) if same else None
    if stores:
        return Datasets(tokenizer=tokenizer, stores=stores)
    # In a directory of their own: the stores of the run stay.
    store = config.data.store or str(directory / "store" / "eval")
    data = dataclasses.replace(config.data, store=store)
    config = dataclasses.replace(config, data=data)
    return pipeline.prepare_held_out(config, tokenizer, workdir=directory)
