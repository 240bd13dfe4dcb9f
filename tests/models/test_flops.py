"""FLOPs counted by hand."""

import numpy as np
import pytest


def row(length, **more):
    return {name: np.zeros((1, n)) for name, n in {"tokens": length, **more}.items()}


def kernels(model):
    """Return the weights of a block's matrix products, by the config alone."""
    c = model.config
    attention = 2 * c.dim * c.head_dim * (c.num_heads + c.num_kv_heads)
    return attention + (3 if c.gated else 2) * c.dim * c.mlp_dim


def test_flops_of_gpt2_small(tiny):
    model = tiny(
        "gpt2",
        vocab_size=50257,
        dim=768,
        num_layers=12,
        num_heads=12,
        max_length=1024,
    )
    # All but positions, biases and norms: 12 * 12 * 768**2 + 50257 * 768 = 123,532,032;
    # scores and values: 12 layers * 12 heads * 64 * 512 keys seen on average * 12.
    expected = 6 * 123_532_032 + 12 * 12 * 768 * 512
    assert model.flops_per_token(row(1024)) == expected


def test_flops_follow_grouped_heads_and_gates(tiny, architecture):
    model = tiny(architecture, window=0, global_every=0)
    c = model.config
    weights = c.num_layers * kernels(model) + c.vocab_size * c.dim
    attention = 12 * c.num_layers * c.num_heads * c.head_dim * 32
    found = model.flops_per_token(row(64))
    assert found == 6 * weights + attention


@pytest.mark.parametrize(("window", "seen"), [(0, 32.0), (16, 14.0), (64, 32.0)])
def test_a_query_attends_to_at_most_a_window(tiny, window, seen):
    """Queries see 1, 2, .. 16 and then 16 keys; half of a query's own is not seen."""
    model = tiny("llama", window=window)
    c = model.config
    weights = c.num_layers * kernels(model) + c.vocab_size * c.dim
    attention = 12 * c.num_layers * c.num_heads * c.head_dim * seen
    assert model.flops_per_token(row(64)) == 6 * weights + attention


def test_a_global_layer_attends_to_all(tiny):
    one, both = (tiny("llama", num_layers=2, window=16, global_every=n) for n in (0, 2))
    a, b = (m.flops_per_token(row(64)) for m in (one, both))
    assert b - a == 12 * 4 * 8 * (32 - 14)


def test_an_encoder_attends_to_both_sides_and_predicts_some_tokens(tiny):
    model = tiny("bert")
    c, block = model.config, 4 * 32 * 32 + 2 * 32 * 128
    head = 32 * 32 + 64 * 32
    products = 64 * c.num_layers * block + 8 * head + 32 * 32 + 32 * 2
    pairs = c.num_layers * 64 * 64
    found = model.flops_per_token(row(64, targets=8))
    assert found * 64 == 6 * products + 12 * 32 * pairs


@pytest.mark.parametrize("attention", ["bahdanau", "luong"])
def test_recurrent_encoder_decoders_score_the_source_at_each_step(tiny, attention):
    model = tiny(attention)
    gates, parts = (3, 1) if attention == "bahdanau" else (4, 2)
    encoder = 2 * gates * 24 * (32 + 24)
    decoder = gates * 24 * (32 + 24 + 24 + 24)
    if attention == "bahdanau":
        decoder += gates * 24 * 48 + 24 * 24 + 32 * (48 + 24 + 32)
    else:
        decoder += gates * 24 * 32 + 32 * (48 + 24)
    bridge = 48 * 2 * parts * 24
    each = 48 * (encoder + 48 * 24) + 16 * (decoder + 64 * 32) + bridge
    pairs = 16 * 48 * (24 + 48)
    batch = row(16, source=48)
    found = model.flops_per_token(batch)
    assert found * (16 + 48) == 6 * (each + pairs)


def test_encoder_decoders_count_the_source_in_the_encoder_and_its_keys(tiny):
    model = tiny("bart")
    attention, mlp = 4 * 32 * 32, 2 * 32 * 128
    encoder = 48 * 2 * (attention + mlp)
    decoder = 16 * 2 * (attention + mlp + attention / 2) + 48 * 2 * attention / 2
    products = encoder + decoder + 16 * 64 * 32
    pairs = 2 * 48 * 48 + 2 * (16 * 16 / 2 + 16 * 48)
    found = model.flops_per_token(row(16, source=48))
    assert found * (16 + 48) == 6 * products + 12 * 32 * pairs
