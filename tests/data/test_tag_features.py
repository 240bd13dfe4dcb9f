"""Words and their tags: rows, repair, and spans as seqeval counts them."""

import dataclasses
import json
import random

import numpy as np
import pytest

from lmjax.config import ConfigError, FieldsConfig, TagConfig, parse
from lmjax.data import pipeline, spans, task_examples, task_features
from lmjax.data.tag_features import Tag
from lmjax.data.tokenizer import Bytes

LABELS = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
READ = Tag(fields=FieldsConfig(), labels=LABELS, length=16, repair=True)
BOS, EOS = 257, 256
TOKENS = Bytes(bos=True)


def encode(words, tags):
    example = {"tokens": words, "tags": tags}
    return READ.encode([READ.read(example)], Bytes(bos=True))[0][0]


def test_a_word_is_labelled_at_its_first_token():
    row = encode(["Ann", "in", "Ulm"], ["B-PER", "O", "B-LOC"])
    assert row.columns["tokens"].tolist() == [BOS, *b"Ann in Ulm", EOS]
    assert row.columns["place"].tolist() == [1, 4, 7]
    batch = READ.batch([row.columns, None], length=16)
    assert batch["labels"][0, [1, 4, 7]].tolist() == [1, 4, 0]
    assert batch["weights"].sum() == 3
    assert not batch["weights"][1].any()


def marked(mark, predicate, *, words=("a", "bc", "de", "f"), **more):
    fields = FieldsConfig(predicate="verb")
    read = dataclasses.replace(READ, fields=fields, mark=mark, **more)
    example = {"tokens": [*words], "tags": ["O"] * len(words), "verb": predicate}
    row = read.encode([read.read(example)], Bytes(bos=True))[0][0]
    return row, read.batch([row.columns, None], length=16)


@pytest.mark.parametrize("predicate", [[0, 1, 1, 0], ["0", "1", "1", "0"]])
def test_the_tokens_of_a_predicate_are_of_another_type(predicate):
    row, batch = marked("token_types", predicate)
    assert row.columns["tokens"].tolist() == [BOS, *b"a bc de f", EOS]
    assert batch["token_types"][0].tolist() == [0, 0] + [1] * 6 + [0] * 8
    assert not batch["token_types"][1].any()


def test_separators_stand_around_a_predicate():
    row, batch = marked("separators", [0, 1, 1, 0])
    tokens = [BOS, *b"a", EOS, *b" bc de", EOS, *b" f", EOS]
    assert row.columns["tokens"].tolist() == tokens
    assert row.columns["place"].tolist() == [1, 3, 6, 10]
    assert not batch["token_types"].any()
    apart = marked("separators", [1, 0, 1, 0])[0].columns
    assert apart["tokens"].tolist().count(EOS) == 5
    assert apart["place"].tolist() == [2, 4, 8, 12]


def test_a_predicate_that_is_cut_off_marks_nothing():
    words = ("abcd", "efgh", "ijklmn", "op")
    row, batch = marked("token_types", 2, words=words)
    assert row.truncated
    assert not batch["token_types"].any()
    row, _ = marked("separators", 2, words=words)
    assert row.columns["tokens"].tolist() == [BOS, *b"abcd efgh", EOS]


@pytest.mark.parametrize(
    ("predicate", "why"),
    [
        (4, "'verb' = 4: must be from 0 to 3"),
        (-1, "'verb' = -1: must be from 0 to 3"),
        ([0, 1], "has 4 tokens, but 2 of 'verb'"),
        ([0, 0, 0, 0], "'verb' marks no token"),
        ([0, 0, 2, 0], r"'verb' holds 2 at \[2\], neither 0 nor 1"),
        ("2", "'verb' holds str, neither a number nor a list"),
    ],
)
def test_a_predicate_that_is_none(predicate, why):
    with pytest.raises(ConfigError, match=why):
        marked("token_types", predicate)


def test_a_separator_is_needed():
    bare = Bytes(bos=True)
    bare.eos_id, bare.pair_ids = None, ()
    read = dataclasses.replace(
        READ, fields=FieldsConfig(predicate="verb"), mark="separators"
    )
    with pytest.raises(ConfigError, match=r"= 'separators': the tokenizer has none"):
        read.encode([], bare)


def test_what_reads_from_left_to_right_labels_last_tokens():
    sections = {
        "model": {"kind": "decoder"},
        "tokenizer": {"kind": "bytes"},
        "data": {"source": "jsonl", "path": "x", "length": 16},
        "task": {"kind": "tag", "labels": LABELS, "mark_predicate": "separators"},
    }
    last = task_features.build(parse(sections))
    row = last.encode([last.read({"tokens": ["Ann", "in"]}, labelled=False)], TOKENS)
    assert row[0][0].columns["place"].tolist() == [3, 6]
    encoder = {**sections, "model": {"kind": "encoder"}}
    assert task_features.build(parse(encoder)).label_at == "first"
    row, _ = marked("separators", 1, label_at="last")
    assert row.columns["place"].tolist() == [1, 5, 9, 11]
    with pytest.raises(ConfigError, match=r"'token_types': needs .*at least 2, not 0"):
        parse(sections, ["task.mark_predicate=token_types", "data.fields.predicate=v"])


def test_words_that_do_not_fit_are_cut_off_whole():
    words = ["abcd", "efgh", "ijklmn", "op"]
    row = encode(words, ["O"] * 4)
    assert row.truncated
    assert row.columns["place"].tolist() == [1, 5]
    assert len(row.columns["tokens"]) == 11
    output = {"tags": np.full(16, 1)}
    reading = READ.read({"tokens": words}, labelled=False)
    assert READ.answer(reading, [row], [output])["tags"] == [
        "B-PER",
        "B-PER",
        None,
        None,
    ]
    exact = encode(["abcd", "efgh", "ijkl"], ["O"] * 3)
    assert not exact.truncated
    assert len(exact.columns["tokens"]) == 16


def test_a_word_without_tokens_keeps_its_place():
    class Deaf(Bytes):
        def encode(self, text):
            return super().encode(text.replace("x", "").replace(" ", ""))

    example = {"tokens": ["a", "x", "b"], "tags": ["O", "B-PER", "O"]}
    row = READ.encode([READ.read(example)], Deaf(bos=True))[0][0]
    assert row.columns["tokens"].tolist() == [BOS, *b"a?b", EOS]


@pytest.mark.parametrize(
    ("example", "why"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "has 2 tokens, but 1 tags"),
        ({"tokens": "a b", "tags": ["O"]}, "'tokens' holds str, not a list"),
        ({"tokens": ["a", 1], "tags": ["O", "O"]}, r"holds int at \[1\], not a string"),
        ({"tokens": ["a"], "tags": [1.5]}, r"'tags\[0\]' holds float, not a label"),
        ({"tokens": ["a"], "tags": ["B-OR"]}, "label 'B-OR': not seen.*'B-LOC'|B-OR"),
        ({"tokens": [], "tags": []}, "'tokens' is empty"),
        ({"token": ["a"], "tags": ["O"]}, "did you mean 'token'"),
    ],
)
def test_mistakes(example, why):
    with pytest.raises(ConfigError, match=why):
        READ.read(example)


def test_repair():
    tags = ["I-PER", "I-PER", "O", "I-LOC", "I-PER", "B-PER", "I-PER"]
    expected = ["B-PER", "I-PER", "O", "B-LOC", "B-PER", "B-PER", "I-PER"]
    assert spans.repaired(tags, known=LABELS) == expected
    assert spans.repaired(tags, known=("I-PER", "I-LOC", "O")) == tags
    assert spans.repaired([], known=LABELS) == []


@pytest.mark.parametrize("repair", [True, False])
def test_spans_add_up_to_the_library_s_scores(repair):
    library = pytest.importorskip("seqeval.metrics")
    rng = random.Random(0)
    config = TagConfig(labels=LABELS, repair=repair)
    sums, every = np.zeros((3, 2)), ([], [])
    for _ in range(20):  # batches of four sentences, padded
        given, true = np.full((2, 4, 12), -1)
        for b in range(4):
            places = sorted(rng.sample(range(12), rng.randint(0, 9)))
            true[b, places] = rng.choices(range(5), k=len(places))
            wrong = rng.choices(range(5), k=len(places))
            keep = np.array([rng.random() < 0.7 for _ in places], bool)
            given[b, places] = np.where(keep, true[b, places], wrong)
            for rows, into in ((given, every[0]), (true, every[1])):
                into.append([LABELS[i] for i in rows[b, places]])
        found = spans.counted({"tags": (given, true)}, config)
        sums += [found[name] for name in ("precision", "recall", "f1")]
    names = ("precision_score", "recall_score", "f1_score")
    expected = [getattr(library, name)(every[1], every[0]) for name in names]
    np.testing.assert_allclose(sums[:, 0] / sums[:, 1], expected, rtol=1e-12)


def test_spans_of_some_types_are_not_scored():
    pytest.importorskip("seqeval")
    batch = {"tags": (np.array([[0, 1, 4]]), np.array([[0, 4, 1]]))}
    config = TagConfig(labels=LABELS)
    assert spans.counted(batch, config)["f1"] == (2, 4)
    config = TagConfig(labels=LABELS, unscored=("PER",))
    assert spans.counted(batch, config)["f1"] == (2, 2)
    sections = {
        "model": {"kind": "encoder"},
        "tokenizer": {"kind": "bytes"},
        "data": {"source": "jsonl", "path": "x"},
        "task": {"kind": "tag", "labels": LABELS, "unscored": ("PRE",)},
    }
    with pytest.raises(ConfigError, match=r"'PRE' is no type .*'PER'.*are LOC, PER"):
        task_examples.with_labels(parse(sections))


def test_conll_columns_become_a_store(tmp_path):
    lines = ["Ann NNP B-PER", "sleeps VBZ O", "", "Ulm NNP B-LOC", ""]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    config = parse(
        {
            "model": {"kind": "encoder"},
            "tokenizer": {"kind": "bytes"},
            "data": {
                "source": "conll",
                "path": str(tmp_path / "a.txt"),
                "valid_path": str(tmp_path / "a.txt"),
                "columns": ("tokens", "pos", "ner"),
                "fields": {"tags": "ner"},
                "length": 16,
            },
            "task": {"kind": "tag"},
        }
    )
    config = pipeline.with_vocabulary(config)
    assert config.task.labels == ("B-LOC", "B-PER", "O")
    store = pipeline.prepare(config, workdir=tmp_path / "run").stores["train"][0]
    assert len(store) == 2
    assert store[1]["label"].tolist() == [0]


def test_json_of_words_and_tags(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}, {"tokens": ["a"], "tags": []}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = parse(
        {
            "model": {"kind": "decoder"},
            "tokenizer": {"kind": "bytes"},
            "data": {"source": "jsonl", "path": str(path), "valid_path": str(path)},
            "task": {"kind": "tag", "labels": ("O", "B-X")},
        }
    )
    with pytest.raises(ConfigError, match=r"a\.jsonl:2: 'tags' is empty"):
        pipeline.prepare(config, workdir=tmp_path / "run")
