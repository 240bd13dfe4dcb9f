"""Quantized models in others' files: code for code there, and back as what they are."""

import json
import shutil

import numpy as np
import pytest

from lmjax.cli.main import main
from lmjax.config.matrices import QuantizeConfig
from lmjax.errors import UserError
from lmjax.inference.language_model import load
from lmjax.interop import hf
from lmjax.interop.families import llama
from lmjax.interop.packed import open_packed
from lmjax.interop.packed_export import Codes, describe_format, export_codes
from lmjax.interop.registry import read_config
from lmjax.interop.safetensors import open_tensors
from lmjax.nn import quantized
from lmjax.types import named_leaves
from tests.interop.test_hf import LLAMA, save_random

VALUES = LLAMA | {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 64}
VALUES |= {"num_attention_heads": 2}
FORMATS = {
    "int8": ["--quantize=int8"],
    "int8, activations": ["--quantize=int8", "--activations=int8"],
    "int8, embeddings": ["--quantize=int8", "--embeddings=int8"],
    "fp8": ["--quantize=fp8"],
    "int4": ["--quantize=int4:16"],
    "int4, larger than heads": ["--quantize=int4:64"],
    "nf4": ["--quantize=nf4:32"],
}
# Tensors of the first query projection: dtypes and shapes.
TENSORS = {
    "int8": {
        "weight_packed": ("int32", (64, 16)),
        "weight_scale": ("float32", (64, 1)),
        "weight_shape": ("int64", (2,)),
    },
    "int8, activations": {
        "weight": ("int8", (64, 64)),
        "weight_scale": ("float32", (64, 1)),
    },
    "int4, larger than heads": {"weight_scale": ("float16", (64, 2))},
    "fp8": {
        "weight": ("float8_e4m3fn", (64, 64)),
        "weight_scale": ("float32", (64, 1)),
    },
    "int4": {
        "weight_packed": ("int32", (64, 8)),
        "weight_scale": ("float16", (64, 4)),
        "weight_shape": ("int64", (2,)),
    },
    "nf4": {
        "weight": ("uint8", (2048, 1)),
        "weight.absmax": ("float32", (128,)),
        "weight.quant_map": ("float32", (16,)),
    },
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Return a workdir with a random Llama."""
    root = tmp_path_factory.mktemp("packed")
    config = read_config(llama.LLAMA, VALUES, (), file="config.json")
    hf.import_hf(save_random(root / "hf", VALUES, config, scale=0.1), root / "workdir")
    return root / "workdir"


def export(workdir, directory, flags):
    """Quantize a model and export it; return both."""
    small, target = directory / "small", directory / "hf"
    assert main(["compress", f"--workdir={workdir}", f"--to={small}", *flags]) == 0
    assert main(["export", f"--workdir={small}", f"--to={target}"]) == 0
    return small, target


@pytest.mark.parametrize("name", FORMATS)
def test_codes_come_back_as_what_they_stand_for(name, workdir, tmp_path, capsys):
    small, target = export(workdir, tmp_path, FORMATS[name])
    files = open_tensors(target)
    prefix = "model.layers.0.self_attn.q_proj."
    form = name.split(",")[0]
    for end, (dtype, shape) in TENSORS.get(name, TENSORS[form]).items():
        found = files.tensors[prefix + end]
        assert (found.dtype.name, found.shape) == (dtype, shape)
    norm = files.tensors["model.norm.weight"]
    assert norm.dtype == files.tensors["model.embed_tokens.weight"].dtype == np.float32
    values = json.loads((target / "config.json").read_text())
    described = values["quantization_config"]
    if form != "nf4":
        (group,) = described["config_groups"].values()
        assert described["ignore"] == ["lm_head"]
        assert (group["input_activations"] is not None) == ("activations" in name)
    assert main(["import", f"--from={target}", f"--workdir={tmp_path / 'back'}"]) == 0
    lm = load(small)
    expected, _ = quantized.dequantize_params(lm.params, lm.config.model)
    back = named_leaves(load(tmp_path / "back").params)
    for param, leaf in named_leaves(expected).items():
        np.testing.assert_array_equal(back[param], leaf, err_msg=param)


def test_floats_are_written_if_they_are_asked_for(workdir, tmp_path, caplog):
    small, _ = export(workdir, tmp_path, FORMATS["int8"])
    assert not caplog.records
    target = tmp_path / "floats"
    flags = [f"--workdir={small}", f"--to={target}", "--dtype=float16"]
    assert main(["export", *flags]) == 0
    assert "is quantized; its weights are written as floats" in caplog.text
    assert {t.dtype.name for t in open_tensors(target).tensors.values()} == {"float16"}
    assert "quantization_config" not in (target / "config.json").read_text()


@pytest.mark.parametrize(
    ("leaf", "value", "message"),
    [
        ("config_groups", {}, "config_groups: must be one group"),
        ("format", "marlin-24", "format = 'marlin-24': must be one of pack-quantized"),
        ("bits", 3, r"num_bits = 3: must be 2, 4 or 8"),
    ],
)
def test_other_settings_of_compressed_tensors_are_refused(leaf, value, message):
    group = {"weights": {"num_bits": 4}}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
    }
    if leaf == "bits":
        group["weights"]["num_bits"] = value
    else:
        settings[leaf] = value
    with pytest.raises(UserError, match=message):
        open_packed(None, settings, model_type="llama", file="config.json")


def test_transposed_matrices_hold_no_codes():
    from lmjax.interop.table import Entry, Table

    table = Table(entries=(Entry("a.kernel", "h.{layer}.a.weight", "conv1d"),))
    codes = np.zeros((2, 4, 8), np.int8), np.ones((2, 4), np.float32)
    with pytest.raises(UserError, match=r"h\.0\.a\.weight: is transposed"):
        export_codes(Codes(QuantizeConfig(weights="int8"), {"a.kernel": codes}), table)


def test_linear_layers_of_floats_are_named():
    from lmjax.interop.table import Entry, Table, linear

    table = Table(
        entries=(
            *linear("pooler.dense", "bert.pooler.dense"),
            Entry("blocks.up.kernel", "bert.layer.{layer}.up.weight", "linear"),
            Entry("embed.embedding", "bert.embeddings.weight"),
        ),
        copies={"cls.decoder.weight": "bert.embeddings.weight"},
    )
    codes = np.zeros((2, 4, 8), np.int8), np.ones((2, 4), np.float32)
    one = Codes(QuantizeConfig(weights="int8"), {"blocks.up.kernel": codes})
    params = {"pooler": {"dense": {"kernel": np.zeros((4, 4))}}}
    found = describe_format(one, table, params, prefix="bert.")
    assert found["ignore"] == ["cls.decoder", "lm_head", "pooler.dense"]
    nf4 = np.zeros((2, 4, 8), np.uint8), np.ones((2, 4, 4), np.float16)
    config = QuantizeConfig(weights="nf4", group=4)
    with pytest.raises(UserError, match="groups of 4 inputs: bitsandbytes has blocks"):
        describe_format(Codes(config, {"blocks.up.kernel": nf4}), table, {}, prefix="")


def test_a_cache_alone_is_no_obstacle(workdir, tmp_path):
    """Of decoding alone: the exported model is the same."""
    config = json.loads((workdir / "config.json").read_text())
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    config["model"]["quantize"]["cache"] = "int8"
    (copy / "config.json").write_text(json.dumps(config))
    assert main(["export", f"--workdir={copy}", f"--to={tmp_path / 'hf'}"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["int8", "int8, activations", "fp8", "int4", "int4, larger than heads"]
)
def test_transformers_computes_the_same(name, workdir, tmp_path):
    transformers = pytest.importorskip("transformers", reason="pip install '.[parity]'")
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors", reason="pip install '.[parity]'")
    small, target = export(workdir, tmp_path, FORMATS[name])
    reference = transformers.LlamaForCausalLM.from_pretrained(target)
    ids = np.arange(3, 40, dtype=np.int32)[None]
    with torch.no_grad():
        expected = reference(torch.tensor(ids, dtype=torch.long)).logits.numpy()
    logits = np.asarray(load(small).logits(ids))
    bound = 0.02 if "activations" in name else 2e-5
    np.testing.assert_allclose(logits, expected, rtol=bound, atol=bound)
