"""The architecture of Llama 3.2 1B, trained on your own corpus.

    lmjax train --config=experiments/lm/llama_1b.py:'/data/web/*.jsonl' --workdir=DIR

Cost: for one node of eight 80 GB accelerators, fully sharded.
Score: not trained. The tests check its shapes and its mesh.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(path: str = "data/*.jsonl") -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 100_000
    config.batch_size = 128
    config.num_microbatches = 2
    config.model = base.llama(
        dim=2048,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        mlp_dim=8192,
        max_length=4096,
    )
    config.model.vocab_size = 128_256
    config.model.tie_embeddings = True
    config.model.rope_theta = 500_000.0
    config.model.remat = "dots"
    config.tokenizer = {"algorithm": "bpe", "vocab_size": 128_000}
    config.data = {"source": "jsonl", "path": path, "length": 4096}
    config.optim = base.adamw(learning_rate=3e-4, warmup_steps=2000)
    config.mesh = {"data": 1, "fsdp": 8}
    config.eval = {"every_steps": 2000, "batch_size": 64, "num_batches": 32}
    config.checkpoint = {"every_steps": 1000}
    return config
