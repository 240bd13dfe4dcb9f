"""A word-level Transformer on Penn Treebank, in the standard split of Mikolov.

    lmjax train --config=experiments/lm/ptb.py:DIR --workdir=runs/ptb

DIR holds train.txt, valid.txt and test.txt.

Cost: 44 minutes on two CPU cores.
Score: perplexity 93.2 on valid and 86.1 on test (73,760 and 82,430 tokens with <eos>).
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(directory: str = "data/ptb") -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 5000
    config.batch_size = 16
    config.model = base.llama(
        dim=256, num_layers=4, num_heads=4, num_kv_heads=4, mlp_dim=640, max_length=128
    )
    config.model.tie_embeddings = True
    config.model.dropout = 0.3
    config.tokenizer = {
        "kind": "sentencepiece",
        "algorithm": "word",
        "vocab_size": 10_001,  # 9,999 words, end of line, unknown
        "bos": False,
        "lossless": False,
        "num_training_bytes": 10_000_000,  # all of it: every word gets an id
    }
    config.data = {
        "source": "text",
        "path": f"{directory}/train.txt",
        "valid_path": f"{directory}/valid.txt",
        "test_path": f"{directory}/test.txt",
        "document": "line",
        "isolate_documents": False,
        "length": 128,
    }
    config.optim = base.muon(learning_rate=0.01, warmup_steps=100)
    config.checkpoint = {"every_steps": 500, "keep": 1, "best_metric": "loss"}
    config.eval = {"every_steps": 500, "batch_size": 16}
    config.log = {"every_steps": 20}
    return config
