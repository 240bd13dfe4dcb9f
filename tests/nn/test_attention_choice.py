"""Which attention kernel a model gets, and what the others say."""

import dataclasses
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from lmjax import models
from lmjax.errors import UserError
from lmjax.models import model
from lmjax.nn import tokamax_attention
from lmjax.nn.attention_choice import choose_attention


def gpus(capability):
    """Return what of a mesh of GPUs is looked at."""
    device = SimpleNamespace(compute_capability=capability, platform="gpu")
    return SimpleNamespace(devices=np.array([device]), shape={})


@pytest.fixture
def config(make_config):
    return dataclasses.replace(make_config("llama").model, dtype="bfloat16")


@pytest.mark.parametrize(
    ("kernel", "changes", "platform", "reason"),
    [
        ("cudnn", {}, "cpu", "runs on GPUs only, not on cpu"),
        ("cudnn", {}, "tpu", "runs on GPUs only, not on tpu"),
        ("splash", {}, "gpu", "runs on TPUs only, not on gpu"),
        ("tokamax", {}, "tpu", "runs on GPUs only, not on tpu"),
        ("cudnn", {"dtype": "float32"}, "gpu", "bfloat16, not float32"),
        ("cudnn", {"attention_softcap": 3.0}, "gpu", "attention_softcap = 3.0"),
        ("cudnn", {"window": 4}, "gpu", "window = 4"),
        ("cudnn", {"head_dim": 12}, "gpu", "multiple of 8 up to 256, not 12"),
        ("cudnn", {"head_dim": 264}, "gpu", "multiple of 8 up to 256, not 264"),
        ("cudnn", {"attention_dropout": 0.1}, "gpu", "attention_dropout = 0.1"),
        ("splash", {"attention_dropout": 0.1}, "tpu", "attention_dropout = 0.1"),
        ("splash", {"position": "relative"}, "tpu", "position = 'relative'"),
        ("cudnn", {"capability": "8.0"}, "gpu", "not compute capability 8.0"),
    ],
)
def test_a_kernel_that_does_not_support_the_model_says_why(
    config, kernel, changes, platform, reason, caplog
):
    """By name it is an error of one line; "auto" logs it and takes another."""
    changes = {"head_dim": 64} | changes
    capability = changes.pop("capability", "9.0")
    mesh = gpus(capability) if platform == "gpu" else None
    named = dataclasses.replace(config, **changes, attention=kernel)
    with pytest.raises(UserError, match=r"config\.model\.attention") as error:
        choose_attention(named, platform=platform, mesh=mesh)
    assert repr(kernel) in str(error.value) and reason in str(error.value)
    assert "\n" not in str(error.value)
    if kernel == {"gpu": "cudnn", "tpu": "splash"}.get(platform):
        free = dataclasses.replace(named, attention="auto")
        with caplog.at_level(logging.INFO):
            chosen = choose_attention(free, platform=platform, mesh=mesh)
        assert chosen == "chunked" and reason in caplog.text


def test_a_kernel_of_a_package_that_is_missing_says_what_to_install(
    config, monkeypatch
):
    monkeypatch.setattr(tokamax_attention, "is_installed", lambda: False)
    config = dataclasses.replace(config, attention="tokamax")
    with pytest.raises(UserError, match=r"config\.model\.attention.*pip install"):
        models.build(config, platform="gpu")


def test_auto_is_resolved_by_platform(make_config):
    config = dataclasses.replace(make_config("llama").model, head_dim=8)
    resolved = [model.resolve(config, platform=p) for p in ("cpu", "gpu", "tpu")]
    assert [(c.attention, c.dtype, c.scan_layers) for c in resolved] == [
        ("chunked", "float32", False),
        ("cudnn", "bfloat16", True),
        ("splash", "bfloat16", True),
    ]


def test_a_model_is_used_on_other_machines_than_it_was_trained_on(config):
    trained = dataclasses.replace(config, attention="splash", attention_dropout=0.1)
    assert choose_attention(trained.for_inference(), platform="cpu") == "chunked"
    kept = dataclasses.replace(config, attention="xla").for_inference()
    assert choose_attention(kept, platform="gpu") == "xla"
