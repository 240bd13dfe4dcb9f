"""A small BERT on the source code of Python's standard library.

lmjax train --config=experiments/bert/mlm_tiny.py --workdir=runs/mlm_tiny
"""

from ml_collections import ConfigDict

from experiments import base


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 1000
    config.batch_size = 16
    config.model = base.bert(dim=128, num_layers=3, num_heads=4, max_length=128)
    config.model.norm_place = "pre"  # learns sooner, in so short a run
    config.tokenizer = {"algorithm": "bpe", "vocab_size": 1024, "mask": True}
    config.data = {"source": "python_stdlib", "length": 128}
    config.task = {"kind": "masked_lm"}
    config.optim = base.muon(learning_rate=0.02, warmup_steps=100)
    config.checkpoint = {"every_steps": 500, "keep": 2}
    config.eval = {"every_steps": 500, "batch_size": 32}
    config.log = {"every_steps": 20}
    return config
