"""What a run's meter says of its steps."""

import types

import pytest

from lmjax.config.experiment import parse
from lmjax.training.throughput import Meter


def test_padding_is_that_of_all_steps_since_the_last_line():
    """Other metrics are those of the very step that is written."""
    given = {"tokenizer": {"kind": "bytes"}, "data": {"source": "python_stdlib"}}
    config = parse({**given, "num_steps": 6, "log": {"every_steps": 3}})
    lines, quiet = [], types.SimpleNamespace(update=lambda *_: None)
    log = types.SimpleNamespace(write=lambda step, _, values: lines.append(values))
    model = types.SimpleNamespace(config=types.SimpleNamespace(dtype="float32"))
    train_step = types.SimpleNamespace(num_compilations=1)
    program = types.SimpleNamespace(
        config=config, flops_per_token=1.0, model=model, train_step=train_step
    )
    meter = Meter(log, quiet, program=program)
    for step in range(1, 7):
        sums = {"loss": (step, 1), "grad_norm": (1, 1), "padding": (step, 10 * step**2)}
        meter.add(step, sums, num_tokens=1)
    with meter.paused():
        pass
    assert [line["loss"] for line in lines] == [3, 6]
    shares = [6 / 140, 15 / 770]
    assert [line["padding"] for line in lines] == pytest.approx(shares)
