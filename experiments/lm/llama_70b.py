"""The architecture of Llama 3 70B, trained on your own corpus.

    lmjax plan --config=experiments/lm/llama_70b.py --topology=tpu:v5p:8x8x8
    lmjax train --config=experiments/lm/llama_70b.py:'/data/web/*.jsonl' --workdir=DIR

Cost: for a pod of 512 chips or 64 nodes of GPUs, fully sharded.
Score: not trained. The tests check its shapes and its mesh.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(path: str = "data/*.jsonl") -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 500_000
    config.batch_size = 512
    config.model = base.llama(
        dim=8192,
        num_layers=80,
        num_heads=64,
        num_kv_heads=8,
        mlp_dim=28_672,
        max_length=8192,
    )
    config.model.vocab_size = 128_256
    config.model.rope_theta = 500_000.0
    config.model.remat = "full"
    config.tokenizer = {"algorithm": "bpe", "vocab_size": 128_000}
    config.data = {"source": "jsonl", "path": path, "length": 8192}
    config.optim = base.adamw(learning_rate=1.5e-4, warmup_steps=2000)
    config.mesh = {"data": 1, "fsdp": -1}
    config.eval = {"every_steps": 2000, "num_batches": 16}
    config.checkpoint = {"every_steps": 1000}
    return config
