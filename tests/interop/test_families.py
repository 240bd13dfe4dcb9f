"""Reading and writing the config.json of each family."""

import dataclasses
import json

import pytest

from lmjax import models
from lmjax.config.experiment import parse
from lmjax.errors import UserError
from lmjax.interop.registry import FAMILIES, choose_family, find_family, read_config

FAMILY = {family.model_type: family for family in FAMILIES}


def read(model_type="llama", **values):
    tensors = values.pop("tensors", ())
    return read_config(FAMILY[model_type], values, tensors, file="config.json").model


@pytest.mark.parametrize("name", FAMILY)
def test_defaults_are_those_of_transformers(name):
    transformers = pytest.importorskip("transformers", reason="has the defaults")
    reference = transformers.AutoConfig.for_model(name)
    # Keys of the files or of older versions that the class does not have.
    older = {"n_positions", "position_embedding_type"} if name != "gpt2" else set()
    older |= {"position_embedding_type", "decoder_start_token_id"}
    older |= {"global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"}
    older |= {"attention_bias", "mlp_bias", "use_sliding_window", "max_window_layers"}
    older |= {"hidden_act"} if name.startswith("gemma") else set()
    older |= {"rope_theta", "rope_local_base_freq", "sliding_window_pattern"}
    older |= {"rotary_pct", "rotary_emb_base"}
    for key, value in FAMILY[name].defaults.items():
        if key in older and not hasattr(reference, key):
            continue
        found = json.loads(json.dumps(getattr(reference, key)))  # as in the file
        if key == "sliding_window" and name.startswith("qwen"):
            continue  # set only if it is used
        assert found == value, key


def test_rotary_positions_in_both_spellings():
    factors = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    factors |= {"original_max_position_embeddings": 8192}
    old = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **factors}}
    new = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **factors}}
    assert read(**old) == read(**new)
    assert (read(**old).rope_theta, read(**old).rope_factor) == (5e5, 8.0)
    linear = read(rope_scaling={"type": "linear", "factor": 2})
    assert (linear.rope_scaling, linear.rope_factor) == ("linear", 2.0)
    plain = read(rope_scaling=None, rope_parameters={"rope_type": "default"})
    assert (plain.rope_scaling, plain.rope_theta) == ("none", 10_000.0)


def test_lengths_before_scaling():
    """Those beside the scaling have precedence; dynamic NTK goes beyond max_length."""
    yarn = {"rope_type": "yarn", "factor": 4.0}
    length = "original_max_position_embeddings"
    sizes = {"max_position_embeddings": 4096}
    inside = read(**sizes, rope_scaling={**yarn, length: 1024})
    beside = read(**sizes, rope_scaling={**yarn, length: 77}, **{length: 1024})
    assert inside.rope_original_length == beside.rope_original_length == 1024
    assert read(**sizes, rope_scaling=yarn).rope_original_length == 4096
    ratio = read(**sizes, rope_scaling={**yarn, "factor": None, length: 512})
    assert ratio.rope_factor == 8.0
    dynamic = read(**sizes, rope_scaling={"type": "dynamic", "factor": 2.0})
    assert (dynamic.rope_original_length, dynamic.max_length) == (4096, 8192)
    phi = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 1024}
    phi |= {length: 64}
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    for name in ("longrope", "su", "yarn"):  # its older names
        found = read("phi3", **phi, rope_scaling={"type": name, **factors})
        assert (found.rope_scaling, found.rope_factor) == ("longrope", 16.0)
        assert found.rope_long_factors == (2.0,) * 4


def test_rotary_positions_by_layer_in_both_spellings():
    linear = {"rope_type": "linear", "factor": 8.0}
    old = read("gemma3_text", rope_scaling=linear, rope_theta=5e5)
    both = {"full_attention": {**linear, "rope_theta": 5e5}}
    both["sliding_attention"] = {"rope_type": "default", "rope_theta": 1e4}
    assert read("gemma3_text", rope_parameters=both) == old
    assert (old.rope_theta, old.rope_local_theta, old.rope_factor) == (5e5, 1e4, 8.0)
    plain = read("gemma3_text")
    assert (plain.rope_theta, plain.rope_local_theta) == (1e6, 1e4)
    assert (plain.window, plain.global_every) == (4096, 6)


def test_windows():
    sliding, full = "sliding_attention", "full_attention"
    gemma = read("gemma2", num_hidden_layers=4)
    assert (gemma.window, gemma.global_every) == (4096, 2)
    assert read("mistral").window == 4096
    assert read("mistral", sliding_window=None).window == 0
    qwen = {"num_hidden_layers": 4, "use_sliding_window": True}
    assert read("qwen2", **qwen).window == 0
    assert read("qwen2", **qwen, max_window_layers=0).window == 4096
    third = read("qwen3", **qwen, layer_types=[sliding, sliding, full, sliding])
    assert third.global_every == 3
    first = read("qwen2", **qwen, max_window_layers=2)
    assert (first.global_every, first.global_layers) == (0, (0, 1))
    odd = read("gemma3_text", num_hidden_layers=3, layer_types=[full, sliding, full])
    assert odd.global_layers == (0, 2)


UNSUPPORTED = [
    ("llama", {"rope_scaling": {"rope_type": "yarm"}}, r"rope_type = 'yarm': .*llama3"),
    ("llama", {"rope_scaling": {"type": "linear", "factr": 2}}, r"factr.*'factor'"),
    ("llama", {"rope_scaling": {"type": "yarn", "truncate": "no"}}, "truncate = 'no'"),
    ("llama", {"rope_scaling": {"type": "longrope"}}, "short_factor = null: .*list"),
    ("llama", {"rope_scaling": {"type": "dynamic"}}, "factor = null"),
    ("phi3", {"rope_scaling": {"type": "linear", "factor": 2}}, "longrope"),
    (
        "phi3",
        {"rope_scaling": {"type": "su", "short_factor": [1], "long_factor": [1]}},
        "rope_short_factors = .*must be 48 numbers",
    ),
    (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}},
        "sliding_attention: rope_type = 'linear'",
    ),
    ("gemma3_text", {"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters = "),
    ("gemma3_text", {"sliding_window": 0}, "sliding_window = 0"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional"),
    ("gpt_neox", {"rotary_pct": 0.0}, "rope_fraction = 0"),
    ("gpt_neox", {"rotary_pct": 0.1}, "rope_fraction = 0.1: must be even"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling: factor = null"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling = 'linear'"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ("llama", {"hidden_act": "sillu"}, "hidden_act = 'sillu'.*'silu'"),
    ("llama", {"hidden_size": "big"}, "hidden_size = 'big'"),
    ("llama", {"hidden_size": True}, "hidden_size = true"),
    ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings = 1"),
    ("llama", {"num_attention_heads": 0}, "num_heads = 0"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"hidden_size": 100, "num_attention_heads": 7}, "num_heads = 7"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("gemma", {"hidden_act": "silu"}, "hidden_act = 'silu'"),
    ("gemma2", {"layer_types": ["full_attention"]}, "layer_types"),
    (
        "bert",
        {"position_embedding_type": "relative_key"},
        "position_embedding_type = .*'absolute'",
    ),
    ("bert", {"is_decoder": True}, "is_decoder = true: .*false"),
    ("bert", {"type_vocab_size": 0}, "type_vocab_size = 0: .*1"),
    (
        "roberta",
        {"hidden_act": "relu", "tensors": ["lm_head.dense.weight"]},
        "hidden_act = 'relu': .*'gelu'",
    ),
    ("bart", {"encoder_ffn_dim": 8}, "decoder_ffn_dim = 4096: .*encoder_ffn_dim"),
    ("bart", {"normalize_before": True}, "normalize_before"),
    ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder"),
    ("marian", {"decoder_vocab_size": 7}, "decoder_vocab_size = 7: .*58101"),
    ("t5", {"feed_forward_proj": "gated-tanh"}, "feed_forward_proj = 'gated-tanh'"),
]


@pytest.mark.parametrize(
    "case",
    UNSUPPORTED,
    ids=[f"{name}-{'-'.join(keys)}" for name, keys, _ in UNSUPPORTED],
)
def test_unsupported_settings(case):
    name, values, message = case
    with pytest.raises(UserError, match=message) as error:
        read(name, **values)
    assert "config.json: " in str(error.value) and "\n" not in str(error.value)


def test_families_are_found_by_architecture_then_model_type():
    find = lambda **values: find_family(values, file="config.json")
    assert find(architectures=["T5WithLMHeadModel"]).model_type == "t5"
    assert find(model_type="qwen3").model_type == "qwen3"
    with pytest.raises(UserError, match=r"'LlamaForCausalLLM'.*'LlamaForCausalLM'"):
        find(architectures=["LlamaForCausalLLM"], model_type="llama")
    assert find(architectures=["T5EncoderModel"], model_type="t5").kind == "encoder"
    with pytest.raises(UserError, match=r"architectures = 'T5ForQuestionAnswering'"):
        find(architectures=["T5ForQuestionAnswering"], model_type="t5")
    with pytest.raises(UserError, match=r"model_type = None: .*gpt2"):
        find()


def build_model(**fields):
    config = parse(
        {
            "model": {"vocab_size": 32, "dim": 16, "num_heads": 4, **fields},
            "tokenizer": {"kind": "ids", "vocab_size": 32},
            "data": {"source": "none", "length": 16},
        }
    )
    return models.build(config.model, platform="cpu")


def test_the_chosen_family_computes_the_same():
    choose = lambda **fields: choose_family(build_model(**fields))[0].model_type
    gpt2 = {"position": "learned", "norm": "layernorm", "gated": False}
    gpt2 |= {"activation": "gelu_tanh", "use_bias": True}
    assert choose(**gpt2) == "gpt2"
    assert choose() == "llama"
    assert choose(rope_original_length=77, dropout=0.5) == "llama"  # unused fields
    assert choose(window=4) == "mistral"
    assert choose(qkv_bias=True, window=4, global_every=3) == "qwen2"
    assert choose(qk_norm=True) == "qwen3"
    gemma = {"norm": "rmsnorm1p", "activation": "gelu_tanh", "scale_embeddings": True}
    assert choose(**gemma) == "gemma"
    gemma2 = {**gemma, "norm_place": "both", "attention_scale": 24**-0.5}
    assert choose(**gemma2) == "gemma2"
    local = {"qk_norm": True, "window": 4, "rope_local_theta": 50.0}
    assert choose(**gemma2, **local, global_layers=(0,)) == "gemma3_text"
    assert choose(attention_bias=True, mlp_bias=False) == "llama"
    assert choose(window=4, rope_fraction=0.5, dropout=0.1) == "phi3"
    olmo2 = {"norm_place": "output", "qk_norm": True, "qk_norm_over": "all"}
    assert choose(**olmo2) == "olmo2"
    neox = {"norm": "layernorm", "gated": False, "use_bias": True}
    assert choose(**neox, parallel_residual=True) == "gpt_neox"
    with pytest.raises(UserError, match=r"config\.model: .*norm_place = 'post'"):
        choose(norm_place="post")
    with pytest.raises(
        UserError,
        match=r"config\.model: .*gemma2.*attention_scale",
    ):
        choose(**gemma2 | {"attention_scale": 0.3})


def test_recipes_have_a_family():
    from experiments.seq2seq import t5_tiny, transformer_ende

    for recipe, family in ((t5_tiny, "t5"), (transformer_ende, "pegasus")):
        config = parse(recipe.get_config())
        fields = {"vocab_size": 64, "num_layers": 1, "num_encoder_layers": 1}
        model = dataclasses.replace(config.model, **fields)
        assert (
            choose_family(models.build(model, platform="cpu"))[0].model_type == family
        )
