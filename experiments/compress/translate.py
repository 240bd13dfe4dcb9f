"""A translation model half as deep, taught by the whole one's translations.

    lmjax predict --workdir=runs/enzh --step=best --keep=en --format=parallel \
      --input=~/.cache/lmjax-data/enzh/train.en --output=runs/beams.jsonl
    lmjax train --config=experiments/compress/translate.py:runs/beams.jsonl \
      --workdir=runs/enzh-half
    lmjax compare runs/enzh runs/enzh-half --format=parallel \
      --input=~/.cache/lmjax-data/enzh/test.en --config.data.fields.target=zh

Sequence-level distillation (Kim and Rush 2016): the targets are what beam search finds
with experiments/seq2seq/transformer_enzh.py, one mode of its distribution, which is
easier to learn than what people wrote. The argument is the file of its predictions;
every 50th is held out for validation, and the last command compares both models with
the references. On the references themselves trains
--config=experiments/seq2seq/transformer_enzh.py --config.model.num_layers=1
--config.model.num_encoder_layers=2.

Score: not trained.
"""

from ml_collections import ConfigDict

from experiments.seq2seq import transformer_enzh


def get_config(beams: str = "runs/beams.jsonl") -> ConfigDict:
    config = transformer_enzh.get_config()
    config.model.num_encoder_layers, config.model.num_layers = 2, 1
    # Predictions have the text of their example that --keep names, and their own.
    config.data = {
        "source": "jsonl",
        "path": beams,
        "holdout_every": 50,
        "fields": {"source": "en", "target": "text"},
        "length": 160,
        "num_buckets": 6,
    }
    return config
