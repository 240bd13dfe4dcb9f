"""The word-level LSTMs of Zaremba et al. 2014 on Penn Treebank, standard split.

    lmjax train --config=experiments/rnn/ptb_lstm.py:small:DIR --workdir=runs/ptb_lstm

"small" has 2 layers of 200 units and no dropout, "medium" 2 layers of 650 and dropout
0.5. DIR, by default data/ptb, holds train.txt, valid.txt and test.txt. The text is read
in order, and the state carries over from window to window; in evaluation from the
beginning of a split to its end, as in the authors' code for the test split.

Cost: "small" takes 80 minutes on two CPU cores shared with other programs, and 0.08
seconds a step without them.
Score: "small" has perplexity 110.0 on test and 114.1 on valid (the paper: 114.5 and
120.7). "medium" is not trained.
"""

from ml_collections import ConfigDict

NUM_TOKENS = 929_589  # of the train split, with an end for each line
BATCH_SIZE = 20

# The paper sums the loss over the steps of a window, lmjax takes the mean. So the
# paper's learning rate of 1 is multiplied by the length of a window, and its clipping
# norm of 5 is divided by it. The paper's learning rate decays geometrically after some
# epochs, this one linearly.
SIZES = {
    "small": {"dim": 200, "dropout": 0.0, "length": 20, "epochs": 8},
    "medium": {"dim": 650, "dropout": 0.5, "length": 35, "epochs": 39},
}


def get_config(argument: str = "small") -> ConfigDict:
    name, _, directory = argument.partition(":")
    directory, size = directory or "data/ptb", SIZES[name]
    length, epoch = size["length"], -(-NUM_TOKENS // (BATCH_SIZE * size["length"]))
    config = ConfigDict()
    config.num_steps = size["epochs"] * epoch
    config.batch_size = BATCH_SIZE
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
