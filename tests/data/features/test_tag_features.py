"""Words and their tags: rows, repair, and spans as seqeval counts them."""

import dataclasses
import json
import random

import numpy as np
import pytest

from lmjax.config.data import FieldsConfig
from lmjax.config.experiment import parse, to_dict
from lmjax.data import example_datasets, pipeline
from lmjax.data.features.registry import make_features
from lmjax.data.features.tag import TagFeatures
from lmjax.data.tokenizers.plain import Bytes
from lmjax.errors import UserError
from lmjax.metrics import spans

LABELS = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
TAGS = TagFeatures(fields=FieldsConfig(), labels=LABELS, length=16, repair=True)
BOS, EOS = 257, 256
TOKENS = Bytes(bos=True)


def encode(words, tags):
    example = {"tokens": words, "tags": tags}
    return TAGS.encode([TAGS.parse(example)], Bytes(bos=True))[0][0]


def test_a_word_is_labelled_at_its_first_token():
    row = encode(["Ann", "in", "Ulm"], ["B-PER", "O", "B-LOC"])
    assert row.columns["tokens"].tolist() == [BOS, *b"Ann in Ulm", EOS]
    assert row.columns["place"].tolist() == [1, 4, 7]
    batch = TAGS.batch([row.columns, None], length=16)
    assert batch["labels"][0, [1, 4, 7]].tolist() == [1, 4, 0]
    assert batch["weights"].sum() == 3
    assert not batch["weights"][1].any()


def marked(mark, predicate, *, words=("a", "bc", "de", "f"), **more):
    fields = FieldsConfig(predicate="verb")
    features = dataclasses.replace(TAGS, fields=fields, mark=mark, **more)
    example = {"tokens": [*words], "tags": ["O"] * len(words), "verb": predicate}
    row = features.encode([features.parse(example)], Bytes(bos=True))[0][0]
    return row, features.batch([row.columns, None], length=16)


@pytest.mark.parametrize("predicate", [[0, 1, 1, 0], ["0", "1", "1", "0"]])
def test_the_tokens_of_a_predicate_have_another_type(predicate):
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


@pytest.mark.parametrize("mark", ["token_types", "separators"])
@pytest.mark.parametrize("place", range(5))
def test_a_row_has_its_predicate_whatever_is_cut_off(mark, place):
    words = ("abcd", "efgh", "ijklmn", "op", "qrst")
    row, batch = marked(mark, place, words=words)
    tokens = row.columns["tokens"].tolist()
    assert row.truncated and len(tokens) <= 16
    verb = words[place].encode()
    at = bytes(min(token, 255) for token in tokens).find(verb)
    assert at > 0
    if mark == "token_types":
        assert batch["token_types"][0, at : at + len(verb)].all()
    else:
        assert tokens[at + len(verb)] == EOS
    first = int(row.columns["first"][0])
    assert first <= place < first + len(row.columns["place"])


def test_words_beyond_the_row_of_a_predicate_are_outside():
    features = dataclasses.replace(TAGS, fields=FieldsConfig(predicate="verb"))
    words = ["abcd", "efgh", "ijkl", "mnop", "qrst"]
    example = {"tokens": words, "tags": ["O"] * 5, "verb": 2}
    sentence = features.parse(example)
    ((row,),) = features.encode([sentence], TOKENS)
    assert row.columns["first"].tolist() == [2]
    found = features.postprocess(sentence, [row.columns], [{"tags": np.full(16, 0)}])[
        "tags"
    ]
    assert found == ["O", "O", "B-LOC", "B-LOC", "O"]


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
    with pytest.raises(UserError, match=why):
        marked("token_types", predicate)


def test_a_separator_is_needed():
    bare = Bytes(bos=True)
    bare.eos_id, bare.pair_ids = None, ()
    features = dataclasses.replace(
        TAGS, fields=FieldsConfig(predicate="verb"), mark="separators"
    )
    with pytest.raises(UserError, match=r"= 'separators': the tokenizer has none"):
        features.encode([], bare)


def test_left_to_right_models_label_last_tokens():
    given = sections(labels=LABELS, mark_predicate="separators")
    kinds = {"decoder": "last", "encoder": "first", "recurrent": "last"}
    for kind, place in kinds.items():
        config = parse(given, [f"model.kind={kind}"])
        assert make_features(config).label_at == place
    both = ["model.kind=recurrent", "model.bidirectional=true"]
    assert make_features(parse(given, both)).label_at == "first"
    decoder = {**given, "model": {"kind": "decoder"}}
    last = make_features(parse(decoder))
    row = last.encode([last.parse({"tokens": ["Ann", "in"]}, labelled=False)], TOKENS)
    assert row[0][0].columns["place"].tolist() == [3, 6]
    row, _ = marked("separators", 1, label_at="last")
    assert row.columns["place"].tolist() == [1, 5, 9, 11]
    with pytest.raises(UserError, match=r"'token_types': needs .*at least 2, not 0"):
        parse(decoder, ["task.mark_predicate=token_types", "data.fields.predicate=v"])


def columns_of(rows):
    return [row.columns for row in rows]


def rows_of(words, **more):
    features = dataclasses.replace(TAGS, **more)
    sentence = features.parse({"tokens": words, "tags": ["O"] * len(words)})
    return features, sentence, features.encode([sentence], TOKENS)[0]


def test_a_long_sentence_becomes_several_rows():
    words = ["abcd", "efgh", "ijklmn", "op", "q"]
    features, sentence, rows = rows_of(words)
    texts = [bytes(row.columns["tokens"][1:-1].tolist()).decode() for row in rows]
    assert texts == ["abcd efgh", " ijklmn op q"]
    assert [row.columns["place"].tolist() for row in rows] == [[1, 5], [1, 8, 11]]
    assert not any(row.truncated for row in rows)
    outputs = [{"tags": np.arange(i, 16 + i) % 5} for i in range(2)]
    tags = features.postprocess(sentence, columns_of(rows), outputs)["tags"]
    assert tags == ["B-PER", "B-LOC", "I-LOC", "O", "B-LOC"]
    assert not features.repair or spans.repair_tags(tags, labels=LABELS) == tags
    exact = rows_of(["abcd", "efgh", "ijkl"])[2]
    assert [row.size for row in exact] == [16]


def test_the_last_row_sees_the_words_before():
    _, _, rows = rows_of(["abcd", "efgh", "ij", "kl", "mn"])
    assert rows[1].columns["tokens"].tolist() == [BOS, *b" efgh ij kl mn", EOS]
    assert rows[1].columns["place"].tolist() == [9, 12]
    assert rows[1].columns["first"].tolist() == [3]


@pytest.mark.parametrize("label_at", ["first", "last"])
def test_a_long_word_keeps_its_first_tokens(label_at):
    features, sentence, rows = rows_of(["a", "b" * 40, "c"], label_at=label_at)
    assert [row.size for row in rows] == [3, 16, 4]
    assert all(row.truncated for row in rows)
    assert rows[1].columns["place"].tolist() == [1 if label_at == "first" else 14]
    outputs = [{"tags": np.full(16, 1)}] * 3
    assert (
        features.postprocess(sentence, columns_of(rows), outputs)["tags"]
        == ["B-PER"] * 3
    )


def test_every_word_of_a_split_is_scored():
    """Whatever rows there are: an oracle's F1 is 1, and what it misses is missed."""
    pytest.importorskip("seqeval")
    rng = random.Random(0)
    examples = []
    for _ in range(30):
        words = ["x" * rng.randint(1, 20) for _ in range(rng.randint(1, 12))]
        examples.append({"tokens": words, "tags": rng.choices(LABELS, k=len(words))})
    found = {}
    for length in (16, 400):
        features = dataclasses.replace(TAGS, length=length, repair=False)
        sentences = [features.parse(example) for example in examples]
        parts = features.encode(sentences, TOKENS)
        for name, spoil in (("all", 0), ("some", 1)):
            answers = []
            for sentence, rows in zip(sentences, parts, strict=True):
                outputs = []
                for row in rows:
                    tags = np.zeros(length, int)
                    labels = row.columns["label"]
                    tags[row.columns["place"]] = (labels + spoil * (labels == 1)) % 5
                    outputs.append({"tags": tags})
                answers.append(
                    features.postprocess(sentence, columns_of(rows), outputs)
                )
            found[length, name] = features.compute_metrics(answers, sentences)
    assert found[16, "all"] == dict.fromkeys(("accuracy", *spans.METRICS), 1.0)
    assert found[16, "some"] == found[400, "some"]
    assert found[16, "some"]["f1"] < 0.9
    assert (*found[16, "some"],) == TAGS.metric_names


def test_a_span_that_is_half_cut_is_missed():
    pytest.importorskip("seqeval")
    words = ["ab", "cd", "efgh", "ij", "kl"]
    features = dataclasses.replace(TAGS, fields=FieldsConfig(predicate="verb"))
    tags = ["B-PER", "I-PER", "O", "O", "B-LOC"]
    sentence = features.parse({"tokens": words, "tags": tags, "verb": 3})
    ((row,),) = features.encode([sentence], TOKENS)
    assert row.columns["first"] == 1
    output = {"tags": np.zeros(16, int)}
    output["tags"][row.columns["place"]] = row.columns["label"]  # the row's are right
    found = features.compute_metrics(
        [features.postprocess(sentence, [row.columns], [output])], [sentence]
    )
    assert found == {"accuracy": 3 / 5, **dict.fromkeys(spans.METRICS, 1 / 2)}


def test_a_word_without_tokens_keeps_its_place():
    class Deaf(Bytes):
        def encode(self, text):
            return super().encode(text.replace("x", "").replace(" ", ""))

    example = {"tokens": ["a", "x", "b"], "tags": ["O", "B-PER", "O"]}
    row = TAGS.encode([TAGS.parse(example)], Deaf(bos=True))[0][0]
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
def test_user_errors(example, why):
    with pytest.raises(UserError, match=why):
        TAGS.parse(example)


def test_repair():
    tags = ["I-PER", "I-PER", "O", "I-LOC", "I-PER", "B-PER", "I-PER"]
    expected = ["B-PER", "I-PER", "O", "B-LOC", "B-PER", "B-PER", "I-PER"]
    assert spans.repair_tags(tags, labels=LABELS) == expected
    assert spans.repair_tags(tags, labels=("I-PER", "I-LOC", "O")) == tags
    assert spans.repair_tags([], labels=LABELS) == []


def test_spans_add_up_to_the_library_s_scores():
    library = pytest.importorskip("seqeval.metrics")
    rng = random.Random(0)
    true = [rng.choices(LABELS, k=rng.randint(1, 9)) for _ in range(80)]
    given = [[t if rng.random() < 0.7 else rng.choice(LABELS) for t in s] for s in true]
    found = spans.score_spans(given, true)
    names = ("precision_score", "recall_score", "f1_score")
    expected = [getattr(library, name)(true, given) for name in names]
    np.testing.assert_allclose([*found.values()], expected, rtol=1e-12)
    assert spans.score_spans([["O"]], [["O"]]) == dict.fromkeys(spans.METRICS, 0.0)


def sections(**task):
    return {
        "model": {"kind": "encoder"},
        "tokenizer": {"kind": "bytes"},
        "data": {"source": "jsonl", "path": "x", "length": 16},
        "task": {"kind": "tag", **task},
    }


def test_spans_of_some_types_are_not_scored():
    pytest.importorskip("seqeval")
    given, true = ["B-LOC", "B-PER", "O"], ["B-LOC", "O", "B-PER"]
    assert spans.score_spans([given], [true])["f1"] == 0.5
    assert spans.score_spans([given], [true], unscored=("PER",))["f1"] == 1.0
    config = parse(sections(labels=LABELS, unscored=("PRE",)))
    with pytest.raises(UserError, match=r"'PRE' is no type .*'PER'.*are LOC, PER"):
        example_datasets.resolve_labels(config)


def test_all_labels_are_tags_of_spans_or_none_is(monkeypatch):
    for labels in (("B-X", "I-X", "S-X"), ("B", "I", "O"), LABELS):
        assert spans.guess_scheme(labels)
    monkeypatch.setattr(spans, "import_seqeval", None)  # not called
    speech = dataclasses.replace(TAGS, labels=("NN", "O", "VB-"))
    assert speech.metric_names == ("accuracy",)
    sentences = [speech.parse({"tokens": ["a", "b"], "tags": ["NN", "O"]})]
    assert speech.compute_metrics([{"tags": ["NN", "NN"]}], sentences) == {
        "accuracy": 0.5
    }
    for odd in ("X-PER", "PER", "B-"):
        config = parse(sections(labels=("B-PER", odd, "I-PER", "O")))
        with pytest.raises(UserError, match=rf"'{odd}' is neither O .*mean '"):
            example_datasets.resolve_labels(config)


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
    config = pipeline.resolve_vocabulary(config)
    assert config.task.labels == ("B-LOC", "B-PER", "O")
    store = pipeline.prepare(config, workdir=tmp_path / "run").stores["train"][0]
    assert len(store) == 2
    assert store[1]["label"].tolist() == [0]


@pytest.mark.parametrize(
    ("scheme", "tags", "repaired"),
    [
        ("IOB1", ["I-X", "I-X", "B-X", "O"], ["O", "I-X", "I-X", "O"]),
        ("IOB2", ["B-X", "I-X", "B-X", "O"], ["O", "B-X", "I-X", "O"]),
    ],
)
def test_the_scheme_of_tags_is_that_of_the_training_data(
    tmp_path, scheme, tags, repaired
):
    """Where spans begin with I-, a repair would make right tags wrong."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"tokens": [*"abcd"], "tags": tags}) + "\n")
    given = sections()
    given["data"] |= {"path": str(path), "valid_path": str(path)}
    config = pipeline.resolve_vocabulary(parse(given))
    assert config.task.scheme == scheme
    assert parse(to_dict(config)) == config  # as it is saved
    features = make_features(config)
    sentence = features.parse({"tokens": [*"abcd"]}, labelled=False)
    ((row,),) = features.encode([sentence], TOKENS)
    output = np.zeros(16, int)
    predicted = [config.task.labels.index(tag) for tag in ("O", "I-X", "I-X", "O")]
    output[row.columns["place"]] = predicted
    found = features.postprocess(sentence, [row.columns], [{"tags": output}])
    assert found["tags"] == repaired
    other = parse(given, ["task.scheme=IOE2"])
    with pytest.raises(UserError, match=r"config\.task\.scheme = 'IOE2': has no 'B-X'"):
        pipeline.resolve_vocabulary(other)


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
    with pytest.raises(UserError, match=r"a\.jsonl:2: 'tags' is empty"):
        pipeline.prepare(config, workdir=tmp_path / "run")
