"""Rows of every objective, as batches: exact, complete, and resumable."""

import dataclasses
import itertools
import pickle

import numpy as np
import pytest

from lmjax.config import experiment
from lmjax.config import task as task_lib
from lmjax.data.batches import train_batches
from lmjax.data.datasets import Datasets
from lmjax.data.lm import loader, objectives
from lmjax.data.tokenizers.plain import Bytes
from lmjax.errors import UserError

LENGTH = 40
TASKS = {
    "causal_lm": {},
    "masked_lm": {},
    "whole_words": {"kind": "masked_lm", "whole_words": True},
    "sentence_order": {"kind": "masked_lm", "sentence_order": True},
    "span_corruption": {},
    "prefix_lm": {},
    "infilling": {},
    "sentence_permutation": {"kind": "infilling", "sentence_permutation": True},
}
SEQ2SEQ = ["span_corruption", "prefix_lm", "infilling", "sentence_permutation"]
MODELS = {
    "causal_lm": {"kind": "decoder"},
    "masked_lm": {
        "kind": "encoder",
        "num_token_types": 2,
        "pooler": True,
        "pair_head": True,
    },
}


class Words(Bytes):
    """Bytes of which only some begin a word."""

    def word_starts(self):
        return np.arange(self.vocab_size) % 3 == 0


def parse(name, path="*", **changes):
    task = {"kind": name} | TASKS[name]
    isolate = name not in (*SEQ2SEQ, "sentence_order")
    data = {"source": "text", "path": path, "holdout_every": 5, "length": LENGTH}
    model = MODELS.get(task["kind"], {"kind": "encoder_decoder", "start_id": 7})
    sections = {
        "num_steps": 6,
        "batch_size": 6,
        "tokenizer": {"kind": "bytes", "mask": True, "num_sentinels": 20},
        "data": data | {"isolate_documents": isolate} | changes.pop("data", {}),
        "model": {"dim": 8, "num_heads": 1} | model,
        "task": task | changes.pop("task", {}),
        **changes,
    }
    return experiment.parse(sections)


@pytest.fixture
def tokenizer():
    return Words(bos=True, mask=True, num_sentinels=20)


@pytest.fixture
def datasets(make_store, random_texts, tokenizer):
    texts = [random_texts(seed=seed, count=30, longest=150) for seed in range(2)]
    stores = {
        split: [make_store(part, name=split)]
        for split, part in zip(("train", "valid"), texts, strict=True)
    }
    return Datasets(tokenizer=tokenizer, stores=stores)


def train(datasets, config, **options):
    return list(train_batches(datasets, config, start_step=0, **options))


def assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for name in batch:
        np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def held_out(datasets, config):
    stores = datasets.stores["valid"]
    return list(loader.eval_batches(stores, config, tokenizer=datasets.tokenizer))


@pytest.mark.parametrize("name", TASKS)
def test_resuming_and_processes_change_nothing(datasets, name):
    config = parse(name)
    whole = train(datasets, config)
    resumed = train_batches(datasets, config, start_step=4)
    for batch, other in zip(resumed, whole[4:], strict=True):
        assert_equal(batch, other)
    halves = np.split(np.arange(config.batch_size), 2)
    hosts = [train(datasets, config, rows=lambda _, rows=rows: rows) for rows in halves]
    for *parts, other in zip(*hosts, whole, strict=True):
        both = {n: np.concatenate([part[n] for part in parts]) for n in other}
        assert_equal(both, other)


@pytest.mark.parametrize("name", TASKS)
def test_another_seed_gives_other_rows(datasets, name):
    first = train(datasets, parse(name))[0]
    other = train(datasets, parse(name, seed=1))[0]
    assert (first["targets"] != other["targets"]).any()


@pytest.mark.slow
def test_loader_processes_give_the_same_rows(datasets):
    config = parse("masked_lm")
    data = dataclasses.replace(config.data, num_workers=2)
    in_processes = dataclasses.replace(config, data=data)
    batches = train_batches(datasets, in_processes, start_step=0)
    first = list(itertools.islice(batches, 3))
    batches.close()
    for batch, other in zip(first, train(datasets, config), strict=False):
        assert_equal(batch, other)


@pytest.mark.parametrize("name", TASKS)
def test_an_objective_is_small_to_pickle(tokenizer, name):
    assert len(pickle.dumps(objectives.build(parse(name), tokenizer))) < 10_000


def unmasked(batch):
    """Return the tokens of a masked batch with its targets put back."""
    tokens = batch["tokens"].copy()
    rows, places = np.nonzero(batch["weights"])
    tokens[rows, batch["predict_positions"][rows, places]] = batch["targets"][
        rows, places
    ]
    return tokens


@pytest.mark.parametrize("name", ["masked_lm", "whole_words"])
def test_evaluation_covers_each_token_once_between_its_ends(datasets, tokenizer, name):
    config = parse(name)
    store = datasets.stores["valid"][0]
    seen = []
    for batch in held_out(datasets, config):
        for row, segments in zip(unmasked(batch), batch["segments"], strict=True):
            row = row[segments > 0]
            if len(row):
                assert row[0] == tokenizer.bos_id and row[-1] == tokenizer.eos_id
                seen.append(row[1:-1])
    np.testing.assert_array_equal(np.concatenate(seen), store.read(0, store.num_tokens))
    again = held_out(datasets, config)
    for batch, other in zip(held_out(datasets, config), again, strict=True):
        assert_equal(batch, other)


@pytest.mark.parametrize("name", ["masked_lm", "whole_words", "sentence_order"])
def test_special_tokens_are_never_masked_or_drawn(datasets, tokenizer, name):
    counts = np.zeros(3)
    config = parse(name, num_steps=40)
    for batch in train(datasets, config):
        real = batch["weights"] > 0
        targets, tokens = batch["targets"], unmasked(batch)
        assert (targets[real] < 256).all()
        text = (tokens < 256) & (batch["segments"] > 0)
        share = np.maximum(1, np.round(text.sum(axis=1) * 0.15))
        if name != "whole_words":
            np.testing.assert_array_equal(real.sum(axis=1), share)
        shown = np.take_along_axis(batch["tokens"], batch["predict_positions"], axis=1)[
            real
        ]
        masked, kept = shown == tokenizer.mask_id, shown == targets[real]
        assert (shown[~masked] < 256).all()
        counts += masked.sum(), kept.sum(), len(shown)
    shares = counts[:2] / counts[2]
    expected = np.array([0.8, 0.1 + 0.1 / 256])
    bound = 4 * np.sqrt(expected * (1 - expected) / counts[2])
    assert (np.abs(shares - expected) < bound).all()


def test_documents_are_isolated_as_in_packing(datasets):
    config = parse("masked_lm")
    decoder = dataclasses.replace(config, task=task_lib.CausalLMConfig())
    window = LENGTH - 2
    data = dataclasses.replace(config.data, length=window)
    decoder = dataclasses.replace(decoder, data=data)
    for batch, other in zip(
        train(datasets, config), train(datasets, decoder), strict=True
    ):
        np.testing.assert_array_equal(unmasked(batch)[:, 1:-1], other["targets"])
        np.testing.assert_array_equal(batch["segments"][:, 1:-1], other["segments"])
        first = other["segments"] == 1
        np.testing.assert_array_equal(
            batch["positions"][:, 1:-1], other["positions"] + first
        )
        assert (batch["segments"][:, 0] == 1).all()
        np.testing.assert_array_equal(
            batch["segments"][:, -1], other["segments"][:, -1]
        )


def test_pairs_of_texts(datasets, tokenizer):
    labels = []
    for batch in train(datasets, parse("sentence_order", num_steps=40)):
        tokens, types = unmasked(batch), batch["token_types"]
        assert (tokens[:, 0] == tokenizer.bos_id).all()
        assert (tokens[:, -1] == tokenizer.eos_id).all()
        assert (np.diff(types, axis=1) >= 0).all() and (types[:, -1] == 1).all()
        last = (types == 0).sum(axis=1) - 1
        assert (tokens[np.arange(6), last] == tokenizer.eos_id).all()
        assert (batch["segments"] == 1).all()
        labels += batch["pair_labels"].tolist()
    assert abs(np.mean(labels) - 0.5) < 4 * np.sqrt(0.25 / len(labels))


def restored(row, tokenizer):
    """Return the window of a row of span corruption."""
    spans, found = {}, []
    for token in row["targets"][row["weights"] > 0][:-1]:
        if token in tokenizer.sentinel_ids:
            spans[token] = last = []
        else:
            last.append(token)
    for token in row["source"][row["source_segments"] > 0][:-1]:
        found += spans.get(token, [token])
    return found


def window_of(name, row, tokenizer):
    targets = row["targets"][row["weights"] > 0][:-1].tolist()
    if name == "span_corruption":
        return restored(row, tokenizer)
    if name == "prefix_lm":
        return row["source"][row["source_segments"] > 0][:-1].tolist() + targets
    return targets


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_evaluation_of_window_pairs_covers_each_token_once(datasets, tokenizer, name):
    config = parse(name)
    store = datasets.stores["valid"][0]
    seen = []
    for batch in held_out(datasets, config):
        for i in range(len(batch["source"])):
            row = {name: values[i] for name, values in batch.items()}
            if row["weights"].any():
                seen += window_of(name, row, tokenizer)
    np.testing.assert_array_equal(seen, store.read(0, store.num_tokens))


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_rows_of_window_pairs(datasets, tokenizer, name):
    config = parse(name)
    for batch in train(datasets, config):
        assert batch["source"].shape == (6, LENGTH)
        assert batch["targets"].shape == (6, config.data.target_length)
        for prefix, ids in (("source_", batch["source"]), ("", batch["targets"])):
            segments, positions = (
                batch[f"{prefix}segments"],
                batch[f"{prefix}positions"],
            )
            lengths = segments.sum(axis=1)
            assert (np.diff(segments, axis=1) <= 0).all()
            assert (ids[np.arange(6), lengths - 1] == tokenizer.eos_id).all()
            expected = np.arange(ids.shape[1]) * segments
            np.testing.assert_array_equal(positions, expected)
        np.testing.assert_array_equal(batch["weights"], batch["segments"])
        assert (batch["tokens"][:, 0] == 7).all()
        inner = batch["segments"][:, 1:] > 0
        shifted = batch["targets"][:, :-1]
        np.testing.assert_array_equal(batch["tokens"][:, 1:][inner], shifted[inner])
        if name == "span_corruption":  # nothing is padding
            assert batch["source_segments"].all() and batch["segments"].all()


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_every_target_begins_with_the_decoder_prefix(datasets, tokenizer, name):
    model = {"kind": "encoder_decoder", "dim": 8, "num_heads": 1, "start_id": 7}
    plain, opened = (parse(name, model={**model, "opening": o}) for o in ((), (5, 6)))
    assert opened.data.target_length == plain.data.target_length + 2
    batch, bare = train(datasets, opened)[0], train(datasets, plain)[0]
    np.testing.assert_array_equal(batch["tokens"][:, :3], [[7, 5, 6]] * 6)
    np.testing.assert_array_equal(batch["targets"][:, :2], [[5, 6]] * 6)
    np.testing.assert_array_equal(batch["targets"][:, 2:], bare["targets"])
    np.testing.assert_array_equal(batch["source"], bare["source"])


@pytest.mark.parametrize("name", TASKS)
def test_batches_have_the_shapes_of_the_task(datasets, name):
    tasks = pytest.importorskip("lmjax.tasks")
    config = parse(name)
    shapes = tasks.build(config.task).batch_shapes(
        6, LENGTH, target_length=config.data.target_length
    )
    for batch in (train(datasets, config)[0], *held_out(datasets, config)):
        found = {n: (value.shape, value.dtype) for n, value in batch.items()}
        assert found == {n: (s.shape, s.dtype) for n, s in shapes.items()}


def test_a_tokenizer_without_the_needed_ids():
    with pytest.raises(UserError, match=r"config\.tokenizer\.mask.*'masked_lm'"):
        objectives.build(parse("masked_lm"), Bytes(bos=True))
    with pytest.raises(UserError, match=r"num_sentinels.* has 1 .* needs 2"):
        few = Bytes(bos=True, num_sentinels=1)
        objectives.build(parse("span_corruption"), few)
