"""Evaluation: what is measured is known before."""

import jax
import numpy as np
import pytest

from lmjax.config.experiment import parse
from lmjax.config.task import example_task_kinds
from lmjax.errors import UserError
from lmjax.parallel import sharding
from lmjax.parallel.batch import device_get_ahead
from lmjax.training import evaluate, loop
from lmjax.training.compiled import make_program

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
def test_the_names_are_of_what_is_measured(kind):
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
    ("kind", "best", "told"),
    [
        ("causal_lm", "los", r"must be one of loss, .*\(did you mean 'loss'\?\)"),
        ("seq2seq", "bleu", "must be one of loss, accuracy, perplexity, exact_match"),
        ("classify", "f1", "must be one of loss, accuracy, macro_f1, matthews"),
    ],
)
def test_a_best_metric_that_is_never_measured_is_found_first(
    kind, best, told, tmp_path
):
    given = config(kind, checkpoint={"best_metric": best})
    with pytest.raises(UserError, match=f"best_metric = '{best}': {told}"):
        loop.train(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_best_metric_needs_a_valid_split(tmp_path):
    data = {"source": "tfds", "path": "x", "valid_split": "", "length": 32}
    given = config("causal_lm", data=data, checkpoint={"best_metric": "loss"})
    with pytest.raises(UserError, match=r"'loss': config\.data has no valid split"):
        loop.train(given, tmp_path / "run")


def test_results_are_read_while_the_device_is_two_ahead():
    begun = []
    results = (begun.append(i) or np.array(i) for i in range(5))
    read = [(int(result), len(begun)) for result in device_get_ahead(results)]
    assert read == [(0, 3), (1, 4), (2, 5), (3, 5), (4, 5)]
    assert [*device_get_ahead(iter(()))] == []
