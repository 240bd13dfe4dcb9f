"""Sentiment of film reviews: a bidirectional GRU over GloVe vectors.

    lmjax train --config=experiments/finetune/reviews_gru_glove.py --workdir=runs/gru

The argument is DIR:VECTORS. DIR holds {train,valid,test}.jsonl with the fields text and
label; VECTORS is a file of GloVe vectors, glove.6B.50d.txt. If you are online, TFDS has
similar data as `imdb_reviews`: see experiments/finetune/reviews.py.

Cost: 18 minutes on two CPU cores shared with other programs.
Score: accuracy 0.854 on test (0.845 on valid).
"""

from ml_collections import ConfigDict

from experiments import base

DATA = "~/.cache/lmjax-data"


def get_config(argument: str = "") -> ConfigDict:
    directory, _, vectors = argument.partition(":")
    directory = directory or f"{DATA}/reviews"
    config = ConfigDict()
    config.num_steps = 1500
    config.batch_size = 64
    config.init_embedding_from = vectors or f"{DATA}/glove/glove.6B.50d.txt"
    config.model = {
        "kind": "recurrent",
        "cell": "gru",
        "dim": 50,
        "hidden_dim": 64,
        "num_layers": 1,
        "bidirectional": True,
        "summary": "max",
        "dropout": 0.3,
        "max_length": 256,
    }
    config.tokenizer = {
        "kind": "words",
        "vocab_size": 40_000,
        "lowercase": True,
        "min_count": 3,
    }
    config.task = {"kind": "classify"}
    config.data = {
        "source": "jsonl",
        "path": f"{directory}/train.jsonl",
        "valid_path": f"{directory}/valid.jsonl",
        "test_path": f"{directory}/test.jsonl",
        "length": 256,
        "num_buckets": 6,
    }
    config.optim = base.adamw(
        learning_rate=2e-3,
        warmup_steps=100,
        schedule="linear",
        final_fraction=0.0,
        weight_decay=0.01,
    )
    config.checkpoint = {"every_steps": 300, "keep": 1, "best_metric": "accuracy"}
    config.checkpoint.best_mode = "max"
    config.eval = {"every_steps": 300, "batch_size": 64}
    config.log = {"every_steps": 50}
    return config
