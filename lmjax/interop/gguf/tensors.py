"""The tensors of a GGUF file: names, the order of rotated rows, formats of numbers.

Shapes here are those of NumPy, (outputs, inputs); the format lists them in reverse.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

ROPE_FACTORS = "rope_freqs.weight"

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_NAMES_IN_LAYERS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_NAMES = {hf: name for name, hf in (_NAMES | _NAMES_IN_LAYERS).items()}
# The formats that an export can have, by the flag: the type of GGML.
FORMATS = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "q8_0": "Q8_0",
    "q4_0": "Q4_0",
}
_BLOCK = 32  # weights of a row that share a scale


def hf_name(name: str) -> str:
    """Return the name of a tensor in a Hugging Face directory; its own if unknown."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None:
        return name
    layer, middle, end = match.groups()
    names = _NAMES if layer is None else _NAMES_IN_LAYERS
    if middle not in names:
        return name
    prefix = "" if layer is None else f"model.layers.{layer}."
    return f"{prefix}{names[middle]}.{end}"


def gguf_name(name: str) -> str:
    """Return the name of a Hugging Face tensor of these architectures in GGUF."""
    match = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?([\w.]+)\.(weight|bias)", name)
    assert match is not None, name
    layer, middle, end = match.groups()
    prefix = "" if layer is None else f"blk.{layer}."
    return f"{prefix}{_GGUF_NAMES[middle]}.{end}"


def rotated_heads(name: str, values: Mapping[str, Any]) -> int:
    """Return the number of heads whose rows a llama has in another order, or 0.

    Args:
      name: of a Hugging Face tensor.
      values: the config.json.
    """
    if values["model_type"] != "llama":
        return 0
    heads = values["num_attention_heads"]
    if ".self_attn.q_proj." in name:
        return int(heads)
    if ".self_attn.k_proj." in name:
        return int(values.get("num_key_value_heads", heads))
    return 0


def interleave(tensor: np.ndarray, num_heads: int) -> np.ndarray:
    """Return rows with the two of each rotated pair side by side, as GGUF has them."""
    shape = (num_heads, 2, -1, *tensor.shape[1:])
    return tensor.reshape(shape).swapaxes(1, 2).reshape(tensor.shape)


def separate(tensor: np.ndarray, num_heads: int) -> np.ndarray:
    """Return rows with the pairs apart by half a head: the reverse of `interleave`."""
    shape = (num_heads, -1, 2, *tensor.shape[1:])
    return tensor.reshape(shape).swapaxes(1, 2).reshape(tensor.shape)


def choose_format(name: str, shape: tuple[int, ...], dtype: str) -> str:
    """Return the format of a tensor, one of `FORMATS`.

    Vectors stay in float32, as llama.cpp needs them. At four bits the embeddings and
    the head have eight; rows that blocks do not divide are in float16.

    Args:
      name: of the Hugging Face tensor.
      shape: of the tensor.
      dtype: of the export.
    """
    if len(shape) == 1:
        return "float32"
    if dtype.startswith("q") and shape[-1] % _BLOCK:
        return "float16"
    if dtype == "q4_0" and name in ("model.embed_tokens.weight", "lm_head.weight"):
        return "q8_0"
    return dtype


def add_info(writer: Any, name: str, shape: tuple[int, ...], form: str) -> None:
    """Announce a tensor to a `gguf.GGUFWriter`.

    Args:
      writer: of the file.
      name: of the Hugging Face tensor.
      shape: of the tensor.
      form: of its numbers, one of `FORMATS`.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    kind = GGMLQuantizationType[FORMATS[form]]
    stored = quant_shape_to_byte_shape(shape, kind)
    writer.add_tensor_info(
        gguf_name(name), stored, np.dtype(np.uint8), math.prod(stored), raw_dtype=kind
    )


def encode(tensor: np.ndarray, form: str) -> np.ndarray:
    """Return the bytes of a float32 tensor in a format, one of `FORMATS`."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    rows = np.ascontiguousarray(tensor)
    return quantize(rows, GGMLQuantizationType[FORMATS[form]]).view(np.uint8)
