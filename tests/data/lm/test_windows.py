"""Where windows lie: each token once an epoch, in shuffled and contiguous order."""

import dataclasses

import numpy as np
import pytest

from lmjax.config import experiment
from lmjax.config.parse import list_changes
from lmjax.data import pipeline
from lmjax.data.batches import train_batches
from lmjax.data.lm import loader
from lmjax.data.lm.windows import (
    ContiguousStreams,
    num_windows,
    sample_indices,
    shuffled_starts,
    train_windows,
)
from lmjax.errors import UserError


@pytest.mark.parametrize("num_tokens", [1, 5, 32, 33, 1000])
def test_a_shuffled_epoch_covers_the_stream(num_tokens):
    length = 32
    size = num_windows(num_tokens, length=length)
    for epoch in range(3):
        starts = shuffled_starts(
            np.arange(size) + epoch * size, num_tokens=num_tokens, length=length, seed=1
        )
        covered = (starts[:, None] + np.arange(length)) % num_tokens
        assert len(np.unique(covered)) == num_tokens


def test_each_epoch_cuts_at_other_places():
    starts = shuffled_starts(
        np.arange(4 * 10), num_tokens=320, length=32, seed=0
    ).reshape(4, 10)
    assert len({tuple(np.sort(row) % 32) for row in starts}) == 4


@pytest.mark.parametrize("num_tokens", [1, 3, 40, 41, 1000, 1003])
@pytest.mark.parametrize(("num_streams", "length"), [(1, 7), (4, 5), (8, 16)])
def test_every_token_is_read_once_an_epoch(num_tokens, num_streams, length):
    streams = ContiguousStreams(
        num_tokens=num_tokens, num_streams=num_streams, length=length
    )
    size = streams.steps_per_epoch * num_streams
    read = lambda w: np.concatenate(
        [
            np.arange(a, a + n) % num_tokens
            for a, n in zip(w.starts, w.sizes, strict=True)
        ]
    )
    for epoch in range(3):
        windows = streams.windows(np.arange(size) + epoch * size, seed=1)
        np.testing.assert_array_equal(np.sort(read(windows)), np.arange(num_tokens))


def test_a_row_continues_until_its_epoch_ends():
    streams = ContiguousStreams(num_tokens=1003, num_streams=4, length=16)
    windows = streams.windows(np.arange(4 * 40), seed=0)
    starts, sizes, first_positions = (
        x.reshape(-1, 4)
        for x in (windows.starts, windows.sizes, windows.first_positions)
    )
    at = streams.steps_per_epoch
    assert at == 16
    for step in range(1, 40):
        if step % at == 0:
            assert (first_positions[step] == 0).all()
            continue
        expected = (starts[step - 1] + sizes[step - 1]) % 1003
        np.testing.assert_array_equal(starts[step], expected)
        expected = first_positions[step - 1] + sizes[step - 1]
        np.testing.assert_array_equal(first_positions[step], expected)
    assert len({tuple(starts[e * at]) for e in range(3)}) == 3, "cut at other places"


def test_any_sample_can_be_looked_up():
    streams = ContiguousStreams(num_tokens=500, num_streams=3, length=8)
    whole = streams.windows(np.arange(300), seed=2)
    for i in (0, 7, 123, 299):
        one = streams.windows(np.array([i]), seed=2)
        assert (one.starts[0], one.sizes[0]) == (whole.starts[i], whole.sizes[i])
    assert (streams.windows(np.arange(300), seed=3).starts != whole.starts).any()


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


def test_batches_continue_in_text_and_position(datasets, config):
    """The position is 0 where a document or an epoch begins, and nowhere else."""
    batches = list(train_batches(datasets, config, start_step=0))
    (store,) = datasets.stores["train"]
    streams = ContiguousStreams(num_tokens=store.num_tokens, num_streams=6, length=16)
    begins = set(store.document_starts(0, store.num_tokens).tolist())
    isolate = config.data.isolate_documents
    for step, batch in enumerate(batches):
        samples = sample_indices(config, step=step)
        windows = train_windows([store], config, samples=samples, length=16)
        real = batch["segments"] > 0
        np.testing.assert_array_equal(real.sum(1), windows.sizes)
        assert (batch["weights"] == real).all()
        for row in range(6):
            places = (windows.starts[row] + np.arange(windows.sizes[row])) % (
                store.num_tokens
            )
            first = step % streams.steps_per_epoch == 0
            fresh = [
                (first and i == 0) or (isolate and int(at) in begins)
                for i, at in enumerate(places)
            ]
            found = batch["positions"][row][real[row]] == 0
            np.testing.assert_array_equal(found, fresh)
    if not isolate:
        np.testing.assert_array_equal(batches[1]["positions"][0], np.arange(16, 32))


def test_a_resumed_run_sees_the_same_batches(datasets, config):
    whole = list(train_batches(datasets, config, start_step=0))
    rest = list(train_batches(datasets, config, start_step=23))
    for a, b in zip(whole[23:], rest, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_processes_share_the_same_streams(datasets, config):
    whole = next(train_batches(datasets, config, start_step=5))
    for rows in np.split(np.arange(6), 3):
        part = next(
            train_batches(datasets, config, start_step=5, rows=lambda _, r=rows: r)
        )
        np.testing.assert_array_equal(part["tokens"], whole["tokens"][rows])


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 4])
def test_evaluation_reads_a_text_in_one_row(datasets, config, parts, batch_size):
    """One device reads one long row; the rows of the others are padding."""
    given = dataclasses.replace(config.eval, batch_size=batch_size)
    config = dataclasses.replace(config, eval=given)
    stores = datasets.stores["valid"]
    batches = list(
        loader.eval_batches(
            stores, config, tokenizer=datasets.tokenizer, data_shards=parts
        )
    )
    assert loader.reads_whole_split(stores, config, window=16)
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
def test_contiguous_order_names_the_leaves_that_it_excludes(config, override, text):
    values = experiment.to_dict(config)
    if override.startswith("model"):
        values["model"] = {"dim": 8, "num_heads": 1}
    with pytest.raises(UserError) as error:
        experiment.parse(values, [override])
    assert text in str(error.value)


def test_the_order_of_a_run_cannot_change(config):
    data = dataclasses.replace(config.data, order="shuffled")
    changed = list_changes(config, dataclasses.replace(config, data=data))
    assert changed == ["config.data.order was 'contiguous', is 'shuffled'"]
