"""A small BERT, trained on the source code of Python's standard library.

    lmjax train --config=experiments/bert/mlm_tiny.py --workdir=runs/mlm_tiny

No published architecture has its pre-norm blocks and rotary positions, so that it
cannot be exported. `--config.model.norm_place=post --config.model.embedding_norm=True
--config.model.position=learned` make it a BERT that can.

For the first 200 steps it learns only how frequent tokens are (5.5 nats).

Cost: 13 minutes on two CPU cores shared with other programs (0.4 to 1.6 s a step).
Score: loss 2.81 nats, accuracy 0.407 at the masked tokens of the files that Python 3.11
holds out.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 1000
    config.batch_size = 16
    config.model = base.bert(dim=128, num_layers=3, num_heads=4, max_length=128)
    # These learn faster in a run as short as this.
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
