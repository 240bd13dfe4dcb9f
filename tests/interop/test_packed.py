"""Importing what others have quantized: each layout, packed here by its description."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lmjax.errors import UserError
from lmjax.interop.packed import open_packed
from lmjax.interop.safetensors import open_tensors

OUTPUTS, INPUTS, GROUP = 16, 64, 32
NF4 = [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0]
NF4 += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1]


def pack(codes, bits):
    """Pack the last axis into int32, the lowest bits first."""
    codes = codes.reshape(*codes.shape[:-1], -1, 32 // bits).astype(np.uint32)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return np.bitwise_or.reduce(codes << shifts, axis=-1).view(np.int32)


def random_codes(rng, bits):
    """Return codes (I, O), zeros and scales (G, O), and the matrix (O, I)."""
    num_groups = INPUTS // GROUP
    codes = rng.integers(0, 2**bits, (INPUTS, OUTPUTS))
    zeros = rng.integers(1, 2**bits, (num_groups, OUTPUTS))
    scales = rng.uniform(0.1, 1, (num_groups, OUTPUTS)).astype(np.float16)
    weight = np.zeros((OUTPUTS, INPUTS), np.float32)
    for o in range(OUTPUTS):
        for i in range(INPUTS):
            g = i // GROUP
            weight[o, i] = (codes[i, o] - zeros[g, o]) * np.float32(scales[g, o])
    return codes, zeros, scales, weight


def gptq(rng, bits, *, v2=False):
    codes, zeros, scales, weight = random_codes(rng, bits)
    tensors = {
        "a.qweight": np.ascontiguousarray(pack(codes.T, bits).T),
        "a.qzeros": pack(zeros - (not v2), bits),
        "a.scales": scales,
        "a.g_idx": (np.arange(INPUTS) // GROUP).astype(np.int32),
    }
    settings = {"quant_method": "gptq", "bits": bits, "group_size": GROUP}
    return tensors, settings | ({"checkpoint_format": "gptq_v2"} if v2 else {}), weight


def gptq_in_order(rng):
    """With the inputs in the order of their activations (`desc_act`)."""
    tensors, settings, weight = gptq(rng, 4)
    order = rng.permutation(INPUTS)
    codes = pack(unpack_rows(tensors["a.qweight"])[order].T, 4).T
    tensors["a.qweight"] = np.ascontiguousarray(codes)
    tensors["a.g_idx"] = tensors["a.g_idx"][order]
    return tensors, settings, weight[:, order]


def unpack_rows(packed):
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    codes = (packed.view(np.uint32)[:, None] >> shifts[:, None]) & np.uint32(15)
    return codes.reshape(-1, packed.shape[1])


def awq(rng):
    codes, zeros, scales, weight = random_codes(rng, 4)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    mix = lambda x: x.reshape(len(x), -1, 8)[..., order].reshape(len(x), -1)
    tensors = {
        "a.qweight": pack(mix(codes), 4),
        "a.qzeros": pack(mix(zeros), 4),
        "a.scales": scales,
    }
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP}
    return tensors, settings | {"version": "gemm"}, weight


def nf4(rng, *, nested=False):
    codes = rng.integers(0, 16, OUTPUTS * INPUTS)
    absmax = rng.uniform(0.5, 2, len(codes) // GROUP).astype(np.float32)
    levels = np.array(NF4, np.float32)
    state = {"blocksize": GROUP, "shape": [OUTPUTS, INPUTS], "dtype": "float32"}
    tensors = {
        "a.weight": (codes[::2] << 4 | codes[1::2]).astype(np.uint8)[:, None],
        "a.weight.absmax": absmax,
        "a.weight.quant_map": levels,
    }
    if nested:
        small = rng.integers(0, 256, len(absmax)).astype(np.uint8)
        of_small = rng.uniform(0.5, 1, -(-len(absmax) // 8)).astype(np.float32)
        small_levels = np.linspace(-1, 1, 256, dtype=np.float32)
        tensors["a.weight.absmax"] = small
        tensors["a.weight.nested_absmax"] = of_small
        tensors["a.weight.nested_quant_map"] = small_levels
        state |= {"nested_blocksize": 8, "nested_offset": 1.5}
        absmax = [
            small_levels[small[i]] * of_small[i // 8] + np.float32(1.5)
            for i in range(len(small))
        ]
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    tensors["a.weight.quant_state.bitsandbytes__nf4"] = text
    weight = [levels[code] * absmax[i // GROUP] for i, code in enumerate(codes)]
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    return tensors, settings, np.array(weight, np.float32).reshape(OUTPUTS, INPUTS)


def int8(rng):
    weight = rng.integers(-127, 128, (OUTPUTS, INPUTS)).astype(np.int8)
    scales = rng.uniform(0.1, 2, OUTPUTS).astype(np.float32)
    values = [[x * scales[o] / 127 for x in weight[o]] for o in range(OUTPUTS)]
    tensors = {"a.weight": weight, "a.SCB": scales}
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return tensors, settings, np.array(values)


LAYOUTS = {
    "gptq2": lambda rng: gptq(rng, 2),
    "gptq4": lambda rng: gptq(rng, 4),
    "gptq8": lambda rng: gptq(rng, 8),
    "gptq_v2": lambda rng: gptq(rng, 4, v2=True),
    "gptq_desc_act": gptq_in_order,
    "awq": awq,
    "nf4": nf4,
    "nf4_nested": lambda rng: nf4(rng, nested=True),
    "int8": int8,
}


def open_written(directory, tensors, settings, **more):
    save_file({**tensors, **more}, directory / "model.safetensors")
    files = open_tensors(directory)
    return open_packed(files, settings, model_type="llama", file="config.json")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_matrix_is_what_its_packed_form_stands_for(tmp_path, layout):
    rng = np.random.default_rng(0)
    tensors, settings, weight = LAYOUTS[layout](rng)
    bias = rng.standard_normal(OUTPUTS).astype(np.float32)
    files = open_written(tmp_path, tensors, settings, **{"a.bias": bias})
    assert {*files.tensors} == {"a.weight", "a.bias"}
    assert files.tensors["a.weight"].shape == weight.shape
    np.testing.assert_allclose(files.read("a.weight"), weight, rtol=1e-6)
    part = files.read("a.weight", [slice(3, 9), slice(8, 40)])
    np.testing.assert_allclose(part, weight[3:9, 8:40], rtol=1e-6)
    assert isinstance(part.base, np.ndarray)
    np.testing.assert_array_equal(files.read("a.bias"), bias)


def test_fp8_by_blocks(tmp_path):
    import ml_dtypes

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((OUTPUTS, INPUTS)).astype(ml_dtypes.float8_e4m3fn)
    scales = rng.uniform(0.5, 2, (2, 4)).astype(np.float32)
    settings = {"quant_method": "fp8", "weight_block_size": [10, 16]}
    header = {
        "a.weight": ("F8_E4M3", weight),
        "a.weight_scale_inv": ("F32", scales),
    }
    write_raw(tmp_path / "model.safetensors", header)
    files = open_tensors(tmp_path)
    files = open_packed(files, settings, model_type="llama", file="config.json")
    expected = [
        [float(weight[o, i]) * scales[o // 10, i // 16] for i in range(INPUTS)]
        for o in range(OUTPUTS)
    ]
    np.testing.assert_allclose(files.read("a.weight"), expected, rtol=1e-6)


def write_raw(file, tensors):
    """Write a safetensors file of dtypes that its package may lack."""
    header, values = {}, b""
    for name, (dtype, array) in tensors.items():
        begin, values = len(values), values + array.tobytes()
        offsets = [begin, len(values)]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + values)


def test_the_files_of_bitsandbytes(tmp_path):
    torch = pytest.importorskip("torch", reason="pip install '.[parity]'")
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(OUTPUTS, INPUTS, generator=torch.manual_seed(0))
    packed, state = functional.quantize_4bit(
        weight, blocksize=64, quant_type="nf4", compress_statistics=True
    )
    tensors = {"a.weight": packed.numpy()}
    for name, value in state.as_dict(packed=True).items():
        tensors[f"a.weight.{name}"] = value.numpy()
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    files = open_written(tmp_path, tensors, settings)
    expected = functional.dequantize_4bit(packed, state).numpy()
    np.testing.assert_allclose(files.read("a.weight"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "gptqq"}, r"'gptqq': must be one of .* mean 'gptq'"),
        ({"bits": 4}, "quant_method = '': must be one of gptq, awq"),
        ({"quant_method": "gptq", "bits": 3}, "bits = 3: must be one of 2, 4, 8"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "must be 'gemm'"),
        ({"quant_method": "bitsandbytes"}, "neither load_in_4bit nor load_in_8bit"),
        ({"quant_method": "fp8"}, r"no tensor is named \*.weight_scale_inv"),
    ],
)
def test_methods_that_are_not_supported(tmp_path, settings, message):
    tensors, _, _ = gptq(np.random.default_rng(0), 4)
    with pytest.raises(UserError, match=message):
        open_written(tmp_path, tensors, settings)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("a.qzeros"), "tensor 'a.qzeros' is missing"),
        (lambda t: t.update({"a.g_idx": t["a.g_idx"] + 5}), "2 groups of scales, but"),
        (lambda t: t.update({"a.scales": t["a.scales"][:, :9]}), "damaged: "),
    ],
)
def test_damaged_files(tmp_path, damage, message):
    tensors, settings, _ = gptq(np.random.default_rng(0), 4)
    damage(tensors)
    files = open_written(tmp_path, tensors, settings)
    with pytest.raises(UserError, match=message):
        files.read("a.weight")


def test_an_imported_model_computes_what_its_packed_weights_stand_for(tmp_path):
    torch = pytest.importorskip("torch", reason="pip install '.[parity]'")
    transformers = pytest.importorskip("transformers")
    from safetensors.numpy import load_file

    import lmjax
    from lmjax.interop.hf import import_hf

    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    source, rng = tmp_path / "hf", np.random.default_rng(0)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(source)
    tensors, whole = load_file(source / "model.safetensors"), {}
    for name, weight in list(tensors.items()):
        if name.endswith("_proj.weight"):
            packed = rng.integers(-127, 128, weight.shape).astype(np.int8)
            scales = rng.uniform(0.1, 0.2, len(weight)).astype(np.float32)
            tensors[name] = packed
            tensors[name.removesuffix("weight") + "SCB"] = scales
            whole[name] = torch.from_numpy(packed * (scales / 127)[:, None])
    save_file(tensors, source / "model.safetensors")
    values = json.loads((source / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "bitsandbytes"}
    values["quantization_config"]["load_in_8bit"] = True
    (source / "config.json").write_text(json.dumps(values))
    model.load_state_dict(whole, strict=False)
    import_hf(source, tmp_path / "run")
    tokens = rng.integers(0, 64, (2, 16))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    found = lmjax.load(tmp_path / "run").logits(tokens)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
