"""The samples of a step are the same for any number of processes, from any step on."""

import functools
import json
import random

import numpy as np
import pytest

from lmjax.config.experiment import parse
from lmjax.data import batches, pipeline

ORDERS = ("shuffled", "packed", "mixture", "contiguous", "bucketed")
NUM_STEPS = 12


def sections(order, directory):
    """Return a config that reads data in an order, and write its data."""
    rng = random.Random(0)
    paths = []
    for name in ("a", "b"):
        path = directory / f"{name}.txt"
        path.write_text("".join(name * rng.randint(1, 30) + "\n" for _ in range(90)))
        paths.append(str(path))
    text = {"source": "text", "document": "line"}
    if order == "bucketed":
        path = directory / "train.jsonl"
        rows = [{"text": "ab" * rng.randint(1, 20), "label": i % 2} for i in range(70)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"source": "jsonl", "path": str(path), "num_buckets": 3}
    elif order == "mixture":
        data = {
            "source": "mixture",
            "mixture": [
                {**text, "path": path, "weight": weight}
                for path, weight in zip(paths, (2.0, 1.0), strict=True)
            ],
        }
    else:
        data = {**text, "path": paths[0]}
        data |= {"isolate_documents": order == "packed"}
        data |= {"order": "contiguous"} if order == "contiguous" else {}
    return {
        "num_steps": NUM_STEPS,
        "batch_size": 8,
        "model": {
            "kind": "recurrent" if order == "contiguous" else "decoder",
            "dim": 8,
            "num_layers": 1,
        }
        | ({} if order == "contiguous" else {"num_heads": 1}),
        "tokenizer": {"kind": "bytes"},
        "data": {"length": 40, "num_store_workers": 1, **data},
        **({"task": {"kind": "classify"}} if order == "bucketed" else {}),
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return the config and the datasets of an order; prepared once."""

    @functools.cache
    def prepare(order):
        directory = tmp_path_factory.mktemp(order)
        config = pipeline.resolve_vocabulary(parse(sections(order, directory)))
        return config, pipeline.prepare(config, workdir=directory)

    return prepare


def share(process, count, num_rows):
    """Return the rows that one of so many processes holds."""
    return np.split(np.arange(num_rows), count)[process]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("start", [0, 5])
def test_rows_of_all_processes_are_the_global_batch(prepared, order, start):
    """Each process makes only its own rows; together they are those of one process."""
    config, datasets = prepared(order)
    read = functools.partial(
        batches.train_batches, datasets, config, start_step=start, row_multiple=1
    )
    whole = [*read()]
    assert len(whole) == NUM_STEPS - start
    for count in (2, 4):
        parts = [
            read(data_shards=count, rows=functools.partial(share, i, count))
            for i in range(count)
        ]
        for expected, *own in zip(whole, *parts, strict=True):
            for name, value in expected.items():
                rows = np.concatenate([part[name] for part in own])
                np.testing.assert_array_equal(rows[: len(value)], value)
                padding = rows[len(value) :]
                assert name != "weights" or not padding.any()


@pytest.mark.parametrize("order", ORDERS)
def test_samples_of_a_step_are_those_of_its_batch(prepared, order):
    """What a step is said to hold is what its rows were made of, with no repetition."""
    config, datasets = prepared(order)
    whole = batches.train_batches(datasets, config, start_step=0, row_multiple=1)
    stores = datasets.stores["train"]
    seen = set()
    for step, batch in enumerate(whole, 1):
        samples = batches.samples_of_step(datasets, config, step, row_multiple=1)
        for shards in (2, 3, 4, 64):
            other = batches.samples_of_step(
                datasets, config, step, data_shards=shards, row_multiple=1
            )
            np.testing.assert_array_equal(other, samples)
        filled = batch["segments"].any(axis=1).sum()
        if order == "bucketed":
            assert len(samples) == filled
            for row, (_, place) in zip(batch["tokens"], samples, strict=False):
                seen_tokens = stores[0][int(place)]["tokens"]
                assert row.tolist()[: len(seen_tokens)] == list(seen_tokens)
        else:
            assert len(samples) == config.batch_size
        for row, (store, place) in zip(batch["tokens"], samples, strict=False):
            if order == "mixture":  # a letter tells the source
                assert ord("ab"[store]) in row and ord("ba"[store]) not in row
            if order != "bucketed":
                seen.add((int(store), int(place)))
    assert order == "bucketed" or len(seen) > NUM_STEPS * config.batch_size // 2


def test_a_run_keeps_its_batches_on_a_mesh_that_would_choose_others(prepared):
    """Buckets follow from the mesh that a run began on; rows of padding do the rest."""
    config, datasets = prepared("bucketed")
    sizes = lambda **mesh: (
        batches.train_schedule(datasets, config, **mesh).buckets.num_rows
    )
    assert sizes(data_shards=3) != sizes(data_shards=1)
    assert sizes(data_shards=3, row_multiple=1) == sizes(data_shards=1)
    rows = [
        {
            len(batch["labels"])
            for batch in batches.train_batches(
                datasets, config, start_step=0, data_shards=3, row_multiple=multiple
            )
        }
        for multiple in (0, 1)
    ]
    assert all(count % 3 == 0 for counts in rows for count in counts)
    assert rows[0] != rows[1]
