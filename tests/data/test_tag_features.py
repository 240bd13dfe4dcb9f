"""Words and their tags: rows, repair, and spans as seqeval counts them."""

import json
import random

import numpy as np
import pytest

from lmjax.config import ConfigError, FieldsConfig, TagConfig, parse
from lmjax.data import pipeline, spans
from lmjax.data.tag_features import Tag
from lmjax.data.tokenizer import Bytes

LABELS = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
READ = Tag(fields=FieldsConfig(), labels=LABELS, length=16, repair=True)
BOS, EOS = 257, 256


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
