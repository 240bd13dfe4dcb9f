"""Skip-gram word vectors (Mikolov et al. 2013) of film reviews, or of any text.

    lmjax train --config=experiments/word_vectors/reviews.py:DIR --workdir=runs/words

`lmjax export --to=words.vec` writes them in word2vec's format. DIR, by default
data/reviews, holds train.jsonl and valid.jsonl with a "text" in each line. The vectors
are compared with people's similarities by
--config.task.similarity_files='("wordsim353.tsv",)'.

Cost: 8 minutes on two busy CPU cores (5 of CPU time) for 30 MB of reviews, three
epochs; gensim 4.4 took 4 minutes (2 of CPU time) for the same.
Score: loss 2.512 a pair on valid; Spearman's correlation with WordSim-353 is 0.392 over
the pairs whose words are known (gensim with words from a regular expression, three
epochs: 0.216 over the 306 pairs that it knows).
"""

from ml_collections import ConfigDict


def get_config(directory: str = "data/reviews") -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 600  # three epochs
    config.batch_size = 256
    config.model = {"kind": "word_vectors", "dim": 100}
    config.tokenizer = {
        "kind": "words",
        "vocab_size": 50_000,
        "min_count": 5,
        "lowercase": True,
        "bos": False,
    }
    config.data = {
        "source": "jsonl",
        "path": f"{directory or 'data/reviews'}/train.jsonl",
        "valid_path": f"{directory or 'data/reviews'}/valid.jsonl",
        "length": 64,
    }
    config.task = {"kind": "word_vectors"}
    # No decay, no clipping: a step moves only the words that it has. The gradient is
    # the mean over about 85,000 pairs of words: epsilon is 1 for their sum, so that a
    # word that was seldom met moves by learning_rate times its gradient.
    config.optim = {
        "name": "adagrad",
        "learning_rate": 0.4,
        "schedule": "linear",
        "final_fraction": 0.01,
        "epsilon": 1.2e-5,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
    }
    config.eval = {"every_steps": 200}
    config.log = {"every_steps": 50}
    config.checkpoint = {"every_steps": 300}
    config.sample = {
        "every_steps": 300,
        "prompts": ("good", "terrible", "actor", "comedy", "war", "music", "director"),
    }
    return config
