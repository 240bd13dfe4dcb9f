"""Losses against their formulae, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import tasks
from lmjax.config.text_task import CausalLMConfig
from lmjax.tasks.losses import cross_entropy

RNG = np.random.default_rng(0)
LOGITS = 3 * RNG.standard_normal((4, 5, 11))
TARGETS = RNG.integers(0, 11, (4, 5))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_cross_entropy(label_smoothing, z_loss):
    log_z = np.log(np.exp(LOGITS).sum(-1))
    log_probs = LOGITS - log_z[..., None]
    smooth = (1 - label_smoothing) * np.eye(11)[TARGETS] + label_smoothing / 11
    objective = -(smooth * log_probs).sum(-1) + z_loss * log_z**2
    nll = -np.take_along_axis(log_probs, TARGETS[..., None], -1)[..., 0]
    found = cross_entropy(
        jnp.float32(LOGITS), TARGETS, label_smoothing=label_smoothing, z_loss=z_loss
    )
    np.testing.assert_allclose(found[0], nll, rtol=1e-5)
    np.testing.assert_allclose(found[1], objective, rtol=1e-5)


def test_large_logits_do_not_overflow():
    logits = jnp.float32([[1e4, -1e4, 0.0]])
    for target, nll in ((0, 0.0), (1, 2e4), (2, 1e4)):
        found, _ = cross_entropy(logits, jnp.array([target]))
        np.testing.assert_allclose(found, [nll], rtol=1e-6)


def test_the_task_sums_over_weights(tiny, random_params, apply, make_batch):
    model = tiny("gpt2")
    params, batch = random_params(model), make_batch()
    batch["weights"] *= np.random.default_rng(1).random(batch["weights"].shape)
    logits = np.asarray(apply(model)(params, batch), np.float64)
    batch["targets"][::2] = logits.argmax(-1)[::2]  # some are predicted
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_probs, batch["targets"][..., None], -1)[..., 0]
    right = logits.argmax(-1) == batch["targets"]
    weights = batch["weights"]
    task = tasks.build(CausalLMConfig(label_smoothing=0.1, z_loss=1e-3))
    loss = jax.jit(functools.partial(task.loss, model, key=None))
    objective, weight, metrics, _ = loss(params, batch)
    assert weight == pytest.approx(weights.sum())
    # Training reports the plain loss, so that runs with other options compare.
    assert metrics["loss"][0] == pytest.approx((nll * weights).sum(), rel=1e-5)
    assert objective != pytest.approx((nll * weights).sum(), rel=1e-3)
    evaluate = jax.jit(functools.partial(task.evaluate, model))
    held_out = evaluate(params, batch).metrics
    assert held_out["loss"][0] == pytest.approx((nll * weights).sum(), rel=1e-5)
    assert held_out["accuracy"][0] == pytest.approx((right * weights).sum(), rel=1e-5)
    assert held_out["accuracy"][1] == held_out["loss"][1] == weight


def test_batch_shapes_are_those_of_a_batch(make_batch):
    shapes = tasks.build(CausalLMConfig()).batch_shapes(8, 12)
    found = jax.tree.map(lambda x: (x.shape, x.dtype), make_batch())
    assert {name: (s.shape, s.dtype) for name, s in shapes.items()} == found
