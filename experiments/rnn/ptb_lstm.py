"""The LSTMs of Zaremba et al. 2014 on Penn Treebank, word level, Mikolov's split.

    lmjax train --config=experiments/rnn/ptb_lstm.py:small:DIR --workdir=runs/ptb_lstm

"small" is 2 x 200 without dropout, "medium" 2 x 650 with a dropout of a half; DIR, by
default data/ptb, holds train.txt, valid.txt and test.txt. The text is read in order,
and the state goes on from window to window; in evaluation from the beginning of a split
to its end, as the authors' code has it for the test split.

Measured: "small" has a test perplexity of 110.0 (valid 114.1; the paper 114.5 and
120.7) after 80 minutes on two CPU cores that others used too; a step takes 0.08
seconds where it is alone. "medium" has not been trained.
"""

from ml_collections import ConfigDict

NUM_TOKENS = 929_589  # of the train split, with an end for each line
LANES = 20

# The paper's loss is a sum over the steps of a window: here, where it is a mean, the
# learning rate is their number times its 1, and the norm to clip at its 5 divided by
# it. Its rate falls geometrically after some epochs, this one linearly.
SIZES = {
    "small": {"dim": 200, "dropout": 0.0, "length": 20, "epochs": 8},
    "medium": {"dim": 650, "dropout": 0.5, "length": 35, "epochs": 39},
}


def get_config(argument: str = "small") -> ConfigDict:
    name, _, directory = argument.partition(":")
    directory, size = directory or "data/ptb", SIZES[name]
    length, epoch = size["length"], -(-NUM_TOKENS // (LANES * size["length"]))
    config = ConfigDict()
    config.num_steps = size["epochs"] * epoch
    config.batch_size = LANES
    config.model = {
        "kind": "recurrent",
        "cell": "lstm",
        "dim": size["dim"],
        "num_layers": 2,
        "max_length": length,
        "dropout": size["dropout"],
        "tie_embeddings": False,
        "head_bias": True,
    }
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
        "order": "contiguous",
        "length": length,
    }
    config.optim = {
        "name": "sgd",
        "b1": 0.0,
        "learning_rate": float(length),
        "schedule": "wsd",
        "decay_fraction": 0.7,
        "final_fraction": 0.01,
        "weight_decay": 0.0,
        "clip_norm": 5 / length,
    }
    config.checkpoint = {"every_steps": epoch, "keep": 1, "best_metric": "loss"}
    config.eval = {"every_steps": epoch}
    config.log = {"every_steps": 50}
    return config
