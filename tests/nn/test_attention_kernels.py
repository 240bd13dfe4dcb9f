"""Attention kernels against a reference of Python loops, and the choice of one."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import models
from lmjax.errors import UserError
from lmjax.models import model
from lmjax.nn import attention_kernels
from lmjax.nn.attention_context import AttentionContext, dense_mask

B, T, H = 2, 11, 8


def reference(q, k, v, sees, *, softcap):
    """Attend in float64, one query and head at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        keys = [s for s in range(k.shape[1]) if sees(b, t, s)]
        scores = k[b, keys, n // group] @ q[b, t, n] / math.sqrt(q.shape[3])
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ v[b, keys, n // group]
    return out


def inputs(num_heads, num_kv_heads, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = [(B, T, n, H) for n in (num_heads, num_kv_heads, num_kv_heads)]
    return [jnp.asarray(2 * rng.standard_normal(s), dtype) for s in shapes]


def packed():
    """Return positions and segments of rows with documents and padding."""
    lengths = [[4, 5], [7, 1, 3]]
    segments, positions = np.zeros((2, B, T), np.int32)
    for row, row_lengths in enumerate(lengths):
        start = 0
        for i, n in enumerate(row_lengths):
            segments[row, start : start + n] = i + 1
            positions[row, start : start + n] = np.arange(n)
            start += n
        positions[row, start:] = np.arange(T - start)
    return positions, segments


def self_attention(positions, segments, **options):
    """Return the context of a sequence that attends to itself."""
    positions, segments = jnp.asarray(positions), jnp.asarray(segments)
    return AttentionContext(
        positions_BT=positions,
        segments_BT=segments,
        key_positions_BS=positions,
        key_segments_BS=segments,
        **options,
    )


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("window", [0, 3])
def test_xla_attention_is_attention(num_heads, num_kv_heads, softcap, window):
    q, k, v = inputs(num_heads, num_kv_heads)
    positions, segments = packed()
    context = self_attention(positions, segments, causal=True, window=window)

    def sees(b, t, s):
        distance = positions[b, t] - positions[b, s]
        same = segments[b, t] == segments[b, s]
        return same and distance >= 0 and not (window and distance >= window)

    out = attention_kernels.xla_attention(q, k, v, dense_mask(context), softcap=softcap)
    expected = reference(q, k, v, sees, softcap=softcap)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_a_bidirectional_window_reaches_both_ways():
    positions = jnp.arange(T)[None]
    context = self_attention(positions, jnp.ones_like(positions), window=3)
    distance = np.abs(np.arange(T)[:, None] - np.arange(T))
    np.testing.assert_array_equal(dense_mask(context)[0, 0], distance < 3)


def test_every_query_sees_a_key():
    for causal in (True, False):
        context = self_attention(*packed(), causal=causal, window=1)
        assert dense_mask(context).any(axis=-1).all()


def test_cross_attention_sees_the_segment_of_its_number():
    _, segments = packed()
    context = AttentionContext(
        segments_BT=jnp.asarray(segments[:, :4]), key_segments_BS=jnp.asarray(segments)
    )
    expected = segments[:, :4, None] == segments[:, None, :]
    np.testing.assert_array_equal(dense_mask(context)[:, 0], expected)


@pytest.mark.parametrize("kernel", attention_kernels.ATTENTION.values())
def test_a_context_can_be_passed_through_jit(kernel):
    context = self_attention(*packed(), causal=True, window=3)
    mask = jax.jit(kernel.make_mask)(context)
    np.testing.assert_array_equal(mask, dense_mask(context))


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
def test_cudnn_gets_arguments_for_the_same_attention(monkeypatch, num_kv_heads):
    """JAX's own attention, given what we give cuDNN, computes what ours does."""
    implementations = []
    attend = jax.nn.dot_product_attention

    def on_cpu(*args, implementation, **options):
        implementations.append(implementation)
        return attend(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_cpu)
    q, k, v = inputs(4, num_kv_heads, jnp.bfloat16)
    mask = dense_mask(self_attention(*packed(), causal=True))
    out = attention_kernels.cudnn_attention(q, k, v, mask)
    assert implementations == ["cudnn"] and out.dtype == jnp.bfloat16
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    exact = attention_kernels.xla_attention(q, k, v, mask)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.05)
    same = attend(q, k, v, mask=mask, implementation="xla")
    np.testing.assert_allclose(same, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": jnp.float32}, "bfloat16, not float32"),
        ({"softcap": 2.0}, "attention_softcap = 2.0"),
        ({"head_dim": 12}, "multiple of 8"),
        ({"head_dim": 136}, "up to 128"),
        ({}, ""),
    ],
)
def test_cudnn_obstacles(options, reason):
    options = {"dtype": jnp.bfloat16, "softcap": 0.0, "head_dim": 64} | options
    obstacle = attention_kernels.cudnn_obstacle(**options)
    assert reason in obstacle and bool(reason) == bool(obstacle)


@pytest.mark.parametrize(
    ("changes", "platform", "reason"),
    [
        ({}, "cpu", "GPUs only, not on cpu"),
        ({}, "tpu", "GPUs only, not on tpu"),
        ({"dtype": "float32"}, "gpu", "needs bfloat16"),
        ({"attention_softcap": 3.0}, "gpu", "attention_softcap = 3.0"),
    ],
)
def test_a_kernel_that_does_not_support_the_config_is_an_error(
    make_config, changes, platform, reason
):
    config = make_config("llama", attention="cudnn", **changes).model
    with pytest.raises(UserError, match=r"config\.model\.attention") as error:
        models.build(config, platform=platform)
    assert reason in str(error.value)


def test_the_cudnn_kernel_names_what_it_does_not_support():
    q, k, v = inputs(2, 2)
    mask = jnp.ones((B, 1, T, T), bool)
    with pytest.raises(UserError, match=r"config\.model\.attention.*float32"):
        attention_kernels.cudnn_attention(q, k, v, mask)


def test_auto_is_resolved_by_platform(make_config):
    config = make_config("llama").model
    resolve = model.resolve
    seen = [
        (c.attention, c.dtype, c.scan_layers)
        for c in (resolve(config, platform=p) for p in ("cpu", "gpu", "tpu"))
    ]
    assert seen == [
        ("chunked", "float32", False),
        ("cudnn", "bfloat16", True),
        ("chunked", "bfloat16", True),
    ]
    capped = dataclasses.replace(config, attention_softcap=1.0)
    assert resolve(capped, platform="gpu").attention == "chunked"
