"""Every attention kernel keeps packed documents apart and is exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from lmjax.nn import (
    attention_kernels,
    chunked_attention,
    cudnn_attention,
    splash_attention,
    tokamax_attention,
)
from lmjax.nn.attention_context import AttentionContext, AttentionOptions, dense_mask
from lmjax.nn.attention_kernels import MAKE_MASK, attend
from lmjax.nn.dense_attention import dense_attention
from tests.nn.attention_cases import normal, pack, reference, self_attention

H = 8
T = 150  # more than a block of splash attention, and not a multiple of one
ROWS = [[60, 70], [9, 130, 11]]  # the first with padding


def cudnn_on_cpu(
    q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type
):
    """Compute what cuDNN does with lengths and offsets, as this JAX hands them over."""
    (B, T, N, _), K = q.shape, k.shape[2]
    for lengths, offsets in ((q_seqlen, q_offsets), (kv_seqlen, kv_offsets)):
        assert lengths.shape == (B, offsets.shape[1] - 1)
        assert lengths.dtype == offsets.dtype == jnp.int32
    index = jnp.arange(T)
    # Keys are found by how large this JAX takes a token to be.
    stride = N if cudnn_attention.reads_wrong_grouped_keys() else K

    def find_documents(starts_M1, lengths_M, size, taken_for):
        start = starts_M1[:-1] * taken_for // size
        inside = (index[:, None] >= start) & (index[:, None] < start + lengths_M)
        return jnp.where(inside.any(axis=1), inside.argmax(axis=1), -1)

    find = lambda offsets, lengths, *sizes: jax.vmap(
        lambda starts, lengths: find_documents(starts, lengths, *sizes)
    )(offsets, lengths)
    q_documents = find(q_offsets, q_seqlen, N, N)
    mask = q_documents[:, :, None] == find(kv_offsets, kv_seqlen, K, stride)[:, None]
    if mask_type is cudnn.MaskType.PADDING_CAUSAL:
        mask &= index[:, None] >= index
    options = AttentionOptions(scale=scale)
    return dense_attention(q, k, v, mask[:, None], options=options)


@pytest.fixture
def on_cpu(monkeypatch):
    """Run the kernels of other platforms on the CPU, as their own authors do."""
    monkeypatch.setattr(chunked_attention, "BLOCK", 64)
    monkeypatch.setattr(attention_kernels, "LONG", 64)
    monkeypatch.setattr(splash_attention, "INTERPRET", True)
    monkeypatch.setattr(splash_attention, "BLOCK", 128)

    monkeypatch.setattr(cudnn, "dot_product_attention", cudnn_on_cpu)
    if tokamax_attention.is_installed():
        from tokamax._src.ops.attention.base import DotProductAttention

        monkeypatch.setattr(tokamax_attention, "make_kernel", DotProductAttention)


def documents(rows):
    """Yield the row and the part of it of each document."""
    for row, lengths in enumerate(rows):
        ends = np.cumsum(lengths)
        for end, length in zip(ends, lengths, strict=True):
            yield row, slice(end - length, end)


def make_inputs(num_heads, num_kv_heads):
    q = normal(len(ROWS), T, num_heads, H)
    k, v = (normal(len(ROWS), T, num_kv_heads, H, seed=seed) for seed in (1, 2))
    return q, k, v, np.abs(normal(*q.shape, seed=3))


@functools.cache
def unpacked(num_heads, num_kv_heads, causal, window, softcap):
    """Return loss and gradients of each document in a row of its own, joined again."""
    *inputs, weights = make_inputs(num_heads, num_kv_heads)
    real = pack(ROWS, T)[1] > 0
    weights = weights * real[..., None, None]
    size = max(length for lengths in ROWS for length in lengths)
    index = np.arange(size)
    distance = index[:, None] - index
    sees = np.abs(distance) < (window or size)
    sees &= (distance >= 0) | (not causal)
    parts = list(documents(ROWS))

    def loss(q, k, v):
        def row(x):
            pad = lambda x: jnp.pad(x, ((0, size - len(x)), (0, 0), (0, 0)))
            return jnp.stack([pad(x[b, part]) for b, part in parts])

        lengths = np.array([part.stop - part.start for _, part in parts])
        # What fills a row up sees all; it has no weight, and no token sees it.
        inside = index < lengths[:, None]
        mask = sees & (inside[:, None, :] | ~inside[:, :, None])
        options = AttentionOptions(softcap=softcap)
        out = dense_attention(*map(row, (q, k, v)), mask[:, None], options=options)
        return (jnp.square(out) * row(weights)).sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*inputs)


CASES = [  # query heads, kv heads, causal, window, softcap
    (4, 4, True, 0, 0.0),
    (4, 2, True, 40, 0.0),
    (4, 1, False, 40, 2.0),
    (4, 2, False, 0, 0.0),
    (4, 1, True, 0, 2.0),
]
WITHOUT = {"cudnn": lambda case: case[3] or case[4]}  # window and soft cap


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", MAKE_MASK)
def test_documents_are_packed_as_they_are_alone(on_cpu, name, case):
    """Loss and gradients, for multi-head, grouped and single key heads."""
    if WITHOUT.get(name, lambda case: False)(case):
        pytest.skip("choose_attention refuses it")
    if name == "tokamax" and not tokamax_attention.is_installed():
        pytest.skip("tokamax is not installed")
    num_heads, num_kv_heads, causal, window, softcap = case
    *inputs, weights = make_inputs(num_heads, num_kv_heads)
    positions, segments = pack(ROWS, T)
    weights = weights * (segments > 0)[..., None, None]
    options = AttentionOptions(softcap=softcap)

    def loss(inputs, positions, segments):
        context = self_attention(positions, segments, causal=causal, window=window)
        mask = MAKE_MASK[name](context)
        out = attend(*inputs, mask, options=options)
        return (jnp.square(out) * weights).sum()

    found = jax.jit(jax.value_and_grad(loss))(tuple(inputs), positions, segments)
    expected = unpacked(*case)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_more_documents_than_cudnn_is_given_are_kept_apart(on_cpu, monkeypatch):
    """The batch is then computed in blocks: its loss does not depend on the bound."""
    *inputs, _ = make_inputs(4, 2)
    monkeypatch.setattr(cudnn_attention, "MIN_DOCUMENTS", 2)

    @jax.jit
    def outputs(positions, segments):
        context = self_attention(positions, segments, causal=True)
        mask = MAKE_MASK["cudnn"](context)
        exact = attend(*inputs, dense_mask(context), options=AttentionOptions())
        return attend(*inputs, mask, options=AttentionOptions()), exact, mask.fits

    for rows, expected in ((ROWS, False), ([[T], [T]], True)):
        positions, segments = pack(rows, T)
        found, exact, fits = outputs(positions, segments)
        assert fits == expected
        real = segments > 0
        np.testing.assert_allclose(found[real], exact[real], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_layers_with_and_without_a_window_share_a_loop(on_cpu):
    """The kernel's mask may be static: then both are compiled, and one is run."""
    *inputs, _ = make_inputs(4, 2)
    packed = pack(ROWS, T)
    real = packed[1] > 0
    contexts = [
        self_attention(*packed, causal=True, window=window) for window in (0, 40)
    ]
    options = AttentionOptions()
    for name in ("chunked", "splash"):

        @jax.jit
        def outputs(is_global, name=name):
            masks = [MAKE_MASK[name](context) for context in contexts]
            mask = attention_kernels.choose_mask(is_global, *masks)
            return attend(*inputs, mask, options=options)

        for is_global, context in zip((True, False), contexts, strict=True):
            exact = attend(*inputs, dense_mask(context), options=options)
            found = outputs(is_global)
            np.testing.assert_allclose(found[real], exact[real], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["cudnn", "splash", "tokamax"])
def test_cross_attention_decoding_and_short_rows_run_anywhere(name):
    positions, segments = pack([[3, 4], [8]], 8)
    alone = self_attention(positions, segments, causal=True)
    source = AttentionContext(
        segments_BT=alone.segments_BT, key_segments_BS=np.ones((2, 200), np.int32)
    )
    for context in (alone, source):
        np.testing.assert_array_equal(MAKE_MASK[name](context), dense_mask(context))


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("window", [0, 3])
def test_dense_attention_is_attention(softcap, window):
    """Against Python loops in float64."""
    positions, segments = pack([[4, 5], [7, 1, 3]], 11)
    q, k, v = (2 * normal(2, 11, n, H, seed=n) for n in (4, 2, 2))
    context = self_attention(positions, segments, causal=True, window=window)

    def sees(b, t, s):
        distance = positions[b, t] - positions[b, s]
        same = segments[b, t] == segments[b, s]
        return same and distance >= 0 and not (window and distance >= window)

    options = AttentionOptions(softcap=softcap)
    out = dense_attention(q, k, v, dense_mask(context), options=options)
    expected = reference(q, k, v, sees, softcap=softcap)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_a_bidirectional_window_reaches_both_ways():
    positions = jnp.arange(11)[None]
    context = self_attention(positions, jnp.ones_like(positions), window=3)
    distance = np.abs(np.arange(11)[:, None] - np.arange(11))
    np.testing.assert_array_equal(dense_mask(context)[0, 0], distance < 3)


def test_every_query_sees_a_key():
    for causal in (True, False):
        context = self_attention(*pack(ROWS, T), causal=causal, window=1)
        assert dense_mask(context).any(axis=-1).all()


def test_cross_attention_sees_the_segment_of_its_number():
    _, segments = pack([[4, 5], [7, 1, 3]], 11)
    context = AttentionContext(
        segments_BT=jnp.asarray(segments[:, :4]), key_segments_BS=jnp.asarray(segments)
    )
    expected = segments[:, :4, None] == segments[:, None, :]
    np.testing.assert_array_equal(dense_mask(context)[:, 0], expected)


@pytest.mark.parametrize(
    ("name", "platform", "call"),
    [("cudnn", "cuda", "PADDING_CAUSAL"), ("splash", "tpu", "tpu_custom_call")],
)
def test_programs_for_accelerators_have_no_mask(monkeypatch, name, platform, call):
    """They are made where there is none, and hold no array of T x T."""
    monkeypatch.setattr(chunked_attention, "BLOCK", 64)
    monkeypatch.setattr(splash_attention, "BLOCK", 128)
    positions, segments = pack([[60, 70]], T)
    shapes = [jax.ShapeDtypeStruct((1, T, n, 64), jnp.bfloat16) for n in (4, 2, 2)]

    def loss(q, k, v, segments):
        mask = MAKE_MASK[name](self_attention(positions, segments, causal=True))
        return attend(q, k, v, mask, options=AttentionOptions()).sum()

    traced = jax.jit(jax.grad(loss)).trace(*shapes, segments)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert call in text and "ScaleBias" not in text
    for length in (T, 256):  # filled up to whole blocks
        assert f"{length}x{length}x" not in text
