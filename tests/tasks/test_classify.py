"""Classification by encoders, decoders and recurrent networks."""

import functools

import jax
import numpy as np
import pytest

from lmjax import models, tasks
from lmjax.config.experiment import parse
from lmjax.config.optim import OptimConfig
from lmjax.data.features.registry import make_features
from lmjax.errors import UserError
from lmjax.training import optim, step

SIZE = {"vocab_size": 64, "dim": 32, "num_layers": 1, "max_length": 32}
BOTH_WAYS = {"bidirectional": True, "hidden_dim": 24}
KINDS = {
    "encoder": {"num_heads": 4, "pooler": True, "num_token_types": 2},
    "decoder": {"num_heads": 4},
    "recurrent": {**BOTH_WAYS, "num_token_types": 2},
    "recurrent mean": {**BOTH_WAYS, "summary": "mean", "cell": "gru"},
    "recurrent max": {**BOTH_WAYS, "summary": "max", "cell": "rnn"},
    "recurrent one way": {},
}


@functools.cache
def make(kind, dropout=0.0):
    """Return the model, the task, and a batch of seven texts and a row of padding."""
    config = parse(
        {
            "model": {
                **SIZE,
                **KINDS[kind],
                "kind": kind.split()[0],
                "dropout": dropout,
            },
            "tokenizer": {"kind": "bytes"},
            "data": {"source": "jsonl", "path": "x", "length": 16},
            "task": {"kind": "classify", "labels": ("a", "b", "c")},
        }
    )
    rng = np.random.default_rng(0)
    rows = [
        {
            "tokens": rng.integers(1, 64, rng.integers(3, 17)).astype(np.int32),
            "second": np.array([rng.integers(2, 9)]),
            "label": np.array([i % 3]),
        }
        for i in range(7)
    ]
    batch = make_features(config).batch([*rows, None], length=16)
    return models.build(config.model, platform="cpu"), tasks.build(config.task), batch


def test_batches_have_the_declared_shapes():
    _, task, batch = make("encoder")
    shapes = {name: (s.shape, s.dtype) for name, s in task.batch_shapes(8, 16).items()}
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
    np.testing.assert_array_equal(held_out["confusion"][0], np.diag([3, 2, 2]))
    given = np.asarray(answers["probabilities"]).argmax(-1)
    np.testing.assert_array_equal(given[:7], batch["labels"][:7])


@pytest.mark.parametrize("kind", KINDS)
def test_neither_padding_nor_the_length_of_a_row_counts(kind, random_params):
    model, task, batch = make(kind)
    params = random_params(model)
    longer = {
        name: np.pad(x, [(0, 0), (0, 5)]) if x.ndim == 2 else x
        for name, x in batch.items()
    }
    longer["tokens"] = np.where(longer["segments"] > 0, longer["tokens"], 9)
    loss = jax.jit(lambda p, b: task.loss(model, p, b, key=None)[:2])
    for a, b in zip(loss(params, batch), loss(params, longer), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    other = {**batch, "labels": batch["labels"] + (batch["weights"] == 0)}
    assert loss(params, other)[0] == loss(params, batch)[0]


def test_a_decoder_classifies_by_the_last_token(random_params):
    model, _, batch = make("decoder")
    params = random_params(model)
    last = (batch["segments"] > 0).sum(axis=1) - 1
    hidden = np.asarray(jax.jit(model.hidden)(params, batch))
    summary = model.summary(params, hidden, batch["segments"])
    np.testing.assert_array_equal(summary[:7], hidden[np.arange(7), last[:7]])


def test_dropout_needs_a_key(random_params):
    model, task, batch = make("encoder", dropout=0.5)
    params = random_params(model)
    loss = jax.jit(lambda p, key: task.loss(model, p, batch, key=key)[0])
    assert loss(params, jax.random.key(0)) != loss(params, jax.random.key(1))
    x = np.ones((4, 32), np.float32)
    plain = model.label_logits(params, x)
    np.testing.assert_array_equal(plain[0], plain[1])
    dropped = model.label_logits(params, x, key=jax.random.key(0))
    assert (np.asarray(dropped[0]) != np.asarray(dropped[1])).any()


def test_a_model_without_labels_is_an_error(tiny, random_params):
    model = tiny("bert")
    with pytest.raises(UserError, match=r"config\.model\.num_labels = 0"):
        model.label_logits(random_params(model), np.ones((1, 32), np.float32))
