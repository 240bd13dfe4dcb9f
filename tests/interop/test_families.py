"""What config.json says, what of it lmjax refuses, and what it writes."""

import json

import numpy as np
import pytest

from lmjax import models
from lmjax.cli.main import main
from lmjax.config.experiment import parse
from lmjax.errors import UserError
from lmjax.interop import hf, layout
from lmjax.interop.registry import FAMILIES, choose_family, find_family, read_config
from lmjax.interop.tensors import Spec, open_tensors, write_tensors

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
NAMES = {family.model_type: family for family in FAMILIES}


def read(model_type="llama", **values):
    names = values.pop("names", ())
    return read_config(NAMES[model_type], values, names, where="config.json").model


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_transformers(name):
    transformers = pytest.importorskip("transformers", reason="it has the defaults")
    theirs = transformers.AutoConfig.for_model(name)
    # Not in its class: what the files say all the same, or older versions read.
    older = {"n_positions", "position_embedding_type"} if name != "gpt2" else set()
    older |= {"attention_bias", "mlp_bias", "use_sliding_window", "max_window_layers"}
    older |= {"hidden_act"} if name == "gemma2" else set()
    for key, value in NAMES[name].defaults.items():
        if key in older and not hasattr(theirs, key):
            continue
        found = json.loads(json.dumps(getattr(theirs, key)))  # as the file has it
        if key == "sliding_window" and name.startswith("qwen"):
            continue  # it is there only where it is used
        assert found == value, key


def test_rope_in_both_spellings():
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
    with pytest.raises(UserError, match=r"max_window_layers|layer_types"):
        read("qwen2", **qwen, max_window_layers=2)


REFUSED = [
    ("llama", {"rope_scaling": {"rope_type": "yarn"}}, "rope_type = 'yarn': allowed"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "factor = null: must be a number"),
    ("llama", {"rope_scaling": "linear"}, "must be an object"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ("llama", {"hidden_act": "sillu"}, "hidden_act = 'sillu'.*mean 'silu'"),
    ("llama", {"attention_bias": True}, "mlp_bias = false: allowed: true"),
    ("llama", {"hidden_size": "big"}, "hidden_size = 'big': must be a whole number"),
    ("llama", {"hidden_size": True}, "hidden_size = true: must be a whole number"),
    ("llama", {"tie_word_embeddings": 1}, "must be true or false"),
    ("llama", {"num_attention_heads": 0}, "num_heads = 0"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"hidden_size": 100, "num_attention_heads": 7}, "num_heads = 7"),
    ("qwen3", {"attention_bias": True}, "attention_bias = true: allowed: false"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("gemma", {"hidden_act": "silu"}, "hidden_act = 'silu'"),
    ("gemma2", {"layer_types": ["full_attention"]}, "layer_types"),
    ("bert", {"position_embedding_type": "relative_key"}, "allowed: 'absolute'"),
    ("bert", {"is_decoder": True}, "is_decoder = true: allowed: false"),
    ("bert", {"type_vocab_size": 0}, "type_vocab_size = 0: must be >= 1"),
    (
        "roberta",
        {"hidden_act": "relu", "names": ["lm_head.dense.weight"]},
        "hidden_act = 'relu': allowed: 'gelu'",
    ),
    ("bart", {"encoder_ffn_dim": 8}, "decoder_ffn_dim = 4096: must be encoder_ffn_dim"),
    ("bart", {"normalize_before": True}, "normalize_before"),
    ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder"),
    ("marian", {"decoder_vocab_size": 7}, "decoder_vocab_size = 7: allowed: .*58101"),
    ("t5", {"feed_forward_proj": "gated-tanh"}, "feed_forward_proj = 'gated-tanh'"),
]


@pytest.mark.parametrize(
    "case", REFUSED, ids=[f"{name}-{'-'.join(keys)}" for name, keys, _ in REFUSED]
)
def test_settings_that_cannot_be_honoured(case):
    name, values, message = case
    with pytest.raises(UserError, match=message) as error:
        read(name, **values)
    assert "config.json: " in str(error.value) and "\n" not in str(error.value)


def test_families_are_found_by_architecture_then_model_type():
    find = lambda **values: find_family(values, where="config.json")
    assert find(architectures=["T5WithLMHeadModel"]).model_type == "t5"
    assert find(model_type="qwen3").model_type == "qwen3"
    with pytest.raises(UserError, match=r"'LlamaForCausalLLM'.*'LlamaForCausalLM'"):
        find(architectures=["LlamaForCausalLLM"], model_type="llama")
    with pytest.raises(UserError, match=r"T5EncoderModel.*not supported"):
        find(architectures=["T5EncoderModel"], model_type="t5")
    with pytest.raises(UserError, match=r"model_type = None: not supported.*gpt2"):
        find()


def model_of(**fields):
    config = parse(
        {
            "model": {"vocab_size": 32, "dim": 16, "num_heads": 4, **fields},
            "tokenizer": {"kind": "ids", "vocab_size": 32},
            "data": {"source": "none", "length": 16},
        }
    )
    return models.build(config.model, platform="cpu")


def test_the_family_of_a_model_is_one_that_computes_the_same():
    chosen = lambda **fields: choose_family(model_of(**fields))[0].model_type
    gpt2 = {"position": "learned", "norm": "layernorm", "gated": False}
    gpt2 |= {"activation": "gelu_tanh", "use_bias": True}
    assert chosen(**gpt2) == "gpt2"
    assert chosen() == "llama"
    assert chosen(rope_original_length=77, dropout=0.5) == "llama"  # idle fields
    assert chosen(window=4) == "mistral"
    assert chosen(qkv_bias=True, window=4, global_every=3) == "qwen2"
    assert chosen(qk_norm=True) == "qwen3"
    gemma = {"norm": "rmsnorm1p", "activation": "gelu_tanh", "scale_embeddings": True}
    assert chosen(**gemma) == "gemma"
    gemma2 = {**gemma, "norm_place": "both", "attention_scale": 24**-0.5}
    assert chosen(**gemma2) == "gemma2"
    with pytest.raises(UserError, match=r"nearest, llama, .*norm_place = 'post'"):
        chosen(norm_place="post")
    with pytest.raises(UserError, match="no model of transformers is like this"):
        chosen(**gemma2 | {"attention_scale": 0.3})


@pytest.fixture
def directory(tmp_path):
    """Return a directory with a tiny Llama, made without transformers."""
    origin = tmp_path / "theirs"
    origin.mkdir()
    values = {**TINY, "tie_word_embeddings": True, "eos_token_id": 2}
    (origin / "config.json").write_text(json.dumps(values))
    config = read_config(NAMES["llama"], values, (), where="config.json")
    model = models.build(config.model, platform="cpu")
    table = NAMES["llama"].table(config.model)
    rng, flat = np.random.default_rng(0), layout.flatten(model.shapes)
    arrays = {
        name: rng.standard_normal(
            layout.whole_shape(row, layout.unstacked(row, flat[row.ours].shape))
        ).astype(np.float32)
        for row in layout.rows_of(table, flat)
        for _, name in layout.names(row, flat[row.ours].shape)
    }
    specs = {name: Spec(a.dtype, a.shape) for name, a in arrays.items()}
    write_tensors(origin, specs, arrays.values())
    return origin


def test_the_command_line(directory, tmp_path, capsys):
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert main(["import", f"--from={directory}", f"--workdir={ours}"]) == 0
    told = capsys.readouterr().out
    assert "LlamaForCausalLM" in told and "4,944 parameters" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]
    assert main(["export", f"--workdir={ours}", f"--to={back}"]) == 0
    a, b = open_tensors(directory), open_tensors(back)
    assert a.entries.keys() == b.entries.keys()
    for name in a.entries:
        np.testing.assert_array_equal(a.read(name), b.read(name))
    assert json.loads((back / "config.json").read_text())["eos_token_id"] == 2
    half = tmp_path / "half"
    assert (
        main(["export", f"--workdir={ours}", f"--to={half}", "--dtype=bfloat16"]) == 0
    )
    assert {e.dtype.name for e in open_tensors(half).entries.values()} == {"bfloat16"}
    assert sorted(p.name for p in half.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_mistakes_leave_nothing_behind(directory, tmp_path, capsys):
    ours = tmp_path / "ours"
    command = ["import", f"--from={directory}", f"--workdir={ours}"]

    def refused(message, command=command):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert [path.name for path in tmp_path.glob("*")] == [directory.name]
        assert not list(tmp_path.glob(".*"))

    missing = ["import", f"--from={tmp_path}/nowhere", f"--workdir={ours}"]
    refused("neither a directory nor the name of a model", missing)
    file = directory / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-4])
    refused("truncated: ")
    file.write_bytes(content)
    path = directory / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"intermediate_size": 25}))
    refused("config.json implies [25, 16]")
    path.write_text(json.dumps(values | {"num_hidden_layers": 1}))
    refused("are no part of the model")
    path.unlink()
    refused("config.json: cannot be read: No such file")


def test_what_is_there_is_left_alone(directory, tmp_path, capsys):
    ours, back = tmp_path / "ours", tmp_path / "back"
    ours.mkdir()  # empty: it may be filled
    hf.import_hf(directory, ours)
    before = sorted(ours.rglob("*"))
    assert main(["import", f"--from={directory}", f"--workdir={ours}"]) == 2
    assert "exists already, and is not empty" in capsys.readouterr().err
    assert sorted(ours.rglob("*")) == before
    with pytest.raises(UserError, match=r"--dtype=float8.*float32"):
        hf.export_hf(ours, back, dtype="float8")
    with pytest.raises(UserError, match=r"--to=.*exists already"):
        hf.export_hf(ours, directory)
    with pytest.raises(UserError, match="--step=3: not in"):
        hf.export_hf(ours, back, step=3)
    assert not back.exists()


def test_what_a_killed_import_left_is_swept_away(directory, tmp_path):
    part = tmp_path / ".ours.part"
    (part / "checkpoints" / "0").mkdir(parents=True)
    (part / "config.json").write_text("{")
    hf.import_hf(directory, tmp_path / "ours")
    assert not part.exists()
    assert "config.json" in {path.name for path in (tmp_path / "ours").iterdir()}
    assert not (tmp_path / "ours" / ".lock").exists()
