"""Pruned, then tuned: what pruning took from a classifier of film reviews comes back.

    lmjax compress --workdir=runs/reviews --to=runs/reviews-half --prune=magnitude:0.5
    lmjax train --config=experiments/compress/reviews_pruned.py --workdir=runs/tuned

runs/reviews is a run of experiments/finetune/reviews.py. The argument is the pruned
workdir; docs/compress.md has other ways to prune. What is 0 stays 0.

To prune while training instead, a little every 10 steps, begin with the whole model:

    lmjax train --config=experiments/compress/reviews_pruned.py:runs/reviews \
        --workdir=runs/gradual-half --config.optim.prune.method=magnitude

Cost and score: docs/compress.md.
"""

from ml_collections import ConfigDict

from experiments.finetune import reviews


def get_config(workdir: str = "runs/reviews-half") -> ConfigDict:
    config = reviews.get_config()
    config.init_from = workdir
    config.num_steps = 200
    config.optim.learning_rate = 5e-5
    config.optim.warmup_steps = 20
    config.checkpoint.every_steps = config.eval.every_steps = 100
    return config
