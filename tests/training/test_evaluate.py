"""Evaluation: metrics known before training, and one pass over stored rows."""

import itertools
import json
import random
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lmjax.config.experiment import parse
from lmjax.config.task import example_task_kinds
from lmjax.data import pipeline
from lmjax.data.stores.example_store import ExampleStore
from lmjax.errors import UserError
from lmjax.inference.predictor import Predictor
from lmjax.parallel import sharding
from lmjax.parallel.batch import device_get_ahead
from lmjax.training import evaluate, loop
from lmjax.training.compiled import make_program
from lmjax.training.evaluate import Evaluation

SIZE = {"dim": 8, "num_layers": 1, "num_heads": 1, "max_length": 64}
DECODER, ENCDEC = SIZE, {**SIZE, "kind": "encoder_decoder"}
ENCODER = {
    **SIZE,
    "kind": "encoder",
    "pooler": True,
    "pair_head": True,
    "num_token_types": 2,
}
LABELS = {"labels": ("O", "B-X")}
WINDOWS = {"max_question_tokens": 1, "stride": 9, "max_answer_tokens": 3}
TEXT, PAIRS = ["loss", "accuracy", "perplexity"], {"metrics": ("exact_match",)}
OF_PAIR = ["pair_loss", "pair_accuracy"]
# Of each task a model, settings, and what is measured.
TASKS = {
    "causal_lm": (DECODER, {}, [*TEXT, "word_perplexity", "bits_per_byte"]),
    "masked_lm": (ENCODER, {"sentence_order": True}, [*TEXT, *OF_PAIR]),
    "span_corruption": (ENCDEC, {}, TEXT),
    "prefix_lm": (ENCDEC, {}, TEXT),
    "infilling": (ENCDEC, {}, TEXT),
    "seq2seq": (ENCDEC, PAIRS, [*TEXT, "exact_match"]),
    "prompted_lm": (DECODER, PAIRS, [*TEXT, "exact_match"]),
    "classify": (ENCODER, LABELS, [*TEXT[:2], "macro_f1", "matthews"]),
    "tag": (ENCODER, LABELS, [*TEXT[:2], "precision", "recall", "f1"]),
    "span_qa": (ENCODER, WINDOWS, ["loss", "exact_match", "f1"]),
}
OF_NO_BATCH = {"word_perplexity", "bits_per_byte"}


def config(kind, **more):
    model, task, _ = TASKS[kind]
    reads_text = kind not in example_task_kinds()
    data = {"source": "python_stdlib"} if reads_text else {"source": "jsonl"}
    data |= {} if reads_text else {"path": "x"}
    return parse(
        {
            "model": {"vocab_size": 400, **model},
            "tokenizer": {"kind": "bytes", "mask": True, "num_sentinels": 9},
            "data": {**data, "length": 32, "isolate_documents": not reads_text},
            "task": {"kind": kind, **task},
            **more,
        }
    )


@pytest.mark.parametrize("kind", TASKS)
def test_the_names_are_those_of_the_metrics(kind):
    if kind == "tag":
        pytest.importorskip("seqeval")
    given, names = config(kind), TASKS[kind][-1]
    assert sorted(evaluate.metric_names(given)) == sorted(names)
    program = make_program(given, sharding.make_mesh(given.mesh, jax.devices()[:1]))
    params, batch = program.state_shapes.params, program.batch_shapes()
    shapes = jax.eval_shape(program.eval_step, params, batch).metrics
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    of_batches = set(names) - OF_NO_BATCH
    of_batches -= {*evaluate.prediction_metric_names(given)}
    assert program.task.summarize(zeros).keys() == of_batches


@pytest.mark.parametrize(
    ("kind", "best", "message"),
    [
        ("causal_lm", "los", r"must be one of loss, .*\(did you mean 'loss'\?\)"),
        ("seq2seq", "bleu", "must be one of loss, accuracy, perplexity, exact_match"),
        ("classify", "f1", "must be one of loss, accuracy, macro_f1, matthews"),
    ],
)
def test_an_unknown_best_metric_is_an_error_before_training(
    kind, best, message, tmp_path
):
    given = config(kind, checkpoint={"best_metric": best})
    with pytest.raises(UserError, match=f"best_metric = '{best}': {message}"):
        loop.train(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_best_metric_needs_a_valid_split(tmp_path):
    data = {"source": "tfds", "path": "x", "valid_split": "", "length": 32}
    given = config("causal_lm", data=data, checkpoint={"best_metric": "loss"})
    with pytest.raises(UserError, match=r"'loss': config\.data has no valid split"):
        loop.train(given, tmp_path / "run")


def test_outputs_are_fetched_while_the_device_is_two_ahead():
    begun = []
    results = (begun.append(i) or np.array(i) for i in range(5))
    read = [(int(result), len(begun)) for result in device_get_ahead(results)]
    assert read == [(0, 3), (1, 4), (2, 5), (3, 5), (4, 5)]
    assert [*device_get_ahead(iter(()))] == []


def examples(kind, count=20):
    """Return examples of which some are several rows."""
    rng = random.Random(0)
    for _ in range(count):
        words = rng.choices("bcd", k=rng.randint(2, 40))
        text, answer = " ".join(words), rng.choice(words)
        start = text.index(answer)
        yield {
            "tag": {"tokens": words, "tags": [rng.choice("XY") for _ in words]},
            "span_qa": {
                "question": "?",
                "context": text,
                "answers": [{"text": answer, "answer_start": start}],
            },
            "seq2seq": {"source": text, "target": answer},
            "prompted_lm": {"source": text, "target": answer},
        }[kind]


SPLIT_TASKS = {
    "tag": ({"labels": ("X", "Y")}, ["loss", "accuracy"]),
    "span_qa": (WINDOWS, ["loss", "exact_match", "f1"]),
    "seq2seq": (PAIRS, [*TEXT, "exact_match"]),
    "prompted_lm": (PAIRS, [*TEXT, "exact_match"]),
}


@pytest.fixture
def evaluation(tmp_path):
    """Return a function that opens an untrained model and its stores to evaluate."""
    numbers = itertools.count()

    def make(kind, **more):
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(e) + "\n" for e in examples(kind)))
        data = {"source": "jsonl", "path": str(path), "valid_path": str(path)}
        task = {"kind": kind, **SPLIT_TASKS[kind][0], **more.pop("task", {})}
        sections = {
            "batch_size": 4,
            "model": TASKS[kind][0],
            "tokenizer": {"kind": "bytes"},
            "data": {**data, "length": 32, "num_buckets": 2},
            "task": task,
            **more,
        }
        given = pipeline.resolve_vocabulary(parse(sections))
        datasets = pipeline.prepare(given, workdir=tmp_path / str(next(numbers)))
        mesh = sharding.make_mesh(given.mesh, jax.devices()[:1])
        with jax.set_mesh(mesh):
            program = make_program(given, mesh)
            params = jax.jit(program.model.init)(jax.random.key(0))
        sharp = jax.tree.map(lambda x: 9 * np.asarray(x), params)
        return Evaluation(program, datasets), sharp

    return make


def measure(evaluation, params):
    with jax.set_mesh(evaluation.program.mesh):
        return evaluation.metrics("valid", params)


@pytest.mark.parametrize("kind", SPLIT_TASKS)
def test_stored_rows_are_evaluated_in_one_pass(kind, evaluation, monkeypatch):
    subject, params = evaluation(kind)
    (store,) = subject.datasets.stores["valid"]
    assert len(store) > 20 or kind in ("seq2seq", "prompted_lm")
    with monkeypatch.context() as patch:
        for name in ("encode", "encode_batch", "encode_with_offsets"):
            patch.setattr(type(subject.datasets.tokenizer), name, refuse)
        patch.setattr(type(subject.program.task), "predict", refuse)
        found = measure(subject, params)
    assert found.keys() == {*SPLIT_TASKS[kind][1]}
    # A store of an earlier version does not say which rows belong to an example.
    monkeypatch.setattr(ExampleStore, "rows_of_examples", None)
    assert measure(subject, params) == pytest.approx(found, rel=1e-6)


def refuse(*args, **options):
    raise AssertionError("not called")


def test_examples_that_are_not_whole_in_the_store_are_predicted(
    evaluation, monkeypatch
):
    every, params = evaluation("span_qa")
    some, _ = evaluation("span_qa", task={"negative_windows": False})
    rows = some.datasets.stores["valid"][0].rows_of_examples
    assert 0 < sum(map(bool, rows)) < 20
    calls, predict = [], Predictor.predict

    def count(self, params, examples, **options):
        calls.append(len(examples.rows))
        return predict(self, params, examples, **options)

    monkeypatch.setattr(Predictor, "predict", count)
    a, b = measure(every, params), measure(some, params)
    assert (a["exact_match"], a["f1"]) == (b["exact_match"], b["f1"])
    assert calls == [20 - sum(map(bool, rows))]


@pytest.mark.parametrize("kind", ["tag", "span_qa"])
def test_num_batches_limits_the_loss_but_not_the_predictions(kind, evaluation):
    whole, params = evaluation(kind)
    part, _ = evaluation(kind, eval={"num_batches": 1})
    few, _ = evaluation(kind, task={"num_answers": 3})
    a, b, c = (measure(subject, params) for subject in (whole, part, few))
    predicted = SPLIT_TASKS[kind][1][1:]
    assert a["loss"] != b["loss"] and a["loss"] == c["loss"]
    assert [a[name] for name in predicted] == [b[name] for name in predicted]
    assert [a[name] for name in predicted] != [c[name] for name in predicted]


def test_perplexity_per_word_is_questioned_where_words_have_no_spaces(caplog):
    task = SimpleNamespace(
        scores_text=True, reads_examples=False, check_measures=lambda tokenizer: None
    )
    program = SimpleNamespace(task=task, config=SimpleNamespace(task=task))
    for num_bytes, warns in ((6_000, False), (60_000, True)):
        store = SimpleNamespace(num_words=990, num_documents=10, num_bytes=num_bytes)
        stores = {"train": [store], "valid": [store]}
        datasets = SimpleNamespace(stores=stores, tokenizer=None)
        Evaluation(program, datasets).check()
        assert ("word_perplexity: the text of valid" in caplog.text) is warns
