"""English to German by a GRU with attention (Bahdanau et al. 2015), from scratch.

    lmjax train --config=experiments/rnn/gru_ende.py --workdir=runs/gru_ende

The argument, "small:DIR" or "full:DIR" (for a GPU), and the data are those of
experiments/seq2seq/transformer_ende.py. If you are online, TFDS has similar data as
`wmt14_translate/de-en`.

Cost: "small" takes 25 minutes on two CPU cores shared with other programs.
Score: "small" has BLEU 20.7 and chrF 45.8 on test. "full" is not trained.
"""

from ml_collections import ConfigDict

from experiments import base

SIZES = {
    "small": {"dim": 256, "num_layers": 1, "dropout": 0.2},
    "full": {"dim": 512, "num_layers": 2, "dropout": 0.4},
}
SCHEDULES = {
    "small": {"num_steps": 1000, "batch_size": 96, "every_steps": 500},
    "full": {"num_steps": 8000, "batch_size": 128, "every_steps": 1000},
}


def get_config(argument: str = "small") -> ConfigDict:
    name, _, directory = argument.partition(":")
    size, schedule = SIZES[name], SCHEDULES[name]
    directory = directory or "~/.cache/lmjax-data/ende"
    config = ConfigDict()
    config.num_steps = schedule["num_steps"]
    config.batch_size = schedule["batch_size"]
    config.model = {
        "kind": "recurrent_encoder_decoder",
        "cell": "gru",
        "attention": "bahdanau",
        "max_length": 160,
        "tie_embeddings": True,
        **size,
    }
    config.tokenizer = base.subwords(4000)
    config.data = base.parallel_text(directory, source="en", target="de", length=160)
    config.task = {"kind": "seq2seq", "label_smoothing": 0.1, "num_answers": 200}
    config.optim = base.adamw(
        learning_rate=3e-3, warmup_steps=200, weight_decay=0.01, final_fraction=0.02
    )
    every = {"every_steps": schedule["every_steps"]}
    config.checkpoint = {**every, "keep": 1, "best_metric": "bleu", "best_mode": "max"}
    config.eval = {**every, "batch_size": 64}
    config.log = {"every_steps": 20}
    return config
