"""Finding answers: the best span, the loss, and tiny models that learn it."""

import functools

import jax
import numpy as np
import pytest

from lmjax import models, tasks
from lmjax.config.experiment import parse
from lmjax.config.optim import OptimConfig
from lmjax.config.task import SpanQAConfig
from lmjax.data.features.registry import make_features
from lmjax.tasks.span_qa import best_span
from lmjax.training import optim, step

SIZE = {"vocab_size": 64, "dim": 32, "num_layers": 1, "max_length": 32}
KINDS = {
    "encoder": {"num_heads": 4, "num_token_types": 2},
    "decoder": {"num_heads": 4},
    "recurrent": {"bidirectional": True, "num_token_types": 2},
}
TASK = {"max_question_tokens": 4, "stride": 4, "max_answer_tokens": 4}


@functools.cache
def make(kind, **task):
    """Return the model, the task, and a batch of seven rows and one of padding.

    The answer begins with token 60 and ends with 61; two rows have none.
    """
    config = parse(
        {
            "model": {"kind": kind, **SIZE, **KINDS[kind]},
            "tokenizer": {"kind": "bytes"},
            "data": {"source": "jsonl", "path": "x", "length": 20},
            "task": {"kind": "span_qa", **TASK, **task},
        }
    )
    rng = np.random.default_rng(0)
    rows = []
    for i in range(7):
        tokens = rng.integers(1, 60, rng.integers(12, 21)).astype(np.int32)
        span = np.sort(rng.integers(4, len(tokens) - 1, 2))
        none = len(tokens) - 1 if kind == "decoder" else 0
        if i < 5:
            tokens[span] = [60, 61]
        context = np.array([4, len(tokens) - 1])
        span = span if i < 5 else np.array([none, none])
        rows.append({"tokens": tokens, "context": context, "span": span})
    batch = make_features(config).batch([*rows, None], length=20)
    return models.build(config.model, platform="cpu"), tasks.build(config.task), batch


@pytest.mark.parametrize("max_length", [1, 3, 30])
def test_the_best_span_equals_brute_force(max_length):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((40, 2, 12)).astype(np.float32)
    for b, row in enumerate(logits):
        row[:, : b % 4] = row[:, 12 - b % 3 :] = -np.inf
    found = [np.asarray(x) for x in best_span(logits, max_length=max_length)]
    for b in range(40):
        expected = max(
            (logits[b, 0, i] + logits[b, 1, j], i, j)
            for i in range(12)
            for j in range(i, min(i + max_length, 12))
        )
        start, end, score = (x[b] for x in found)
        assert (start, end) == expected[1:]
        np.testing.assert_allclose(score, expected[0])


def test_batches_have_the_declared_shapes():
    _, task, batch = make("encoder")
    shapes = {name: (s.shape, s.dtype) for name, s in task.batch_shapes(8, 20).items()}
    assert shapes == {name: (x.shape, x.dtype) for name, x in batch.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_each_tiny_model_overfits(kind):
    model, task, batch = make(kind)
    config = OptimConfig(
        learning_rate=0.01, schedule="constant", warmup_steps=5, weight_decay=0.0
    )
    parts = {
        "model": model,
        "optimizer": optim.build(config, axes=model.axes, num_steps=60),
    }
    state = jax.jit(functools.partial(step.init_state, **parts))(jax.random.key(0))
    options = {"task": task, "num_microbatches": 2}
    train = jax.jit(functools.partial(step.train_step, **options, **parts))
    for _ in range(60):
        state, metrics = train(state, batch)
    total, weight = metrics["loss"]
    assert weight == 7
    assert total / weight < 0.1
    use = jax.jit(lambda p, b: [f(model, p, b) for f in (task.evaluate, task.predict)])
    (held_out, *_), answers = use(state.params, batch)
    assert held_out.keys() == {"loss"}
    np.testing.assert_allclose(held_out["loss"][0], total, atol=0.2)
    lengths = batch["ends"] - batch["starts"] + 1
    short = (lengths <= 4) & (np.arange(8) < 5)
    assert short.sum() > 1
    for name, places in (("start", "starts"), ("end", "ends")):
        np.testing.assert_array_equal(
            np.asarray(answers[name])[short], batch[places][short]
        )
    none = np.asarray(answers["no_answer"]) > np.asarray(answers["score"])
    np.testing.assert_array_equal(none[:7], [False] * 5 + [True] * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_depends_on_the_whole_text(kind, random_params):
    model, task, batch = make(kind)
    predict = jax.jit(functools.partial(task.predict, model))
    before = np.asarray(predict(random_params(model), batch)["no_answer"])
    for place in (2, 5, 10):  # of the question and the context
        tokens = batch["tokens"].copy()
        tokens[:7, place] = 62
        after = predict(random_params(model), {**batch, "tokens": tokens})["no_answer"]
        assert (np.abs(after - before)[:7] > 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_neither_padding_nor_tokens_outside_the_context_count(kind, random_params):
    model, task, batch = make(kind, label_smoothing=0.1, z_loss=0.01)
    params = random_params(model)
    longer = {
        name: np.pad(x, [(0, 0), (0, 5)]) if x.ndim == 2 else x
        for name, x in batch.items()
    }
    longer["tokens"] = np.where(longer["segments"] > 0, longer["tokens"], 9)
    loss = jax.jit(lambda p, b: task.loss(model, p, b, key=None)[:2])
    predict = jax.jit(functools.partial(task.predict, model))
    for a, b in zip(loss(params, batch), loss(params, longer), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    plain, padded = predict(params, batch), predict(params, longer)
    for name in ("start", "end"):
        np.testing.assert_array_equal(plain[name][:7], padded[name][:7])
        inside = np.take_along_axis(batch["context"], plain[name][:, None], axis=1)
        assert inside[:7].all()
    other = {**batch, "starts": batch["starts"] + 5 * (batch["weights"] == 0)}
    assert loss(params, other)[0] == loss(params, batch)[0]


def test_the_loss_is_the_mean_of_two_cross_entropies(random_params):
    model, task, batch = make("encoder")
    params = random_params(model)
    logits = np.asarray(jax.jit(functools.partial(task.logits, model))(params, batch))
    total = 0.0
    for b in range(7):
        choices = [0, *batch["context"][b].nonzero()[0]]
        for i, places in enumerate(("starts", "ends")):
            row = logits[b, i].astype(np.float64)
            total += np.log(np.exp(row[choices]).sum()) - row[batch[places][b]]
    objective, weight, metrics, _ = jax.jit(
        lambda p, b: task.loss(model, p, b, key=None)
    )(params, batch)
    np.testing.assert_allclose(objective, total / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"][0], total / 2, rtol=1e-5)
    assert weight == 7


def test_labels_are_smoothed_over_the_allowed_tokens(random_params):
    model, plain, batch = make("encoder")
    params = random_params(model)
    smooth = tasks.build(SpanQAConfig(**TASK, label_smoothing=1.0))
    loss = jax.jit(lambda batch: plain.loss(model, params, batch, key=None)[0])
    even = 0.0
    for b in range(7):
        here = (np.arange(8) == b).astype(np.float32)
        choices = [0, *batch["context"][b].nonzero()[0]]
        for place in choices:
            places = dict.fromkeys(("starts", "ends"), np.full(8, place, np.int32))
            even += float(loss({**batch, "weights": here, **places})) / len(choices)
    found = jax.jit(lambda batch: smooth.loss(model, params, batch, key=None))(batch)
    np.testing.assert_allclose(found[0], even, rtol=1e-5)
    np.testing.assert_allclose(found[2]["loss"][0], loss(batch), rtol=1e-6)
