"""T5 v1.1 base (250M parameters) on your own corpus (Raffel et al. 2020).

    lmjax train --config=experiments/seq2seq/t5_base.py:'/data/*.jsonl' --workdir=DIR

Cost: for eight 80 GB accelerators, data parallel; 1M source tokens per step, 1T in all.
Score: not trained. The tests check its shapes and its mesh.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(path: str = "data/*.jsonl") -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 1_000_000
    config.batch_size = 2048
    config.num_microbatches = 4
    config.model = base.t5(
        dim=768, num_layers=12, num_heads=12, mlp_dim=2048, max_length=512
    )
    config.model.vocab_size = 32_128  # a multiple of 128 is faster
    config.tokenizer = {
        "algorithm": "unigram",
        "vocab_size": 32_100,
        "bos": False,
        "lossless": False,
        "num_sentinels": 100,
    }
    config.data = {
        "source": "jsonl",
        "path": path,
        "length": 512,
        "isolate_documents": False,
    }
    config.task = {"kind": "span_corruption", "z_loss": 1e-4}
    config.optim = {
        "name": "adafactor",
        "learning_rate": 0.01,
        "schedule": "inverse_sqrt",
        "warmup_steps": 10_000,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
    }
    config.mesh = {"data": 8}
    config.eval = {"every_steps": 5000, "num_batches": 64}
    config.checkpoint = {"every_steps": 5000, "best_metric": "loss"}
    return config
