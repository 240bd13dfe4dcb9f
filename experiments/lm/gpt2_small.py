"""GPT-2 small (124M parameters) on your own corpus (Radford et al. 2019).

    lmjax train --config=experiments/lm/gpt2_small.py:'/data/web/*.jsonl' --workdir=DIR

Cost: for eight 80 GB accelerators, data parallel; 0.5M tokens per step, 300B in all.
Score: not trained. The tests check its shapes and its mesh.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(path: str = "data/*.jsonl") -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 600_000
    config.batch_size = 512
    config.num_microbatches = 2
    config.model = base.gpt2(dim=768, num_layers=12, num_heads=12, max_length=1024)
    config.model.vocab_size = 50_304  # a multiple of 128 is faster
    config.tokenizer = {"algorithm": "bpe", "vocab_size": 50_257}
    config.data = {"source": "jsonl", "path": path, "length": 1024}
    config.optim = base.adamw(learning_rate=6e-4, warmup_steps=2000)
    config.mesh = {"data": 8}
    config.eval = {"every_steps": 2000, "num_batches": 64}
    config.checkpoint = {"every_steps": 2000, "best_metric": "loss"}
    return config
