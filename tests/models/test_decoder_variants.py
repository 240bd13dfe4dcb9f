"""What newer decoders add, all at once, and lengths on which rotations depend."""

import jax
import numpy as np
import pytest

from lmjax.errors import ConfigError
from lmjax.generate.decode import Generator

# Parallel residuals, norms on outputs and over all heads, windows in some layers with
# rotations of their own, partial rotations, biases of attention alone.
MIXED = {
    "num_layers": 3,
    "norm_place": "output",
    "parallel_residual": True,
    "qk_norm": True,
    "qk_norm_over": "all",
    "attention_bias": True,
    "window": 4,
    "global_layers": (0,),
    "rope_local_theta": 50.0,
    "rope_fraction": 0.5,
    "rope_scaling": "yarn",
    "rope_factor": 4.0,
    "rope_original_length": 16,
}
# Texts of up to 8 tokens are short.
DYNAMIC = {"rope_scaling": "dynamic", "rope_factor": 4.0, "rope_original_length": 8}
LONGROPE = {
    "rope_scaling": "longrope",
    "rope_original_length": 8,
    "rope_factor": 8.0,
    "rope_short_factors": (1.0, 1.1, 1.2, 1.3),
    "rope_long_factors": (1.0, 2.0, 4.0, 8.0),
}
VARIANTS = {"mixed": MIXED, "dynamic": DYNAMIC, "longrope": LONGROPE}
LENGTHS = np.array([6, 1, 9, 8])
NUM_STEPS = 5


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 64, (len(LENGTHS), 13))


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


def test_cached_is_the_text_so_far(
    tiny, random_params, apply, one_text, tokens, variant
):
    """Step by step, in layers that are scanned, as if the whole text were read anew."""
    model = tiny("llama", **variant, scan_layers=True)
    params = random_params(tiny("llama", **variant))
    rows = np.arange(len(LENGTHS))
    prompts = np.where(np.arange(9) < LENGTHS[:, None], tokens[:, :9], 0)
    prefill = jax.jit(model.prefill, static_argnames="cache_length")
    step = jax.jit(model.decode_step)
    logits, state = prefill(params, prompts, LENGTHS, cache_length=16)
    grow = [model.config.longest_continuation(n) - n for n in LENGTHS]
    assert max(grow) > 1
    for i in range(NUM_STEPS):
        if i:
            at = LENGTHS + i - 1
            logits, state = step(params, tokens[rows, at], at, state)
        batch = one_text(tokens)
        batch["segments"] = np.int32(np.arange(13) < (LENGTHS + i)[:, None])
        whole = apply(tiny("llama", **variant))(params, batch)
        expected = np.asarray(whole)[rows, LENGTHS + i - 1]
        may = np.array(grow) >= i
        np.testing.assert_allclose(logits[may], expected[may], rtol=1e-5, atol=2e-5)


def test_a_text_does_not_grow_beyond_the_length_that_changes_its_rotations(tiny):
    dynamic, longrope = (
        Generator(tiny("llama", **leaves)) for leaves in (DYNAMIC, LONGROPE)
    )
    check = lambda generator, length, more: generator.check(
        [[1] * length], max_tokens=more
    )
    for generator in (dynamic, longrope):
        check(generator, 3, 5)
        with pytest.raises(ConfigError, match=r"max_tokens = 6: .* at most 5: .*rope_"):
            check(generator, 3, 6)
    check(longrope, 9, 40)
    with pytest.raises(ConfigError, match=r"max_tokens = 40: .* at most 0: .*rope_"):
        check(dynamic, 9, 40)


def test_packed_documents_are_alone(tiny, random_params, apply, one_text, variant):
    """Neither by attention nor by the length on which its rotations depend."""
    model = tiny("llama", **variant)
    params, lengths = random_params(model), [10, 3]
    tokens = np.random.default_rng(1).integers(0, 64, (1, 13))
    batch = {
        "tokens": tokens,
        "segments": np.repeat([1, 2], lengths)[None],
        "positions": np.concatenate([np.arange(n) for n in lengths])[None],
    }
    packed = apply(model)(params, batch)
    for here in (slice(0, 10), slice(10, 13)):
        alone = apply(model)(params, one_text(tokens[:, here]))
        np.testing.assert_allclose(packed[:, here], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_each_part_changes_the_logits(tiny, random_params, apply, one_text, tokens):
    params = random_params(tiny("llama", **MIXED))
    logits = lambda **leaves: np.asarray(
        apply(tiny("llama", **{**MIXED, **leaves}))(params, one_text(tokens))
    )
    before = logits()
    for leaves in (
        {"parallel_residual": False},
        {"global_layers": (1,)},
        {"rope_local_theta": 0.0},
        {"rope_fraction": 1.0},
        {"rope_factor": 8.0},
        {"rope_attention_factor": 1.0},
    ):
        assert np.abs(logits(**leaves) - before).max() > 1e-3, leaves


def test_flops_of_layers_without_a_window(tiny):
    leaves = {"num_layers": 4, "window": 16}
    row = {"tokens": np.zeros((1, 64))}
    flops = [
        tiny("llama", **leaves, **layers).flops_per_token(row)
        for layers in ({}, {"global_layers": (0, 1)}, {"global_every": 2})
    ]
    assert flops[0] < flops[1] == flops[2]


BAD = [
    ({"global_layers": (1,)}, "global_layers = .*: needs config.model.window"),
    ({"window": 4, "global_layers": (2,)}, r"global_layers = \(2,\): must be below"),
    ({"window": 4, "global_layers": (1,), "global_every": 2}, "global_layers = "),
    ({"qk_norm_over": "all"}, "qk_norm_over = 'all': needs config.model.qk_norm"),
    ({"parallel_residual": True, "norm_place": "post"}, "parallel_residual = True"),
    ({"attention_bias": 1}, "attention_bias = 1: must be one of"),
]


@pytest.mark.parametrize(("leaves", "message"), BAD, ids=str)
def test_leaves_that_do_not_fit_are_named(make_config, leaves, message):
    with pytest.raises(ConfigError, match=message):
        make_config("llama", **leaves)
    with pytest.raises(ConfigError, match="parallel_residual = True"):
        make_config("t5", parallel_residual=True)


def test_biases_follow_use_bias_unless_given(tiny):
    names = lambda **leaves: {
        "/".join(str(k.key) for k in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(
            tiny("llama", **leaves).shapes
        )
        if path[-1].key == "bias"
    }
    attention, mlp = (names(**{f"{part}_bias": True}) for part in ("attention", "mlp"))
    assert len(attention) == 4 and len(mlp) == 3
    assert names(use_bias=True) == attention | mlp
    assert names(use_bias=True, mlp_bias=False) == attention
    assert not names()
