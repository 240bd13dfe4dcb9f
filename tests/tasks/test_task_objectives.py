"""Tasks of encoders and encoder-decoders, on rows of the data room's making."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from lmjax import models, tasks
from lmjax.config.experiment import parse
from lmjax.config.optim import OptimConfig
from lmjax.data.lm import objectives
from lmjax.data.tokenizers.plain import Bytes
from lmjax.training import optim, step

TOKENIZER = Bytes(bos=True, mask=True, num_sentinels=8)
SIZE = {"dim": 32, "num_layers": 2, "num_heads": 4, "max_length": 32}
MODEL = {**SIZE, "vocab_size": TOKENIZER.vocab_size, "scan_layers": True}
BERT = {"kind": "encoder", "pooler": True, "num_token_types": 2, "pair_head": True}
TASKS = {
    "masked_lm": {"kind": "masked_lm"},
    "sentence_order": {"kind": "masked_lm", "sentence_order": True},
    "span_corruption": {"kind": "span_corruption"},
    "prefix_lm": {"kind": "prefix_lm"},
    "infilling": {"kind": "infilling"},
}


@functools.cache
def make(name):
    """Return the model, the task, and a batch of eight random windows."""
    encoder = TASKS[name]["kind"] == "masked_lm"
    config = parse(
        {
            "model": MODEL | (BERT if encoder else {"kind": "encoder_decoder"}),
            "tokenizer": {"kind": "bytes", "mask": True, "num_sentinels": 8},
            "data": {
                "source": "python_stdlib",
                "length": 24,
                "isolate_documents": False,
            },
            "task": TASKS[name],
        }
    )
    objective = objectives.build(config, TOKENIZER)
    # 0 is the start of a target: rotary positions cannot tell 0 from 0, 0.
    ids = np.random.default_rng(0).integers(1, 256, (8, objective.window))
    windows = {"targets": ids, "segments": np.ones_like(ids)}
    batch = objective.make_batch(windows, np.arange(8), purpose=objectives.TRAIN)
    return models.build(config.model, platform="cpu"), tasks.build(config.task), batch


@pytest.mark.parametrize("name", TASKS)
def test_each_tiny_model_overfits_eight_sequences(name, overfit):
    model, task, batch = make(name)
    config = OptimConfig(
        learning_rate=0.01, schedule="constant", warmup_steps=5, weight_decay=0.0
    )
    parts = {
        "model": model,
        "optimizer": optim.build(config, axes=model.axes, num_steps=200),
    }
    start = jax.jit(functools.partial(step.init_state, **parts))
    options = {"task": task, "num_microbatches": 2}
    train = jax.jit(functools.partial(step.train_step, **options, **parts))
    state = overfit(train, start(jax.random.key(0)), batch, num_steps=200)
    evaluate = jax.jit(functools.partial(task.evaluate, model))
    held_out = evaluate(state.params, batch).metrics
    for name in held_out.keys() & {"accuracy", "pair_accuracy"}:
        assert held_out[name][0] == held_out[name][1]


@pytest.mark.parametrize("name", TASKS)
def test_targets_of_weight_0_have_no_gradient(name, random_params):
    model, task, batch = make(name)
    params = random_params(model)
    none = {**batch, "weights": np.zeros_like(batch["weights"])}
    other = {**batch, "targets": (batch["targets"] + 1) % 256}
    half = np.arange(batch["weights"].shape[1]) % 2
    first = {**batch, "weights": batch["weights"] * half}
    changed = {**first, "targets": np.where(half, batch["targets"], other["targets"])}
    grad = jax.jit(jax.grad(lambda p, b: task.loss(model, p, b, key=None)[0]))
    for leaf in jax.tree.leaves(grad(params, none)):
        assert not np.asarray(leaf).any()
    same = grad(params, first), grad(params, changed)
    for a, b in zip(*map(jax.tree.leaves, same), strict=True):
        np.testing.assert_array_equal(a, b)


def test_logits_are_computed_only_at_predicted_positions(random_params):
    model, task, batch = make("masked_lm")
    params = random_params(model)
    logits = np.asarray(jax.jit(model.apply)(params, batch), np.float64)
    rows = np.arange(8)[:, None]
    logits = logits[rows, batch["predict_positions"]]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_probs, batch["targets"][..., None], -1)[..., 0]
    loss = jax.jit(functools.partial(task.loss, model, key=None))
    objective, weight, metrics, _ = loss(params, batch)
    assert weight == batch["weights"].sum()
    assert objective == pytest.approx((nll * batch["weights"]).sum(), rel=1e-5)
    assert metrics["loss"][0] == pytest.approx(objective)


def test_the_loss_of_pairs_is_a_mean_of_its_own(random_params):
    model, task, batch = make("sentence_order")
    params = random_params(model)
    batch = {name: value.copy() for name, value in batch.items()}
    for name in batch:  # a row of padding, as the last batch of an evaluation has
        batch[name][-1] = 0
    loss = jax.jit(functools.partial(task.loss, model, key=None))
    objective, weight, metrics, _ = loss(params, batch)
    alone = tasks.build(dataclasses.replace(task.config, sentence_order=False))
    words = alone.loss(model, params, batch, key=None)[0]
    total, rows = metrics["pair_loss"]
    assert rows == 7
    # Each row predicts as many tokens: the means add up.
    assert (objective / weight) == pytest.approx(words / weight + total / rows)
    evaluate = jax.jit(functools.partial(task.evaluate, model))
    held_out = evaluate(params, batch).metrics
    assert float(held_out["pair_loss"][0]) == pytest.approx(float(total))
    assert held_out["pair_accuracy"][1] == 7


@pytest.mark.parametrize("kind", TASKS)
def test_only_the_chain_rule_scores_a_text(kind):
    assert not make(kind)[1].scores_text
