"""Contiguous order: every token once an epoch, and rows that go on."""

import dataclasses

import numpy as np
import pytest

from lmjax.config import experiment
from lmjax.config.parse import list_changes
from lmjax.data import pipeline
from lmjax.data.lm import loader
from lmjax.data.lm.contiguous import Lanes
from lmjax.errors import UserError


@pytest.mark.parametrize("num_tokens", [1, 3, 40, 41, 1000, 1003])
@pytest.mark.parametrize(("num_lanes", "length"), [(1, 7), (4, 5), (8, 16)])
def test_every_token_is_read_once_an_epoch(num_tokens, num_lanes, length):
    lanes = Lanes(num_tokens=num_tokens, num_lanes=num_lanes, length=length)
    size = lanes.steps_per_epoch * num_lanes
    read = lambda w: np.concatenate(
        [
            np.arange(a, a + n) % num_tokens
            for a, n in zip(w.starts, w.sizes, strict=True)
        ]
    )
    for epoch in range(3):
        windows = lanes.train(np.arange(size) + epoch * size, seed=1)
        np.testing.assert_array_equal(np.sort(read(windows)), np.arange(num_tokens))


def test_a_row_goes_on_until_its_epoch_ends():
    lanes = Lanes(num_tokens=1003, num_lanes=4, length=16)
    windows = lanes.train(np.arange(4 * 40), seed=0)
    starts, sizes, before = (
        x.reshape(-1, 4) for x in (windows.starts, windows.sizes, windows.before)
    )
    at = lanes.steps_per_epoch
    assert at == 16
    for step in range(1, 40):
        if step % at == 0:
            assert (before[step] == 0).all()
            continue
        expected = (starts[step - 1] + sizes[step - 1]) % 1003
        np.testing.assert_array_equal(starts[step], expected)
        np.testing.assert_array_equal(before[step], before[step - 1] + sizes[step - 1])
    assert len({tuple(starts[e * at]) for e in range(3)}) == 3, "cut at other places"


def test_any_sample_can_be_asked_for():
    lanes = Lanes(num_tokens=500, num_lanes=3, length=8)
    whole = lanes.train(np.arange(300), seed=2)
    for i in (0, 7, 123, 299):
        one = lanes.train(np.array([i]), seed=2)
        assert (one.starts[0], one.sizes[0]) == (whole.starts[i], whole.sizes[i])
    assert (lanes.train(np.arange(300), seed=3).starts != whole.starts).any()


@pytest.fixture(params=[False, True], ids=["one text", "isolated"])
def config(request, corpus):
    return experiment.parse(
        {
            "num_steps": 40,
            "batch_size": 6,
            "tokenizer": {"kind": "bytes"},
            "data": {
                "source": "text",
                "path": corpus,
                "length": 16,
                "holdout_every": 5,
                "order": "contiguous",
                "isolate_documents": request.param,
            },
            "model": {"kind": "recurrent", "dim": 8},
            "eval": {"batch_size": 4},
        }
    )


@pytest.fixture
def datasets(config, tmp_path):
    return pipeline.prepare(config, workdir=tmp_path / "work")


def test_batches_go_on_in_text_and_position(datasets, config):
    """A position of 0 is where a document begins, or an epoch, and nowhere else."""
    batches = list(loader.train_batches(datasets, config, start_step=0))
    (store,) = datasets.stores["train"]
    lanes = Lanes(num_tokens=store.num_tokens, num_lanes=6, length=16)
    begins = set(store.document_starts(0, store.num_tokens).tolist())
    isolate = config.data.isolate_documents
    for step, batch in enumerate(batches):
        samples = loader.sample_indices(config, step=step)
        windows = loader.locate([store], config, samples=samples, window=16)[1]
        real = batch["segments"] > 0
        np.testing.assert_array_equal(real.sum(1), windows.sizes)
        assert (batch["weights"] == real).all()
        for row in range(6):
            places = (windows.starts[row] + np.arange(windows.sizes[row])) % (
                store.num_tokens
            )
            first = step % lanes.steps_per_epoch == 0
            fresh = [
                (first and i == 0) or (isolate and int(at) in begins)
                for i, at in enumerate(places)
            ]
            found = batch["positions"][row][real[row]] == 0
            np.testing.assert_array_equal(found, fresh)
    if not isolate:
        np.testing.assert_array_equal(batches[1]["positions"][0], np.arange(16, 32))


def test_a_resumed_run_sees_the_same_batches(datasets, config):
    whole = list(loader.train_batches(datasets, config, start_step=0))
    rest = list(loader.train_batches(datasets, config, start_step=23))
    for a, b in zip(whole[23:], rest, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_hosts_divide_the_same_lanes(datasets, config):
    whole = next(loader.train_batches(datasets, config, start_step=5))
    for rows in np.split(np.arange(6), 3):
        part = next(loader.train_batches(datasets, config, start_step=5, rows=rows))
        np.testing.assert_array_equal(part["tokens"], whole["tokens"][rows])


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 4])
def test_evaluation_reads_a_text_in_one_row(datasets, config, parts, batch_size):
    """A device's share of a batch is one long row; the others' are padding."""
    given = dataclasses.replace(config.eval, batch_size=batch_size)
    config = dataclasses.replace(config, eval=given)
    stores = datasets.stores["valid"]
    batches = list(
        loader.eval_batches(
            stores, config, tokenizer=datasets.tokenizer, data_shards=parts
        )
    )
    assert loader.reads_all(stores, config, window=16)
    whole = {n: np.concatenate([b[n] for b in batches], axis=1) for n in batches[0]}
    size = stores[0].num_tokens
    width = 16 * batch_size // parts
    padded = -(-size // width) * width
    assert {array.shape for array in whole.values()} == {(parts, padded)}
    real = whole["segments"] > 0
    assert real[0].sum() == size > width
    assert not real[1:].any()
    text = stores[0].read(0, size)
    np.testing.assert_array_equal(whole["targets"][0, :size], text)
    if not config.data.isolate_documents:
        np.testing.assert_array_equal(whole["positions"][0, :size], np.arange(size))


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("model.kind=decoder", "needs config.model.kind = 'recurrent', not 'decoder'"),
        ("eval.num_batches=3", "config.eval.num_batches = 3: must be 0"),
        ("data.source=mixture", "takes one source"),
    ],
)
def test_what_contiguous_order_cannot_do_is_said(config, override, text):
    values = experiment.to_dict(config)
    if override.startswith("model"):
        values["model"] = {"dim": 8, "num_heads": 1}
    with pytest.raises(UserError) as error:
        experiment.parse(values, [override])
    assert text in str(error.value)


def test_the_order_is_the_runs_own(config):
    data = dataclasses.replace(config.data, order="shuffled")
    changed = list_changes(config, dataclasses.replace(config, data=data))
    assert changed == ["config.data.order was 'contiguous', is 'shuffled'"]
