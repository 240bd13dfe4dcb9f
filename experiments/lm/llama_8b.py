"""The architecture of Llama 3 8B, trained on your own corpus.

    lmjax describe --config=experiments/lm/llama_8b.py --devices=256
    lmjax train --config=experiments/lm/llama_8b.py:'/data/web/*.jsonl' --workdir=DIR

Cost: for a pod, fully sharded; the fsdp axis takes all devices that tensor does not.
Score: not trained. The tests check its shapes and its mesh.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(path: str = "data/*.jsonl") -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 250_000
    config.batch_size = 512
    config.model = base.llama(
        dim=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        mlp_dim=14_336,
        max_length=8192,
    )
    config.model.vocab_size = 128_256
    config.model.rope_theta = 500_000.0
    config.model.remat = "full"
    config.tokenizer = {"algorithm": "bpe", "vocab_size": 128_000}
    config.data = {"source": "jsonl", "path": path, "length": 8192}
    config.optim = base.adamw(learning_rate=3e-4, warmup_steps=2000)
    config.mesh = {"data": 1, "fsdp": -1}
    config.eval = {"every_steps": 2000, "num_batches": 16}
    config.checkpoint = {"every_steps": 1000}
    return config
