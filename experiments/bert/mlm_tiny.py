"""A small BERT on the source code of Python's standard library.

    lmjax train --config=experiments/bert/mlm_tiny.py --workdir=runs/mlm_tiny

13 minutes on two CPU cores that others used too (a step took 0.4 to 1.6 seconds), to a
loss of 2.81 nats and an accuracy of 0.407 at the masked tokens of Python 3.11's
held-out files. For 200 steps it only learns how frequent tokens are (5.5 nats).
"""

from ml_collections import ConfigDict

from experiments import base


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 1000
    config.batch_size = 16
    config.model = base.bert(dim=128, num_layers=3, num_heads=4, max_length=128)
    # Learns sooner, in so short a run.
    config.model.update(
        {"norm_place": "pre", "embedding_norm": False, "position": "rope"}
    )
    config.tokenizer = {"algorithm": "bpe", "vocab_size": 1024, "mask": True}
    config.data = {"source": "python_stdlib", "length": 128}
    config.task = {"kind": "masked_lm"}
    config.optim = base.muon(learning_rate=0.01, warmup_steps=100)
    config.checkpoint = {"every_steps": 500, "keep": 2}
    config.eval = {"every_steps": 500, "batch_size": 32}
    config.log = {"every_steps": 20}
    return config
