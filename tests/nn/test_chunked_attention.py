"""Chunked attention is attention, and makes no array of all queries and all keys."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import models
from lmjax.nn import attention_kernels, chunked_attention
from lmjax.nn.attention_context import AttentionContext, AttentionOptions, dense_mask
from lmjax.nn.attention_kernels import attend
from lmjax.nn.chunked_attention import block_mask
from lmjax.nn.dense_attention import dense_attention
from tests.nn.attention_cases import normal
from tests.nn.attention_cases import self_attention as of_sequence

B, T, S, H = 2, 11, 9, 8
SEGMENTS = np.array([[1] * 4 + [2] * 5 + [0] * 2, [1] * 7 + [2] + [3] * 3])
POSITIONS = np.array([[*range(4), *range(5), 0, 1], [*range(7), 0, *range(3)]])
# Of a source: padding of the tokens sees padding here, too.
SOURCE_SEGMENTS = np.array([[1] * 3 + [2] * 3 + [0] * 3, [2] * 2 + [1] * 4 + [3] * 3])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(chunked_attention, "BLOCK", 4)


def self_attention(segments=SEGMENTS, positions=POSITIONS, **options):
    return of_sequence(positions, segments, **options)


CROSS = AttentionContext(
    segments_BT=jnp.asarray(SEGMENTS), key_segments_BS=jnp.asarray(SOURCE_SEGMENTS)
)


def value_and_grads(attend, make_mask, context, *, heads, bias=None, **options):
    """Return a weighted sum of the outputs, and its gradients."""
    num_q, num_kv = heads
    num_keys = context.keys[0].shape[1]
    q = normal(B, T, num_q, H)
    k, v = (normal(B, num_keys, num_kv, H, seed=seed) for seed in (1, 2))
    weights = normal(B, T, num_q, H, seed=3)

    def loss(arrays, context):
        mask = make_mask(context)
        attention = AttentionOptions(**options)
        out = attend(*arrays[:3], mask, bias=arrays[3], options=attention)
        return (out * weights).sum()

    return jax.jit(jax.value_and_grad(loss))((q, k, v, bias), context)


@pytest.mark.parametrize(
    ("context", "heads", "softcap", "bias_rows"),
    [
        (self_attention(causal=True), (4, 4), 0.0, None),
        (self_attention(causal=True, window=3), (4, 2), 2.0, None),
        (self_attention(window=3), (6, 1), 0.0, 2),
        (self_attention(), (4, 2), 2.0, 1),
        (CROSS, (4, 2), 0.0, None),
    ],
    ids=["causal", "window", "two-sided window", "bias", "cross"],
)
def test_it_computes_what_dense_attention_does(context, heads, softcap, bias_rows):
    num_keys = context.keys[0].shape[1]
    bias = None if bias_rows is None else normal(bias_rows, heads[0], T, num_keys)
    options = {"heads": heads, "softcap": softcap, "bias": bias}
    expected = value_and_grads(dense_attention, dense_mask, context, **options)
    found = value_and_grads(
        chunked_attention.chunked_attention, block_mask, context, **options
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_pairs_of_blocks_without_a_visible_key_are_left_out():
    one = np.ones((1, 12), int), np.arange(12)[None]
    count = lambda context: int(block_mask(context).num_pairs)
    assert count(self_attention(*one)) == 9
    assert count(self_attention(*one, causal=True)) == 6
    assert count(self_attention(*one, causal=True, window=2)) == 5
    apart = np.repeat([[1, 2, 3]], 4, axis=1), np.arange(12)[None]
    assert count(self_attention(*apart, causal=True)) == 3


def test_a_query_that_sees_no_key_gets_nothing():
    context = AttentionContext(
        segments_BT=jnp.asarray([[1, 2]]), key_segments_BS=jnp.asarray([[1, 1, 1]])
    )
    q, k, v = normal(1, 2, 1, H), normal(1, 3, 1, H), normal(1, 3, 1, H, seed=1)

    def loss(q, k, v):
        mask = block_mask(context)
        return attend(q, k, v, mask, options=AttentionOptions())[0, 1].sum()

    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)
    assert value == 0 and not any(np.any(grad) for grad in grads)


@pytest.mark.slow
def test_dropped_weights_are_those_of_the_backward_pass():
    """The gradient is that of the function with this key; without it, another."""
    context, key = self_attention(causal=True), jax.random.key(1)
    k, v = normal(B, T, 2, H, seed=1), normal(B, T, 2, H, seed=2)
    step = normal(B, T, 2, H, seed=4)

    @jax.jit
    def loss(size, key=None):
        q = normal(B, T, 2, H) + size * step
        out = attend(
            *(q, k, v + size * step, block_mask(context)),
            options=AttentionOptions(dropout_rate=0.4),
            key=key,
        )
        return jnp.square(out).sum()

    for given in (key, None):
        slope = jax.jit(jax.grad(loss))(0.0, given)
        numeric = (loss(1e-2, given) - loss(-1e-2, given)) / 2e-2
        np.testing.assert_allclose(slope, numeric, rtol=2e-3)
    assert abs(loss(0.0, key) - loss(0.0)) > 1.0


def test_dropout_keeps_the_mean():
    """Values of 1 are averaged to 1; dropped and scaled, to 1 on average."""
    length = 64
    context = self_attention(np.ones((1, length), int), np.arange(length)[None])
    q, k = normal(1, length, 8, H), normal(1, length, 8, H, seed=1)
    out = attend(
        *(q, k, np.ones_like(k), block_mask(context)),
        options=AttentionOptions(dropout_rate=0.3),
        key=jax.random.key(0),
    )
    assert abs(out.mean() - 1.0) < 0.02 and out.std() > 0.05


def lowered(make_config, batch_length, **changes):
    """Return the text of the gradient of a small decoder, not compiled."""
    config = make_config("llama", max_length=batch_length, **changes).model
    model = models.build(config, platform="cpu")
    ids = jax.ShapeDtypeStruct((1, batch_length), jnp.int32)
    batch = dict.fromkeys(("tokens", "segments", "positions"), ids)
    loss = lambda params, batch: model.hidden(params, batch).sum()
    return jax.jit(jax.grad(loss)).lower(model.shapes, batch).as_text()


def test_no_array_has_all_queries_and_all_keys(make_config, monkeypatch):
    monkeypatch.setattr(chunked_attention, "BLOCK", 512)
    squared = re.compile(r"tensor<(?:\d+x)*2056x(?:\d+x)*2056x")
    assert not squared.search(lowered(make_config, 2056))
    assert squared.search(lowered(make_config, 2056, attention="xla"))


def test_short_rows_are_computed_at_once(make_config):
    assert "stablehlo.while" not in lowered(make_config, 32)


@pytest.mark.parametrize(("remat", "num_loops"), [("attention", 1), ("full", 2)])
def test_its_results_can_be_kept(make_config, monkeypatch, remat, num_loops):
    """Else the backward pass runs the loop of the forward pass once more."""
    monkeypatch.setattr(attention_kernels, "LONG", 0)
    changes = {"num_layers": 1, "scan_layers": False, "remat": remat}
    text = lowered(make_config, 16, **changes)
    # Beside these loops: one over pairs for the mask, and one of the backward pass.
    assert text.count("stablehlo.while") == 2 + num_loops
