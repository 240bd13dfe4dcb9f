"""The architecture of Qwen3 8B, trained on your own corpus (Yang et al. 2025).

    lmjax plan --config=experiments/lm/qwen3_8b.py --topology=gpu:h200:4x8
    lmjax train --config=experiments/lm/qwen3_8b.py:'/data/web/*.jsonl' --workdir=DIR

Cost: for a pod or some nodes of GPUs, fully sharded.
Score: not trained. The tests check its shapes and its mesh.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(path: str = "data/*.jsonl") -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 500_000
    config.batch_size = 512
    config.model = base.llama(
        dim=4096,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        mlp_dim=12_288,
        max_length=4096,
    )
    config.model.head_dim = 128
    config.model.qk_norm = True
    config.model.norm_epsilon = 1e-6
    config.model.vocab_size = 151_936
    config.model.rope_theta = 1_000_000.0
    config.model.remat = "full"
    config.tokenizer = {"algorithm": "bpe", "vocab_size": 151_643}
    config.data = {"source": "jsonl", "path": path, "length": 4096}
    config.optim = base.adamw(learning_rate=3e-4, warmup_steps=2000)
    config.mesh = {"data": 1, "fsdp": -1}
    config.eval = {"every_steps": 2000, "num_batches": 16}
    config.checkpoint = {"every_steps": 1000}
    return config
