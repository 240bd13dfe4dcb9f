"""Questions and contexts: windows, labels, answers, and mistakes."""

import json
import random

import numpy as np
import pytest

from lmjax.config.data import FieldsConfig
from lmjax.config.experiment import parse
from lmjax.config.task import SpanQAConfig
from lmjax.data import batches, pipeline
from lmjax.data.features.span_qa import SpanQAFeatures
from lmjax.data.tokenizers.plain import Bytes
from lmjax.errors import UserError

TASK = {"max_question_tokens": 6, "stride": 8, "max_answer_tokens": 5}
TASK |= {"negative_windows": False}
BOS, EOS = 257, 256
TEXT = "Ann saw Bob in Ulm, and Éva met Cléo in Kōbe on a day in May."


def make(length=28, **task):
    config = SpanQAConfig(**{**TASK, **task})
    return SpanQAFeatures(fields=FieldsConfig(), task=config, length=length)


def example(text="Ulm", start=None, context=TEXT, question="Where?", **more):
    start = context.index(text) if start is None else start
    answers = [{"text": text, "answer_start": start}]
    return {"question": question, "context": context, "answers": answers, **more}


def encode(features, value, *, labelled=True, tokenizer=None):
    question = features.parse(value, labelled=labelled)
    (rows,) = features.encode([question], tokenizer or Bytes(bos=True))
    return question, rows


def columns_of(rows):
    return [row.columns for row in rows]


def answered(features, question, rows, *, right):
    """Return the answer of a model that has found what is labelled, in one row."""
    outputs = []
    for i, row in enumerate(rows):
        whole = row.columns["context"] - [0, 1]
        start, end = row.columns["span"] if i == right else whole
        outputs.append({"start": start, "end": end, "score": np.float32(i == right)})
        outputs[-1]["no_answer"] = np.float32(-3 if i == right else 2)
    return features.postprocess(question, columns_of(rows), outputs)


def test_a_row_is_question_and_window_between_special_tokens():
    features = make()
    _, rows = encode(features, example("Bob"))
    columns = rows[0].columns
    head = [BOS, *b"Where?", EOS]
    assert columns["tokens"].tolist() == [*head, *TEXT.encode()[:19], EOS]
    assert columns["context"].tolist() == [8, 27]
    assert columns["span"].tolist() == [16, 18]
    batch = features.batch([columns, None], length=32)
    assert batch["context"][0].nonzero()[0].tolist() == [*range(8, 27)]
    assert batch["token_types"][0].nonzero()[0].tolist() == [*range(8, 28)]
    assert (batch["starts"].tolist(), batch["ends"].tolist()) == ([16, 0], [18, 0])
    assert batch["weights"].tolist() == [1.0, 0.0]
    assert not any(batch[name][1].any() for name in ("context", "segments", "tokens"))


def test_left_to_right_models_have_no_answer_at_the_last_token():
    features = SpanQAFeatures(
        fields=FieldsConfig(), task=make().task, length=28, none_at="last"
    )
    bare = Bytes(bos=True)
    bare.suffix_ids = bare.pair_ids = ()  # as GPT-2's are
    for tokenizer in (Bytes(bos=True), bare):
        _, rows = encode(features, example("Bob"), tokenizer=tokenizer)
        assert [row.columns["tokens"][-1] for row in rows] == [EOS] * len(rows)
        spans = [row.columns["span"].tolist() for row in rows]
        assert spans[0] == [16, 18]
        assert spans[2:] == [[row.size - 1] * 2 for row in rows[2:]]
        batch = features.batch([rows[-1].columns, None], length=28)
        last = rows[-1].size - 1
        assert batch["no_answer"].tolist() == [last, 0]
        assert not batch["context"][0, last]
    assert make().identity() != features.identity()
    bare.eos_id = None
    with pytest.raises(UserError, match=r"'span_qa': the tokenizer has no end of te"):
        encode(features, example("Bob"), tokenizer=bare)


@pytest.mark.parametrize("size", [1, 18, 19, 20, 27, 28, 90])
def test_windows_hold_the_whole_context(size):
    context = ("abcdefgh" * 12)[:size]
    _, rows = encode(make(), example("a", context=context))
    covered = set()
    for row, next_row in zip(rows, [*rows[1:], None], strict=True):
        begin, *_, end = row.columns["offsets"]
        covered |= {*range(begin, end)}
        assert next_row is None or next_row.columns["offsets"][0] == begin + 8
        assert row.size == len(row.columns["tokens"]) <= 28
    assert covered == {*range(size)}
    assert len(rows) == 1 + max(0, -(-(size - 19) // 8))


def test_an_answer_at_any_seam_is_whole_in_some_window():
    features = make(negative_windows=True)
    for start in range(len(TEXT.rstrip()) - 5):
        text = TEXT[start : start + 5]
        if len(text.strip().encode()) > 11:  # of 19 tokens 8 are new in each window
            continue
        question, rows = encode(features, example(text, start))
        holds = [i for i, row in enumerate(rows) if row.columns["span"].any()]
        assert holds and not rows[0].truncated
        for i in holds:
            found = answered(features, question, rows, right=i)
            assert found["answer"] == text.strip()
            assert found["start"] == start + len(text) - len(text.lstrip())


def test_windows_without_the_answer_are_trained_on_by_choice():
    for negative, count in ((False, 1), (True, 7)):
        features = make(negative_windows=negative)
        _, rows = encode(features, example("Ann"))
        assert sum(row.used_for_training for row in rows) == count
        assert [*rows[2].columns["span"]] == [0, 0]
    features = make(no_answer=True)
    for more in ({"is_impossible": True}, {"answers": []}):
        question, rows = encode(features, example() | more)
        assert not question.answers
        assert all(
            row.used_for_training and not row.columns["span"].any() for row in rows
        )


def test_long_questions_and_lost_answers_are_truncated():
    _, rows = encode(make(), example(question="Where is it?"))
    assert rows[0].columns["tokens"].tolist()[1:7] == [*b"Where "]
    assert all(row.truncated for row in rows)
    long = TEXT[4:40]  # in no window
    _, rows = encode(make(), example(long))
    assert all(row.truncated and not row.used_for_training for row in rows)


def test_the_most_frequent_answer_is_the_target():
    value = example("Ulm")
    value["answers"] += [{"text": "Bob", "answer_start": 8}] * 2
    question, rows = encode(make(), value)
    assert answered(make(), question, rows, right=0)["answer"] == "Bob"


def test_answers_as_tfds_has_them():
    value = example("Ulm")
    starts = np.array([15, 8])
    value["answers"] = {"text": ["Ulm", "Bob"], "answer_start": starts}
    assert [a.text for a in make().parse(value).answers] == ["Ulm", "Bob"]


def test_a_question_or_context_without_tokens_has_a_place():
    class Deaf(Bytes):
        def encode_with_offsets(self, texts):
            whole = super().encode_with_offsets(texts)
            return [e._replace(ids=e.ids[:0], offsets=e.offsets[:0]) for e in whole]

    question, rows = encode(
        make(), example("a", context="ab"), tokenizer=Deaf(bos=True)
    )
    assert rows[0].columns["tokens"].tolist() == [BOS, *b"?", EOS, *b"?", EOS]
    assert answered(make(), question, rows, right=0)["answer"] == "ab"


def test_no_answer_against_the_threshold():
    question, rows = encode(make(no_answer=True), example("Bob"))
    outputs = [
        {"start": 16, "end": 18, "score": np.float32(1 - i), "no_answer": np.float32(n)}
        for i, n in zip(range(len(rows)), [2.0, 5.0, 3.0] * 3, strict=False)
    ]
    # The lowest of no answer, 2, is against the best score, 1.
    found = make(no_answer=True).postprocess(question, columns_of(rows), outputs)
    assert found == {"answer": "", "start": None, "score": 1.0, "no_answer_score": 2.0}
    patient = make(no_answer=True, no_answer_threshold=1.0)
    assert patient.postprocess(question, columns_of(rows), outputs)["answer"] == "Bob"
    assert make().postprocess(question, columns_of(rows), outputs) == {
        "answer": "Bob",
        "start": 8,
        "score": 1.0,
    }


def test_metrics():
    features = make(no_answer=True)
    values = example("Bob"), example() | {"answers": []}
    questions = [features.parse(value) for value in values]
    right = [{"answer": "bob."}, {"answer": ""}]
    assert features.compute_metrics(right, questions) == {"exact_match": 1.0, "f1": 1.0}
    part = [{"answer": "saw Bob"}, {"answer": "Ulm"}]
    found = features.compute_metrics(part, questions)
    assert found == {"exact_match": 0.0, "f1": pytest.approx(1 / 3)}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (example("Ulm", 16), r"answer 'Ulm' is not at answer_start = 16 .*it is at 15"),
        (example("Ulm", -1), "is not at answer_start = -1"),
        (example("Rom", 3), "'Rom' is not at .*nor anywhere else"),
        (example(" ", 3), "an answer is empty"),
        (example() | {"answers": []}, r"has no answer \(config\.task\.no_answer=True"),
        (example() | {"is_impossible": "true"}, "'is_impossible' = 'true': must be tr"),
        (
            example() | {"answers": {"text": ["Ulm", "a"], "answer_start": [15]}},
            "'answers' has 2 'text', but 1 'answer_start'",
        ),
        (example("Bob", True), "must have a 'text' and a number 'answer_start'"),
        (example() | {"answers": "Ulm"}, "'answers' holds str, not a list of answers"),
        (example() | {"answers": ["Ulm"]}, "must have a 'text' and a number"),
        (example() | {"answers": [{"text": "Ulm"}]}, "must have a 'text' and a number"),
        (example() | {"answers": {"text": ["a"]}}, "holds dict, not a list of answers"),
        (example() | {"answers": {"text": 1, "answer_start": 2}}, "holds dict, not a"),
        (example(question=" "), "'question' is empty"),
        (example() | {"context": 3}, "'context' holds int, not a string"),
        ({"question": "a", "contxt": "b"}, "fields.context = 'context'.*mean 'contxt'"),
        ({"question": "a", "context": "b"}, "fields.answers = 'answers': no such"),
        (
            make().example_from_text("Who?"),
            r"config\.data\.fields\.context = 'context': no such",
        ),
    ],
)
def test_user_errors(value, why):
    with pytest.raises(UserError, match=why) as error:
        make().parse(value)
    assert "\n" not in str(error.value)


def test_unlabelled_questions_need_no_answers():
    question, rows = encode(make(), {"question": "a", "context": TEXT}, labelled=False)
    assert question.answers == ()
    assert len(rows) > 1


def sections(path, **data):
    return {
        "model": {"kind": "encoder", "dim": 8, "num_layers": 1, "num_heads": 1},
        "tokenizer": {"kind": "bytes"},
        "data": {"source": "jsonl", "path": path, "valid_path": path, "length": 32}
        | data,
        "task": {"kind": "span_qa", **TASK},
    }


def test_jsonl_becomes_stores_of_windows(tmp_path):
    names = {"question": "q", "context": "c", "answers": "a"}
    good = {names.get(n, n): v for n, v in example("Cléo", question="Who?").items()}
    bad = good | {"a": [{"text": "Bob", "answer_start": 0}]}
    lines = [json.dumps(value) for value in (good, bad)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    given = sections(str(tmp_path / "a.jsonl"), fields=names)
    with pytest.raises(UserError, match=r"a\.jsonl:2: the answer 'Bob' is not at"):
        pipeline.prepare(parse(given), workdir=tmp_path / "run")
    config = parse(given, ["data.on_bad_example=skip"])
    datasets = pipeline.prepare(config, workdir=tmp_path / "run")
    (store,) = datasets.stores["train"]
    assert (store.num_examples, store.num_skipped, len(store)) == (1, 1, 3)
    said = batches.describe_step(datasets, config, 1, data_shards=1)  # of one example
    rows = json.loads(said.removeprefix("its batch is rows ").partition(" of")[0])
    assert sorted(rows) == [0, 1, 2]
    (held_out,) = datasets.stores["valid"]
    assert [dict(e) for e in held_out.examples] == [good]
    for i in range(3):
        start, end = store[i]["span"]
        assert bytes(store[i]["tokens"][start : end + 1].tolist()).decode() == "Cléo"


def test_an_overlap_shorter_than_an_answer_is_an_error():
    for leaf in ("stride", "max_question_tokens", "max_answer_tokens"):
        with pytest.raises(UserError, match=r"data\.length = 32: must be at least 3"):
            parse(sections("x"), [f"task.{leaf}={TASK[leaf] + 6}"])


def test_labels_come_back_as_the_answers_of_odd_texts(odd_texts):
    rng = random.Random(1)
    features = make(length=64, negative_windows=True, stride=20)
    for context in odd_texts:
        if not context.strip():
            continue
        start = rng.randrange(len(context))
        text = context[start : start + rng.randint(1, 5)]
        if not text.strip():
            continue
        question, rows = encode(features, example(text, start, context))
        right = [i for i, row in enumerate(rows) if row.columns["span"].any()]
        found = answered(features, question, rows, right=right[0])
        assert found["answer"] == text.strip()
