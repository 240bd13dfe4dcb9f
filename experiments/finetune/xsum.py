"""One sentence that says what a news article is about (Narayan et al. 2018).

    lmjax train --config=experiments/finetune/xsum.py --workdir=runs/xsum

The argument is an encoder-decoder to begin with, a workdir or a Hugging Face directory
of a T5 or a BART; without one a small Transformer is trained from scratch, of which 760
articles make no summarizer: it learns how such sentences sound. ROUGE of the article's
first sentence (`lead1_rouge1`) is measured beside. With a network the same are
`cnn_dailymail` and `huggingface:xsum` of TFDS.

Measured: test ROUGE-1, -2 and -L 0.145, 0.022 and 0.122, from scratch, and 0.173, 0.019
and 0.126 of the first sentence; 9 minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from experiments import base

DIRECTORY = "~/.cache/lmjax-data/xsum"


def get_config(beginning: str = "") -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 600
    config.batch_size = 16
    if beginning:
        config.init_from = beginning
        config.model = {"kind": "encoder_decoder", "dropout": 0.1}
        config.optim = base.adamw(learning_rate=2e-4, warmup_steps=60)
    else:
        config.model = base.transformer(
            dim=128, num_layers=2, num_heads=4, max_length=384, dropout=0.3
        )
        config.tokenizer = base.pieces(4000)
        config.optim = base.muon(learning_rate=0.01, warmup_steps=60)
    config.data = {
        "source": "jsonl",
        "path": f"{DIRECTORY}/train.jsonl",  # every 20th is held out
        "test_path": f"{DIRECTORY}/test.jsonl",
        "fields": {"source": "document", "target": "summary"},
        "length": 384,
        "target_length": 64,
    }
    config.task = {
        "kind": "seq2seq",
        "template": "summarize: {source}",
        "metrics": ("rouge", "lead1_rouge"),
        "label_smoothing": 0.1,
        "write": {"num_beams": 4, "no_repeat_ngram": 3, "early_finish": True},
    }
    config.checkpoint = {"every_steps": 150, "keep": 1, "best_metric": "rouge1"}
    config.checkpoint.best_mode = "max"
    config.eval = {"every_steps": 150}
    return config
