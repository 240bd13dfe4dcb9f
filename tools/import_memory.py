"""Measure the time and peak memory of importing a large Hugging Face directory.

    python tools/import_memory.py [--gigabytes=2]

Writes random weights of a Llama in bfloat16, in files of 500 MB with an index, and
reads them three ways, each in a process of its own: into a float32 array on the devices
and no further (`import_params`, what `init_from` does), as `lmjax import` (which also
writes a checkpoint), and with transformers where it is installed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from lmjax.interop.safetensors import Spec, write_tensors

WAYS = {
    "nothing read": "import jax, lmjax.interop.hf; jax.devices()",
    "onto devices": """
from lmjax import models
from lmjax.interop import hf
opened = hf.open_hf({source!r})
params = opened.load_params(*hf.build_model(opened.config, None))
""",
    "lmjax import": """
from lmjax.interop import hf
hf.import_hf({source!r}, {target!r})
""",
    "transformers": """
import torch, transformers
transformers.AutoModelForCausalLM.from_pretrained({source!r}, dtype=torch.float32)
""",
}


def write_model(directory: Path, num_bytes: int) -> int:
    """Write a Llama of about `num_bytes`; return the largest tensor's, in float32."""
    dim, mlp_dim, vocab_size = 2048, 5632, 32000
    matrices = {
        "self_attn.q_proj": (dim, dim),
        "self_attn.k_proj": (dim // 4, dim),
        "self_attn.v_proj": (dim // 4, dim),
        "self_attn.o_proj": (dim, dim),
        "mlp.gate_proj": (mlp_dim, dim),
        "mlp.up_proj": (mlp_dim, dim),
        "mlp.down_proj": (dim, mlp_dim),
        "input_layernorm": (dim,),
        "post_attention_layernorm": (dim,),
    }
    ends = {
        "model.embed_tokens.weight": (vocab_size, dim),
        "model.norm.weight": (dim,),
        "lm_head.weight": (vocab_size, dim),
    }
    size = lambda shapes: 2 * sum(int(np.prod(shape)) for shape in shapes.values())
    num_layers = max(1, round((num_bytes - size(ends)) / size(matrices)))
    shapes = dict(ends)
    for layer in range(num_layers):
        for name, shape in matrices.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    dtype = np.dtype(ml_dtypes.bfloat16)
    specs = {name: Spec(dtype, shape) for name, shape in shapes.items()}
    rng = np.random.default_rng(0)
    values = (
        (0.02 * rng.standard_normal(shape, np.float32)).astype(dtype)
        for shape in shapes.values()
    )
    write_tensors(directory, specs, values, shard_bytes=500_000_000)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": dim,
        "intermediate_size": mlp_dim,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return 4 * max(int(np.prod(shape)) for shape in shapes.values())


def measure(code: str) -> tuple[float, int]:
    """Run code in a process; return its seconds and its peak resident bytes."""
    tail = "import resource; u = resource.getrusage(resource.RUSAGE_SELF)\n"
    tail += "print(u.ru_maxrss * 1024)"
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code + "\n" + tail],
        capture_output=True,
        text=True,
        check=True,
    )
    return time.perf_counter() - begin, int(done.stdout.split()[-1])


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "theirs"
        source.mkdir()
        largest = write_model(source, int(args.gigabytes * 1e9))
        total = sum(file.stat().st_size for file in source.glob("*.safetensors"))
        print(f"{total / 1e9:.2f} GB in files, {2 * total / 1e9:.2f} GB as float32; ")
        print(f"the largest tensor {largest / 1e9:.2f} GB as float32")
        for name, code in WAYS.items():
            given = {"source": str(source), "target": str(Path(place) / "ours")}
            try:
                seconds, peak = measure(code.format(**given))
            except subprocess.CalledProcessError as error:
                print(f"{name:14} {error.stderr.strip().splitlines()[-1]}")
                continue
            print(f"{name:14} {seconds:6.1f} s  peak {peak / 1e9:5.2f} GB", flush=True)


if __name__ == "__main__":
    main()
