"""BERT base (110M parameters) on your own corpus (Devlin et al. 2019).

    lmjax train --config=experiments/bert/base.py:'/data/web/*.jsonl' --workdir=DIR

All rows have the full length, and there is no next-sentence prediction (Liu et al.
2019).

Cost: for eight 80 GB accelerators, data parallel; 131k tokens per step, 131B in all.
Score: not trained. The tests check its shapes and its mesh.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(path: str = "data/*.jsonl") -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 1_000_000
    config.batch_size = 256
    config.model = base.bert(dim=768, num_layers=12, num_heads=12, max_length=512)
    config.model.dropout = config.model.attention_dropout = 0.1
    config.model.vocab_size = 30_592  # a multiple of 128 is faster
    config.tokenizer = {
        "algorithm": "unigram",
        "vocab_size": 30_522,
        "lossless": False,
        "mask": True,
    }
    config.data = {"source": "jsonl", "path": path, "length": 512}
    config.task = {"kind": "masked_lm", "whole_words": True}
    config.optim = base.adamw(
        learning_rate=1e-4,
        warmup_steps=10_000,
        schedule="linear",
        final_fraction=0.0,
        b2=0.999,
        epsilon=1e-6,
        weight_decay=0.01,
    )
    config.mesh = {"data": 8}
    config.eval = {"every_steps": 5000, "num_batches": 64}
    config.checkpoint = {"every_steps": 5000, "best_metric": "loss"}
    return config
