"""The parts of a loss that a teacher adds, against their definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.distill import DistillConfig
from lmjax.config.text_task import CausalLMConfig
from lmjax.tasks.distill import HiddenStates, Teacher, hidden_loss, soft_loss
from lmjax.tasks.losses import token_loss

B, T, V = 3, 6, 5
RNG = np.random.default_rng(0)
OWN, TAUGHT = jnp.asarray(RNG.normal(size=(2, B, T, V)) * 2, jnp.float32)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1] * 6, [1, 1, 0, 0, 0, 0]], np.int32)
BATCH = {
    "segments": SEGMENTS,
    "weights": np.float32(RNG.random((B, T)) < 0.7) * (SEGMENTS > 0),
    "targets": RNG.integers(0, V, (B, T)),
}


def softmax(x):
    x = np.exp(np.float64(x) - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_targets_are_those_of_a_temperature(temperature):
    p, q = softmax(TAUGHT / temperature), softmax(OWN / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(axis=-1)
    compute = lambda x: soft_loss(x, TAUGHT, temperature=temperature)
    np.testing.assert_allclose(compute(OWN), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(compute(TAUGHT), 0, atol=1e-6)
    # The gradient is T (q - p): at high temperatures its size does not change.
    gradient = jax.grad(lambda x: compute(x).sum())(OWN)
    np.testing.assert_allclose(gradient, temperature * (q - p), atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_hard_and_soft_targets_are_mixed(weight):
    distill = DistillConfig(teacher="x", weight=weight, temperature=2.0)
    config = CausalLMConfig(distill=distill, label_smoothing=0.1)
    found = token_loss(OWN, BATCH, config, teacher_logits=TAUGHT)
    hard = token_loss(OWN, BATCH, CausalLMConfig(label_smoothing=0.1))
    soft = (soft_loss(OWN, TAUGHT, temperature=2.0) * BATCH["weights"]).sum()
    mixed = (1 - weight) * hard.loss_sum + weight * soft
    assert float(found.loss_sum) == pytest.approx(float(mixed), rel=1e-6)
    assert found.metrics["loss"] == hard.metrics["loss"]
    assert float(found.metrics["soft_loss"][0]) == pytest.approx(float(soft))


def states(teacher_dim):
    own = RNG.normal(size=(B, T, 12)), RNG.normal(size=(B, T, teacher_dim))
    return HiddenStates(*(jnp.asarray(x, jnp.float32) for x in own))


def expected_hidden(states, row, config):
    """Return the loss of one row, by its definition."""
    own, taught = (np.float64(x[row]) for x in states)
    total = 0.0
    real = np.flatnonzero(SEGMENTS[row])
    heads = 12 if own.shape == taught.shape else 4
    for t in real:
        if config.hidden:
            total += config.hidden * np.square(own[t] - taught[t]).mean()
        if not config.relations:
            continue
        same = np.flatnonzero(SEGMENTS[row] == SEGMENTS[row, t])
        for head in range(heads):
            probs = []
            for x in (taught, own):
                size = x.shape[1] // heads
                part = x[:, head * size : (head + 1) * size]
                probs.append(softmax(part[same] @ part[t] / np.sqrt(size)))
            p, q = probs
            total += config.relations * (p * np.log(p / q)).sum() / heads
    return total / len(real) * BATCH["weights"][row].sum()


@pytest.mark.parametrize(
    ("weights", "teacher_dim"),
    [
        ({"hidden": 2.0}, 12),
        ({"relations": 3.0}, 20),
        ({"hidden": 1, "relations": 1}, 12),
    ],
)
def test_hidden_states_count_by_the_weights_of_their_row(weights, teacher_dim):
    config, both = DistillConfig(teacher="x", **weights), states(teacher_dim)
    rows = [expected_hidden(both, row, config) for row in range(B)]
    found = float(hidden_loss(both, BATCH, config))
    assert found == pytest.approx(sum(rows), rel=1e-4)
    # Rows add up, however they are spread over microbatches.
    part = lambda x, i: x[i : i + 1]
    alone = [
        hidden_loss(
            HiddenStates(*(part(x, i) for x in both)),
            {name: part(x, i) for name, x in BATCH.items()},
            config,
        )
        for i in range(B)
    ]
    np.testing.assert_allclose(alone, rows, rtol=1e-4)
    # What lies in padding does not count.
    moved = both._replace(student=both.student + 9 * (SEGMENTS == 0)[..., None])
    assert float(hidden_loss(moved, BATCH, config)) == pytest.approx(found, rel=1e-5)


def test_labels_are_matched_by_their_names():
    teacher = Teacher(model=None, params={}, labels=(2, 0, 1))
    np.testing.assert_array_equal(teacher.in_order(jnp.array([5, 6, 7])), [7, 5, 6])
