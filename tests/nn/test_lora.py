"""Adapters: what they change, what learns, and what is left when they are merged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import models
from lmjax.errors import UserError
from lmjax.nn import lora
from lmjax.training import optim

ALL = "('*attention.*', 'mlp.*')"


@pytest.fixture(scope="module")
def adapted(make_config):
    """Return a config with adapters of rank 3 on the targets."""

    def make(*overrides, architecture="gpt2", targets=ALL, **model):
        given = ["model.lora.rank=3", f"model.lora.targets={targets}", *overrides]
        return make_config(architecture, overrides=given, **model)

    return make


def build(config):
    return models.build(config.model, platform="cpu")


def draw(model, random_params):
    params = random_params(model)
    return jax.tree.map(lambda x: 0.5 * x, params)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_merged_is_the_same_model(
    adapted, random_params, apply, one_text, architecture, scan_layers
):
    model = build(adapted(architecture=architecture, scan_layers=scan_layers))
    params = draw(model, random_params)
    batch = one_text([[5, 9, 2, 40], [1, 2, 3, 4]])
    plain, config = lora.merge_adapters(params, model.config)
    other = models.build(config, platform="cpu")
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, other.shapes)
    expected = apply(model)(params, batch)
    np.testing.assert_allclose(apply(other)(plain, batch), expected, atol=3e-5)


@pytest.mark.slow
def test_adapters_begin_as_nothing(adapted, tiny, apply, one_text):
    model, plain = build(adapted()), tiny("gpt2")
    batch = one_text([[5, 9, 2, 40]])
    init = lambda model: jax.jit(model.init)(jax.random.key(0))
    with_them = apply(model)(init(model), batch)
    without = apply(plain)(init(plain), batch)
    np.testing.assert_array_equal(with_them, without)


def test_only_adapters_learn_and_have_moments(adapted, random_params):
    config = adapted(targets="('attention.query',)")
    model = build(config)
    optimizer = optim.build(config.optim, axes=model.axes, num_steps=10)
    params = random_params(model)
    learning = jax.tree.leaves(optimizer.partition(params)[0])
    assert [x.shape for x in learning] == [(2, 32, 3), (2, 3, 4, 8)]
    moments = [x for x in jax.tree.leaves(optimizer.init(params)) if x.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in learning)


def test_what_is_frozen_beside_adapters_frees_nothing(adapted):
    config = adapted("optim.frozen=('*norm*',)")
    optimizer = optim.build(config.optim, axes=build(config).axes, num_steps=10)
    assert not optimizer.trainable_mask["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    assert optimizer.trainable_mask["decoder"]["blocks"]["mlp"]["up"]["lora_a"]


def test_more_can_learn_beside_adapters(adapted):
    config = adapted("optim.trainable=('*_norm.*',)")
    model = build(config)
    optimizer = optim.build(config.optim, axes=model.axes, num_steps=10)
    assert optimizer.trainable_mask["decoder"]["blocks"]["mlp_norm"]["scale"]
    assert not optimizer.trainable_mask["decoder"]["norm"]["scale"]
    assert not optimizer.trainable_mask["embed"]["embedding"]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.lora.targets=('atention.query',)", ["did you mean 'attention.query'"]),
        ("model.lora.rank=-1", ["config.model.lora.rank = -1", ">= 0"]),
    ],
)
def test_a_target_that_is_none(make_config, override, parts):
    with pytest.raises(UserError) as error:
        make_config("gpt2", overrides=[override])
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optim.frozen=('embed.embeding',)", ["config.optim.frozen", "did you mean"]),
        ("optim.frozen=('*',)", ["optim.frozen = "]),
        (
            "optim.trainable=('heads',)",
            ["optim.trainable: 'heads' "],
        ),
    ],
)
def test_a_pattern_that_names_nothing(make_config, tiny, override, parts):
    config = make_config("gpt2", overrides=[override])
    with pytest.raises(UserError) as error:
        optim.build(config.optim, axes=tiny("gpt2").axes, num_steps=10)
    for part in parts:
        assert part in str(error.value)
