"""Labelled examples from the file to batches: labels, rows, stores, errors."""

import json
import logging
import random
from pathlib import Path

import numpy as np
import pytest

from lmjax.config.experiment import parse
from lmjax.data import batches, example_datasets, pipeline
from lmjax.data.features.classify import ClassifyFeatures, LabelledText
from lmjax.data.stores.example_store import ExampleStore
from lmjax.data.tokenizers.plain import Bytes
from lmjax.errors import ConfigError, UserError

BOS, EOS = 257, 256


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def make(tmp_path):
    """Return a config of 60 training and 13 held-out texts to classify."""
    rng = random.Random(0)

    def row():
        text = rng.choice("ab") * rng.randint(1, 40)
        return {"text": text, "label": text[0].upper()}

    train = write(tmp_path / "train.jsonl", [row() for _ in range(60)])
    valid = write(tmp_path / "valid.jsonl", [row() for _ in range(13)])

    def build(*overrides, **data):
        sections = {
            "batch_size": 4,
            "num_steps": 40,
            "model": {"kind": "decoder", "dim": 8, "num_layers": 1, "num_heads": 1},
            "tokenizer": {"kind": "bytes"},
            "data": {
                "source": "jsonl",
                "path": train,
                "valid_path": valid,
                "length": 24,
                "num_buckets": 2,
                **data,
            },
            "task": {"kind": "classify"},
        }
        return pipeline.resolve_vocabulary(parse(sections, overrides))

    return build


def test_labels_are_found_and_sorted(make, tmp_path):
    config = make()
    assert config.task.labels == ("A", "B")
    assert config.model.num_labels == 2
    rows = [{"text": "x", "label": label} for label in (10, 9, -1, True, "z", "10")]
    config = make(path=write(tmp_path / "numbers.jsonl", rows))
    assert config.task.labels == ("-1", "9", "10", "true", "z")
    given = make("task.labels=('B','A')")
    assert given.task.labels == ("B", "A")
    bad = [{"text": "x", "label": "A"}, {"text": "y", "label": 0.5}]
    with pytest.raises(UserError, match=r"bad.jsonl:2: .*float.* \(.*on_bad_example"):
        make(path=write(tmp_path / "bad.jsonl", bad))
    with pytest.raises(
        ConfigError, match=r"one\.jsonl': has 1 label, 'A', in 'label'; "
    ):
        make(path=write(tmp_path / "one.jsonl", [{"text": "x", "label": "A"}]))
    with pytest.raises(UserError, match=r"config\.model\.num_labels = 3: must be 0"):
        make("task.labels=('B','A')", "model.num_labels=3")


def test_batches_of_an_epoch_hold_each_text_once(make, tmp_path):
    config = make()
    datasets = pipeline.prepare(config, workdir=tmp_path)
    (store,) = datasets.stores["train"]
    assert isinstance(store, ExampleStore)
    assert len(store) == 60
    schedule = batches.train_schedule(datasets, config, data_shards=1)
    found = batches.train_batches(datasets, config, start_step=0)
    seen = []
    for _ in range(schedule.steps_per_epoch):
        batch = next(found)
        for b in np.flatnonzero(batch["weights"]):
            real = batch["segments"][b] > 0
            tokens = batch["tokens"][b][real]
            assert tokens[0] == BOS
            assert tokens[-1] == EOS
            np.testing.assert_array_equal(batch["positions"][b][real], range(sum(real)))
            text = bytes(tokens[1:-1].tolist()).decode()
            label = config.task.labels[batch["labels"][b]]
            assert text[0].upper() == label
            seen.append((text, label))
        assert not batch["segments"][batch["weights"] == 0].any()
    rows = [*map(json.loads, Path(config.data.path).read_text().splitlines())]
    assert sorted(seen) == sorted((row["text"][:22], row["label"]) for row in rows)
    assert store.num_truncated == sum(len(row["text"]) > 22 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_resuming_and_processes_take_the_same_rows(make, tmp_path, num_workers):
    config = make(num_workers=num_workers)
    datasets = pipeline.prepare(config, workdir=tmp_path)
    whole = list(batches.train_batches(datasets, make(), start_step=0, data_shards=2))
    assert len(whole) == 40
    halves = [
        batches.train_batches(datasets, config, start_step=31, data_shards=2, rows=rows)
        for rows in (lambda n: np.arange(n // 2), lambda n: np.arange(n // 2, n))
    ]
    for expected, first, second in zip(whole[31:], *halves, strict=True):
        for name, value in expected.items():
            both = np.concatenate([first[name], second[name]])
            np.testing.assert_array_equal(both, value)


def test_each_held_out_text_is_read_once_with_any_buckets(make, tmp_path):
    seen = []
    for num_buckets in (1, 3):
        config = make(num_buckets=num_buckets)
        datasets = pipeline.prepare(config, workdir=tmp_path / str(num_buckets))
        found = (b.arrays for b in batches.eval_batches(datasets, "valid", config))
        rows = [
            (tuple(batch["tokens"][b][batch["segments"][b] > 0]), batch["labels"][b])
            for batch in found
            for b in np.flatnonzero(batch["weights"])
        ]
        assert len(rows) == 13
        seen.append(sorted(rows))
    assert seen[0] == seen[1]
    two = make("eval.num_batches=2")
    assert len(list(batches.eval_batches(datasets, "valid", two))) == 2


def test_fewer_examples_than_rows_and_longer_ones_held_out(make, tmp_path):
    train = write(tmp_path / "a.jsonl", [{"text": c, "label": c} for c in "ABB"])
    valid = write(tmp_path / "b.jsonl", [{"text": "B" * 20, "label": "B"}] * 5)
    config = make("batch_size=16", "eval.batch_size=4", path=train, valid_path=valid)
    datasets = pipeline.prepare(config, workdir=tmp_path / "run")
    said = batches.describe(datasets, config, data_shards=8)
    assert said == "batches of 16 x 8 tokens, 1 an epoch; 93.0% padding"
    batch = next(batches.train_batches(datasets, config, start_step=0, data_shards=8))
    assert batch["tokens"].shape == (16, 8)
    assert batch["weights"].sum() == 3
    batches_ = batches.eval_batches(datasets, "valid", config, data_shards=2)
    held_out = [batch.arrays for batch in batches_]
    assert [b["tokens"].shape for b in held_out] == [(4, 24), (4, 24)]
    assert sum(b["weights"].sum() for b in held_out) == 5


def test_a_store_is_kept_until_something_changes(make, tmp_path):
    def datasets(config):
        return pipeline.prepare(config, workdir=tmp_path).stores["train"][0]

    first = datasets(make())
    stamp = (first.directory / "manifest.json").stat().st_mtime_ns
    again = datasets(make("num_steps=3"))
    assert (again.directory / "manifest.json").stat().st_mtime_ns == stamp
    assert datasets(make(length=12)).fingerprint != first.fingerprint
    (again.directory / "manifest.json").write_text("{")
    assert len(datasets(make())) == 60


BAD = {
    "empty": ({"text": " ", "label": "A"}, "'text' is empty"),
    "number": ({"text": 3, "label": "A"}, "'text' holds int, not a string"),
    "unseen": ({"text": "x", "label": "a"}, "label 'a': not seen"),
    "missing": ({"txt": "x", "label": "A"}, "no such field.*did you mean 'txt'"),
    "surrogate": ({"text": "\ud800", "label": "A"}, "half of a surrogate pair"),
    "label": (
        {"text": "x", "label": "\ud800"},
        "'label' = .*: has half of a surrogate",
    ),
    "space": ({"text": "x", "label": "A "}, "'label' = 'A ': has white space around"),
    "lines": ({"text": "x", "label": "A\nB"}, "or a line end in it"),
    "none": ({"text": "x", "label": None}, "'label' holds NoneType, not a label"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_example_is_an_error_or_counted(make, tmp_path, name, caplog):
    bad, why = BAD[name]
    path = write(tmp_path / "bad.jsonl", [{"text": "x", "label": "A"}, bad])
    config = make(valid_path=path)
    with pytest.raises(UserError, match=rf"bad\.jsonl:2: .*{why}.*on_bad_example"):
        pipeline.prepare(config, workdir=tmp_path / "run")
    skipping = make(valid_path=path, on_bad_example="skip")
    with caplog.at_level(logging.INFO, logger="lmjax"):
        datasets = pipeline.prepare(skipping, workdir=tmp_path / "run")
    assert datasets.stores["valid"][0].num_skipped == 1
    assert "left out 1 of 2 examples" in caplog.text


def test_only_bad_examples_are_an_error(make, tmp_path):
    path = write(tmp_path / "bad.jsonl", [{"label": "A"}])
    config = make(valid_path=path, on_bad_example="skip")
    with pytest.raises(UserError, match=r"no example can be used; the first: .*:1: "):
        pipeline.prepare(config, workdir=tmp_path / "run")


def test_of_two_texts_the_longer_one_is_cut_first():
    read = ClassifyFeatures(fields=None, labels=("a", "b"), length=13)
    cases = {
        ("abcdefgh", "xy"): ("abcdefgh", "xy"),
        ("abcd", "x" * 20): ("abcd", "x" * 6),
    }
    cases |= {
        ("a" * 20, "xy"): ("a" * 8, "xy"),
        ("a" * 20, "x" * 20): ("aaaaa", "xxxxx"),
    }
    parts = read.encode([LabelledText(texts, 1) for texts in cases], Bytes(bos=True))
    rows = [row for part in parts for row in part]
    for row, (first, second) in zip(rows, cases.values(), strict=True):
        expected = [BOS, *first.encode(), EOS, *second.encode(), EOS]
        assert row.columns["tokens"].tolist() == expected
        assert row.columns["second"][0] == len(first) + 2
    assert [row.truncated for row in rows] == [False, True, True, True]
    batch = read.batch([rows[0].columns, None], length=16)
    assert batch["token_types"][0].tolist() == [0] * 10 + [1] * 3 + [0] * 3
    assert batch["weights"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("keep", "long", "pair"),
    [
        ("start", "abcdefgh", ("abc", "vwxy")),
        ("end", "cdefghij", ("hij", "wxyz")),
        ("both", "abcdghij", ("abj", "vwyz")),
    ],
)
def test_the_end_of_a_text_that_is_kept_is_a_choice(keep, long, pair):
    read = ClassifyFeatures(fields=None, labels=("a", "b"), length=10, keep=keep)
    texts = [("abcdefghij",), ("abcdefghij", "vwxyz"), ("abcdefgh",)]
    parts = read.encode([LabelledText(text, 1) for text in texts], Bytes(bos=True))
    tokens = [row.columns["tokens"].tolist() for (row,) in parts]
    first, second = (text.encode() for text in pair)
    assert tokens == [
        [BOS, *long.encode(), EOS],
        [BOS, *first, EOS, *second, EOS],
        [BOS, *b"abcdefgh", EOS],
    ]


def test_a_tokenizer_can_be_trained_on_the_texts(make, tmp_path):
    words = [{"text": f"the film {i} is good", "label": i % 2} for i in range(300)]
    config = make(
        "tokenizer.kind=sentencepiece",
        "tokenizer.vocab_size=300",
        path=write(tmp_path / "words.jsonl", words),
        valid_path="",
    )
    tokenizer = pipeline.prepare(config, workdir=tmp_path).tokenizer
    assert tokenizer.decode(tokenizer.encode("the film")) == "the film"
    again = pipeline.prepare(config, workdir=tmp_path, resume=True).tokenizer
    assert again.fingerprint() == tokenizer.fingerprint()


def test_leaves_that_do_not_fit_the_task_are_refused(make):
    assert example_datasets.reads_examples(make())
    with pytest.raises(UserError, match=r"data\.source = 'text': must be one of"):
        make(source="text")
    with pytest.raises(UserError, match="holds examples, not the text"):
        parse({"data": {"source": "conll", "path": "x"}})
    with pytest.raises(UserError, match=r"labels: 'a' is there more than once"):
        make("task.labels=('a','a')")
    with pytest.raises(UserError, match=r"labels: ' a' has white space around it"):
        make("task.labels=('a',' a')")
    with pytest.raises(
        ConfigError, match=r"fields\.label = 'text': must not be .*text"
    ):
        make("data.fields.label=text")
    with pytest.raises(UserError, match=r"pooler = False: .*'classify' needs it"):
        make("model.kind=encoder")
