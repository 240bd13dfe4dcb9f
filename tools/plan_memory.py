"""Compare the memory that `lmjax plan` predicts on eight CPU devices with what is used.

    python tools/plan_memory.py

Five models, each in a process of its own: the resident memory that the state and one
step add at their peak, beside the compiler's total for eight devices.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

SIZE = {"vocab_size": 2048, "dim": 512, "num_layers": 4, "max_length": 256}
HEADS = {**SIZE, "num_heads": 8}
PLAIN = {"position": "learned", "norm": "layernorm", "use_bias": True}
SHARED = {
    "batch_size": 16,
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "none", "length": 256},
}
CASES = {
    "llama, fsdp 8": {
        "model": {**HEADS, "num_kv_heads": 2},
        "mesh": {"data": 1, "fsdp": 8},
    },
    "gpt2, data 8": {"model": {**HEADS, **PLAIN, "gated": False}},
    "llama, data 2 fsdp 2 tensor 2, remat full": {
        "model": {**HEADS, "num_kv_heads": 4, "remat": "full"},
        "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
    },
    "bert, data 8": {
        "model": {**HEADS, **PLAIN, "kind": "encoder", "norm_place": "post"},
        "task": {"kind": "masked_lm"},
    },
    "lstm, data 8": {
        "model": {**SIZE, "kind": "recurrent", "hidden_dim": 512, "num_layers": 2}
    },
}


def measure(sections: dict) -> None:
    """Print the predicted and the used bytes of one step."""
    import jax
    import numpy as np

    from lmjax.config.experiment import parse
    from lmjax.parallel import sharding
    from lmjax.plan.memory import total_bytes
    from lmjax.training.compiled import make_program

    config = parse(sections)
    mesh = sharding.make_mesh(config.mesh)
    program = make_program(config, mesh)

    def fill(leaf):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.key(0), leaf.sharding)
        ones = np.ones(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda _: ones)

    with jax.set_mesh(mesh):
        compiled = program.train_step.lower(program.batch_shapes()).compile()
        before = resident("VmRSS")
        state = jax.tree.map(fill, program.state_shapes)
        batch = jax.tree.map(fill, program.batch_shapes())
        jax.block_until_ready(state)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        jax.block_until_ready(compiled(state, batch, None))
    predicted = mesh.size * total_bytes(compiled.memory_analysis())
    print(json.dumps([predicted, resident("VmHWM") - before]))


def resident(name: str) -> int:
    """Return the resident bytes of this process, now or at their peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(name)) * 1024


def main() -> None:
    """Measure each model, and print predicted, used and their ratio."""
    flags = "--xla_force_host_platform_device_count=8"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    for name, changes in CASES.items():
        command = [sys.executable, __file__, json.dumps({**SHARED, **changes})]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
        predicted, used = json.loads(done.stdout)
        print(
            f"{name}: predicted {predicted / 1e6:.0f} MB, used {used / 1e6:.0f}, "
            f"ratio {predicted / used:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(json.loads(sys.argv[1]))
    else:
        main()
