"""BART base (139M parameters) on your own corpus (Lewis et al. 2020): infilling.

    lmjax train --config=experiments/seq2seq/bart_base.py:'corpus/**/*.txt' \
      --workdir=runs/bart_base

Cost: for eight 80 GB accelerators.
Score: not trained. The tests check its shapes and its mesh.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(path: str = "corpus/**/*.txt") -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 500_000
    config.batch_size = 2048
    config.num_microbatches = 8
    config.model = base.bart(dim=768, num_layers=6, num_heads=12, max_length=512)
    config.model.dropout = 0.1
    config.tokenizer = {"algorithm": "bpe", "vocab_size": 50_176, "mask": True}
    config.data = {
        "source": "text",
        "path": path,
        "length": 512,
        "isolate_documents": False,
        "num_workers": 8,
    }
    config.task = {
        "kind": "infilling",
        "mask_rate": 0.3,
        "mean_span_length": 3.0,
        "sentence_permutation": True,
    }
    config.optim = base.adamw(learning_rate=6e-4, warmup_steps=10_000)
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.checkpoint = {"every_steps": 5000, "keep": 3}
    config.eval = {"every_steps": 5000, "num_batches": 64}
    config.log = {"every_steps": 50}
    return config
