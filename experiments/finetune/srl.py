"""Semantic roles (who does what to whom): an encoder fine-tuned (Shi and Lin 2019).

    lmjax import --from=sentence-transformers/all-MiniLM-L6-v2 --workdir=runs/minilm
    lmjax train --config=experiments/finetune/srl.py:DIR --workdir=runs/srl

DIR holds {train,valid,test}.props in the columns of CoNLL-2005: the word, the predicate
or "-", then a column of bracketed arguments for each predicate of the sentence (`paste`
joins the words and the props files of the shared task). For CoNLL-2012:

    --config.data.columns="('document','part','number','tokens','pos','parse','lemma',
      'predicate','sense','speaker','entity','tags','coreference')"

in which `predicate` is the frameset. Each predicate is an example, and its tokens have
token type 1. For a model without token types: --config.task.mark_predicate=separators.

The score counts each span by itself (an argument and its C- continuation are two), and
leaves out V, the predicate.

Score: not trained, because neither corpus is free.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(directory: str = "srl") -> ConfigDict:
    config = ConfigDict()
    config.init_from = "runs/minilm"
    config.num_steps = 8000
    config.batch_size = 32
    config.model = {"kind": "encoder", "mlm_head": False, "pooler": False}
    config.model.dropout = config.model.attention_dropout = 0.1
    config.data = {
        "source": "props",
        "path": f"{directory}/train.props",
        "valid_path": f"{directory}/valid.props",
        "test_path": f"{directory}/test.props",
        "columns": ("tokens", "predicate", "tags"),
        "fields": {"predicate": "predicate"},
        "length": 128,
        "num_buckets": 6,
    }
    config.task = {"kind": "tag", "unscored": ("V",)}
    config.optim = base.adamw(
        learning_rate=2e-4,
        warmup_steps=800,
        schedule="linear",
        final_fraction=0.0,
        weight_decay=0.01,
    )
    config.checkpoint = {"every_steps": 1000, "keep": 1, "best_metric": "f1"}
    config.checkpoint.best_mode = "max"
    config.eval = {"every_steps": 1000, "batch_size": 64}
    return config
