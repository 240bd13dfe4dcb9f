"""Named entities in news, tagged by a bidirectional LSTM (Huang et al. 2015).

    lmjax train --config=experiments/rnn/conll2003_bilstm.py --workdir=runs/bilstm

The argument is DIR:VECTORS. DIR holds {train,valid,test}.txt in the columns of CoNLL;
VECTORS is a file of GloVe vectors, glove.6B.50d.txt. If you are online, TFDS has the
data as `conll2003`: see experiments/finetune/conll2003.py.

Cost: 13 minutes on two CPU cores shared with other programs.
Score: span F1 0.863 on test (0.891 on valid).
"""

from ml_collections import ConfigDict

from experiments import base

DATA = "~/.cache/lmjax-data"


def get_config(argument: str = "") -> ConfigDict:
    directory, _, vectors = argument.partition(":")
    directory = directory or f"{DATA}/conll2003"
    vectors = vectors or f"{DATA}/glove/glove.6B.50d.txt"
    config = ConfigDict()
    config.num_steps = 4000
    config.batch_size = 32
    config.init_embedding_from = vectors
    config.model = {
        "kind": "recurrent",
        "cell": "lstm",
        "dim": 50,
        "hidden_dim": 128,
        "num_layers": 1,
        "bidirectional": True,
        "num_token_types": 5,
        "dropout": 0.5,
        "max_length": 128,
    }
    # Half of the names in the test split do not occur in the train split. So the
    # vocabulary is that of the vectors, and the vectors are frozen. They are lowercase:
    # the type of a token encodes which of its letters were capitals.
    config.tokenizer = {
        "kind": "words",
        "path": vectors,
        "vocab_size": 425_000,
        "split": "white_space",
        "lowercase": True,
    }
    config.task = {"kind": "tag", "casing": True}
    config.data = {
        "source": "conll",
        "path": f"{directory}/train.txt",
        "valid_path": f"{directory}/valid.txt",
        "test_path": f"{directory}/test.txt",
        "length": 128,
        "num_buckets": 6,
    }
    config.optim = base.adamw(
        learning_rate=3e-3,
        warmup_steps=200,
        schedule="linear",
        final_fraction=0.0,
        weight_decay=0.01,
        frozen=("embed.*",),
    )
    config.checkpoint = {"every_steps": 800, "keep": 1, "best_metric": "f1"}
    config.checkpoint.best_mode = "max"
    config.eval = {"every_steps": 800, "batch_size": 64}
    config.log = {"every_steps": 50}
    return config
