"""Every experiment parses, and its full-size model fits its axes and its mesh."""

import dataclasses
import math
from pathlib import Path

import pytest

from experiments import base
from lmjax import models
from lmjax.config import experiment as config
from lmjax.parallel import sharding

ROOT = Path(__file__).parent.parent / "experiments"
FILES = sorted(ROOT.glob("*/[!_]*.py"))
# Stands in for the model that fine-tuning starts from: the shape of MiniLM.
PRETRAINED = {
    "model": {
        **base.bert(dim=384, num_layers=6, num_heads=12, max_length=512),
        "vocab_size": 30_522,
    },
    "tokenizer": {"kind": "bytes"},
}


def non_default(section):
    """Return the leaves that differ from the defaults of their class, and each kind."""
    changes = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            changes |= {field.name: inner} if (inner := non_default(value)) else {}
        elif field.name == "kind" or value != field.default:
            nested = field.name == "mixture"
            changes[field.name] = [*map(non_default, value)] if nested else value
    return changes


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_full_size_model_fits_its_mesh(file, golden):
    experiment = config.load(str(file), defaults=lambda _: PRETRAINED)
    changes = non_default(experiment)
    assert config.parse(changes) == experiment
    golden(f"config_{file.parent.name}_{file.stem}", changes)
    vocab_size = experiment.model.vocab_size or experiment.tokenizer.vocab_size or 258
    model = models.build(
        dataclasses.replace(experiment.model, vocab_size=vocab_size), platform="cpu"
    )
    axes = dataclasses.asdict(experiment.mesh)
    # An axis of -1 takes the remaining devices: here, eight.
    num_devices = math.prod(size if size > 0 else 8 for size in axes.values())
    mesh = sharding.abstract_mesh(experiment.mesh, num_devices)
    sharding.param_shardings(model.axes, model.shapes, mesh)


def test_there_are_experiments():
    assert FILES
