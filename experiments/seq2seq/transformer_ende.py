"""A Transformer that translates English to German (Vaswani et al. 2017), from scratch.

python ../shared/data/get.py ende
lmjax train --config=experiments/seq2seq/transformer_ende.py --workdir=runs/ende
lmjax predict --workdir=runs/ende --input=test.jsonl --output=german.jsonl
"""

from ml_collections import ConfigDict

from experiments import base

SIZES = {
    "small": {"dim": 192, "num_layers": 3, "num_heads": 4, "dropout": 0.1},
    "full": {"dim": 512, "num_layers": 6, "num_heads": 8, "dropout": 0.3},
}


def get_config(argument: str = "small") -> ConfigDict:
    name, _, directory = argument.partition(":")
    directory = directory or "~/.cache/lmjax-data/ende"
    config = ConfigDict()
    config.num_steps = 2400
    config.batch_size = 96
    config.model = base.transformer(**SIZES[name], max_length=160)
    config.tokenizer = {
        "algorithm": "bpe",
        "vocab_size": 4000,
        "bos": False,
        "lossless": False,
        "num_training_bytes": 8_000_000,
    }
    config.data = {
        "source": "parallel",
        "path": f"{directory}/train",
        "valid_path": f"{directory}/valid",
        "test_path": f"{directory}/test",
        "fields": {"source": "en", "target": "de"},
        "length": 160,
        "target_length": 160,
        "num_buckets": 6,
    }
    config.task = {"kind": "seq2seq", "label_smoothing": 0.1, "num_answers": 200}
    config.optim = base.muon(learning_rate=0.02, warmup_steps=200)
    config.checkpoint = {"every_steps": 400, "keep": 1, "best_metric": "bleu"}
    config.checkpoint.best_mode = "max"
    config.eval = {"every_steps": 400, "batch_size": 64}
    config.log = {"every_steps": 20}
    return config
