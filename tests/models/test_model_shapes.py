"""Shapes, axes and sizes, by `eval_shape` alone: nothing is allocated.

After a change that is meant: pytest tests/models/test_model_shapes.py --regenerate
"""

import math

import jax
import pytest

from lmjax import models
from lmjax.config.experiment import parse


def count(model):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.shapes))


def build(**model):
    sections = {
        "model": model,
        "tokenizer": {"kind": "bytes"},
        "data": {"source": "none", "length": 512},
    }
    return models.build(parse(sections).model, platform="cpu")


GPT2_SMALL = {
    "vocab_size": 50257,
    "dim": 768,
    "num_layers": 12,
    "num_heads": 12,
    "max_length": 1024,
    "position": "learned",
    "norm": "layernorm",
    "activation": "gelu_tanh",
    "gated": False,
    "use_bias": True,
}
LLAMA_3_8B = {
    "vocab_size": 128256,
    "dim": 4096,
    "num_layers": 32,
    "num_heads": 32,
    "num_kv_heads": 8,
    "mlp_dim": 14336,
    "max_length": 8192,
    "rope_theta": 500_000.0,
    "tie_embeddings": False,
}
POST_NORM = {
    "position": "learned",
    "norm": "layernorm",
    "norm_place": "post",
    "embedding_norm": True,
    "activation": "gelu",
    "gated": False,
    "use_bias": True,
}
BERT_BASE = {
    **POST_NORM,
    "kind": "encoder",
    "vocab_size": 30522,
    "max_length": 512,
    "num_token_types": 2,
    "pooler": True,
    "mlm_head": False,
}
BART_BASE = {
    **POST_NORM,
    "kind": "encoder_decoder",
    "vocab_size": 50265,
    "num_layers": 6,
    "max_length": 1024,
    "position_offset": 2,
}
T5_BASE = {
    "kind": "encoder_decoder",
    "vocab_size": 32128,
    "max_length": 512,
    "position": "relative",
    "mlp_dim": 3072,
    "gated": False,
    "activation": "relu",
}
T5_BASE_11 = {**T5_BASE, "mlp_dim": 2048, "gated": True, "tie_embeddings": False}
GEMMA_2_2B = {
    "vocab_size": 256_000,
    "dim": 2304,
    "num_layers": 26,
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 256,
    "mlp_dim": 9216,
    "norm": "rmsnorm1p",
    "norm_place": "both",
}
PUBLISHED = {
    "gpt2_small": (GPT2_SMALL, 124_439_808),
    "llama_3_8b": (LLAMA_3_8B, 8_030_261_248),
    "gemma_2_2b": (GEMMA_2_2B, 2_614_341_888),
    "bert_base": (BERT_BASE, 109_482_240),
    "bart_base": (BART_BASE, 139_420_416),
    "t5_base": (T5_BASE, 222_903_552),
    "t5_v1_1_base": (T5_BASE_11, 247_577_856),
}


@pytest.mark.parametrize(
    ("config", "published"), PUBLISHED.values(), ids=PUBLISHED.keys()
)
def test_full_size_models_have_the_published_size(config, published):
    assert count(build(**config)) == published


def test_shapes_and_axes(tiny, writer, golden):
    golden(f"shapes_{writer}", described(tiny(writer)))


def test_shapes_and_axes_of_what_gives_labels(tiny, golden):
    golden("shapes_bilstm", described(tiny("bilstm")))


def described(model):
    """Return the axes and sizes of each parameter."""
    axes = jax.tree.leaves(model.axes, is_leaf=lambda x: isinstance(x, tuple))
    leaves = jax.tree_util.tree_leaves_with_path(model.shapes)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): " ".join(
            f"{name}={size}" for name, size in zip(names, leaf.shape, strict=True)
        )
        for (path, leaf), names in zip(leaves, axes, strict=True)
    }


def test_parameters_are_float32(tiny, writer):
    model = tiny(writer, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.shapes)} == {"float32"}


def test_init_makes_what_was_promised(tiny, writer):
    model = tiny(writer)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert shapes == model.shapes


def test_layers_are_not_copies_of_one(tiny):
    params = tiny("llama").init(jax.random.key(0))
    kernel = params["decoder"]["blocks"]["attention"]["query"]["kernel"]
    assert abs(kernel[0] - kernel[1]).max() > 0.01
