"""The decoder: who sees whom, and the same function however it is compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.text_task import CausalLMConfig
from lmjax.tasks import build

TASK = build(CausalLMConfig())


@pytest.fixture(scope="module")
def loss_and_grads():
    """Return the summed loss and its gradient, jitted once for each model."""

    @functools.cache
    def make(model):
        loss = lambda params, batch, key: TASK.loss(model, params, batch, key=key)[0]
        return jax.jit(jax.value_and_grad(loss))

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "scan_layers", "remat"),
    [
        ("gpt2", True, "none"),
        ("llama", True, "none"),
        ("gemma", True, "none"),
        ("gemma", True, "dots"),
        ("gemma", True, "full"),
        ("gemma", False, "dots"),
        ("gemma", False, "full"),
    ],
)
def test_compiled_another_way_it_is_the_same_function(
    tiny,
    random_params,
    make_batch,
    loss_and_grads,
    assert_close,
    architecture,
    scan_layers,
    remat,
):
    dropout = 0.2 if architecture == "gemma" else 0.0
    plain = tiny(architecture, scan_layers=False, dropout=dropout)
    other = tiny(architecture, scan_layers=scan_layers, remat=remat, dropout=dropout)
    params, batch, key = random_params(plain), make_batch(), jax.random.key(3)
    expected = loss_and_grads(plain)(params, batch, key)
    assert_close(loss_and_grads(other)(params, batch, key), expected)


def test_a_changed_token_moves_no_earlier_logit(
    tiny, random_params, apply, one_text, causal
):
    model = tiny(causal)
    params = random_params(model)
    tokens = np.random.default_rng(0).integers(0, 64, (1, 12))
    changed = np.repeat(tokens, 12, axis=0)
    np.fill_diagonal(changed, (tokens[0] + 7) % 64)
    before = apply(model)(params, one_text(np.repeat(tokens, 12, axis=0)))
    after = apply(model)(params, one_text(changed))
    differs = np.abs(np.asarray(after - before)).max(axis=-1)
    for at in range(12):
        assert (differs[at, :at] == 0).all(), at
        assert differs[at, at] > 0, at


@pytest.mark.slow
def test_packed_documents_are_alone(tiny, random_params, apply, one_text, causal):
    """In a packed row each document has the logits that it has by itself."""
    model = tiny(causal)
    params, rng = random_params(model), np.random.default_rng(1)
    lengths = [5, 1, 6]
    tokens = rng.integers(0, 64, (1, 14))
    batch = {
        "tokens": tokens,
        "segments": np.repeat([1, 2, 3, 0], [*lengths, 2])[None],
        "positions": np.concatenate([np.arange(n) for n in (*lengths, 2)])[None],
    }
    packed = apply(model)(params, batch)
    start = 0
    for length in lengths:
        here = slice(start, start + length)
        alone = apply(model)(params, one_text(tokens[:, here]))
        np.testing.assert_allclose(packed[:, here], alone, rtol=1e-5, atol=1e-5)
        start += length
    # The second document and the padding change; the others do not move at all.
    elsewhere = np.isin(batch["segments"], [1, 3])
    moved = apply(model)(
        params, {**batch, "tokens": np.where(elsewhere, tokens, (tokens + 1) % 64)}
    )
    np.testing.assert_array_equal(moved[elsewhere], packed[elsewhere])


@pytest.mark.parametrize(("global_every", "reach"), [(0, 5), (3, 5), (2, 12)])
def test_a_window_reaches_window_minus_one_back_a_layer(
    tiny, random_params, apply, one_text, global_every, reach
):
    model = tiny("gemma", num_layers=2, window=3, global_every=global_every)
    params = random_params(model)
    tokens = np.random.default_rng(2).integers(0, 64, (2, 12))
    tokens[1] = tokens[0]
    tokens[1, 0] = (tokens[0, 0] + 1) % 64
    logits = apply(model)(params, one_text(tokens))
    differs = np.abs(np.asarray(logits[0] - logits[1])).max(axis=-1)
    assert (differs[:reach] > 0).all() and (differs[reach:] == 0).all()


def test_padding_does_not_matter(tiny, random_params, apply, one_text, causal):
    model = tiny(causal)
    params = random_params(model)
    tokens = np.random.default_rng(3).integers(0, 64, (2, 12))
    batch = one_text(tokens)
    batch["segments"][:, 9:] = 0
    padded = apply(model)(params, batch)[:, :9]
    alone = apply(model)(params, one_text(tokens[:, :9]))
    np.testing.assert_allclose(padded, alone, rtol=1e-5, atol=1e-5)
    assert np.isfinite(padded).all()


def test_dropout_follows_its_key(tiny, random_params, one_text):
    model = tiny("gpt2", dropout=0.5)
    params = random_params(model)
    batch = one_text(np.random.default_rng(4).integers(0, 64, (2, 12)))
    apply = jax.jit(model.apply)
    a, b = jax.random.split(jax.random.key(0))
    np.testing.assert_array_equal(
        apply(params, batch, key=a), apply(params, batch, key=a)
    )
    assert np.abs(apply(params, batch, key=a) - apply(params, batch, key=b)).max() > 0.1
    without = jax.jit(tiny("gpt2").apply)
    np.testing.assert_array_equal(apply(params, batch), without(params, batch))


@pytest.mark.slow
def test_each_layer_drops_other_elements(tiny, one_text):
    """Scanned layers must not share one key, nor the two branches of a block."""
    from lmjax.nn import block, param, stack

    seen = []
    real = param.dropout
    model = tiny("gpt2", dropout=0.5, scan_layers=False)
    config = model.config

    def spy(x, *, rate, key):
        seen.append(jax.random.key_data(key).tolist())
        return real(x, rate=rate, key=key)

    with pytest.MonkeyPatch.context() as patch:
        for module in (block, stack):
            patch.setattr(module, "dropout", spy)
        params = model.init(jax.random.key(0))
        model.hidden(params, one_text([[1, 2, 3]]), key=jax.random.key(1))
    assert len(seen) == 1 + 2 * config.num_layers
    assert len(set(map(tuple, seen))) == len(seen)


def test_soft_caps_bound_logits(tiny, random_params, apply, one_text):
    model = tiny("gemma")
    params = jax.tree.map(lambda p: 10 * p, random_params(model))
    logits = apply(model)(params, one_text(np.arange(24).reshape(2, 12)))
    assert 5.0 < np.abs(logits).max() <= 6.0


def test_bfloat16_computes_close_to_float32(
    tiny, random_params, apply, one_text, causal
):
    exact, rounded = tiny(causal), tiny(causal, dtype="bfloat16")
    params = random_params(exact)
    batch = one_text(np.random.default_rng(5).integers(0, 64, (2, 12)))
    logits = apply(rounded)(params, batch)
    expected = np.asarray(apply(exact)(params, batch))
    assert logits.dtype == jnp.float32
    error = np.abs(logits - expected)
    assert error.mean() < 0.03 * np.abs(expected).mean()
    assert jax.eval_shape(rounded.hidden, params, batch).dtype == jnp.bfloat16
