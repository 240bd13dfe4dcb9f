"""FLOPs counted by hand."""

import pytest

from lmjax.device import flops_per_token


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
    assert flops_per_token(model.config, model.shapes, length=1024) == expected


def test_flops_follow_grouped_heads_and_gates(tiny, architecture):
    model = tiny(architecture, window=0)
    c = model.config
    weights = c.num_layers * kernels(model) + c.vocab_size * c.dim
    attention = 12 * c.num_layers * c.num_heads * c.head_dim * 32
    found = flops_per_token(c, model.shapes, length=64)
    assert found == 6 * weights + attention


@pytest.mark.parametrize(("window", "seen"), [(0, 32.0), (16, 14.0), (64, 32.0)])
def test_a_window_is_seen_at_most(tiny, window, seen):
    """Queries see 1, 2, .. 16 and then 16 keys; half of a query's own is not seen."""
    model = tiny("llama", window=window)
    c = model.config
    weights = c.num_layers * kernels(model) + c.vocab_size * c.dim
    attention = 12 * c.num_layers * c.num_heads * c.head_dim * seen
    assert flops_per_token(c, model.shapes, length=64) == 6 * weights + attention
