"""A small T5 on the source code of Python's standard library: span corruption.

    lmjax train --config=experiments/seq2seq/t5_tiny.py --workdir=runs/t5_tiny

It can be exported as a T5, whose attention scores are not scaled. The figures were
measured with scaled scores, and not again since.

Cost: 18 minutes on two CPU cores shared with other programs (0.4 to 1.3 s a step).
Score: loss 4.76 nats, accuracy 0.291 at the target tokens of the files that Python 3.11
holds out. A quarter of these targets are sentinels and ends of text, which are easy.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 1000
    config.batch_size = 16
    config.model = base.t5(
        dim=128, num_layers=3, num_heads=4, mlp_dim=256, max_length=128
    )
    config.model.tie_embeddings = True
    config.tokenizer = {"algorithm": "bpe", "vocab_size": 4096, "num_sentinels": 32}
    config.data = {
        "source": "python_stdlib",
        "length": 128,
        "isolate_documents": False,
    }
    config.task = {"kind": "span_corruption"}
    config.optim = base.muon(learning_rate=0.01, warmup_steps=100)
    config.checkpoint = {"every_steps": 500, "keep": 2}
    config.eval = {"every_steps": 500, "batch_size": 32}
    config.log = {"every_steps": 20}
    return config
