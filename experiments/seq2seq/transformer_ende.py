"""English to German by a Transformer (Vaswani et al. 2017), from scratch.

    lmjax train --config=experiments/seq2seq/transformer_ende.py --workdir=runs/ende
    lmjax predict --workdir=runs/ende --step=best --input=in.jsonl --output=out.jsonl

The argument is "small:DIR", or "full:DIR" for a GPU, a larger model and 100 epochs. DIR
holds {train,valid,test}.en and .de, here 31k pairs of technical help texts. in.jsonl
has a line {"en": "..."} for each text. If you are online, TFDS has similar data as
`wmt14_translate/de-en` (source="tfds", and fields `en`, `de`).

It can be exported as a Pegasus. The figures were measured with rotary position
embeddings, and not again with the sinusoids of the paper.

Cost: "small" takes 52 minutes on two CPU cores shared with other programs: 1,600 steps
of 1.0 second, and the evaluations.
Score: "small" has BLEU 33.6 and chrF 59.0 on test. "full" is not trained.
"""

from ml_collections import ConfigDict

from experiments import base

# The small model sees each of the 31k pairs a few times. The large one would memorize
# them without strong dropout (Sennrich and Zhang 2019).
SIZES = {
    "small": {"dim": 192, "num_layers": 3, "num_heads": 4, "dropout": 0.1},
    "full": {"dim": 512, "num_layers": 5, "num_heads": 8, "dropout": 0.3},
}
SCHEDULES = {
    "small": {"num_steps": 1600, "batch_size": 96, "every_steps": 400},
    "full": {"num_steps": 12_000, "batch_size": 256, "every_steps": 1000},
}


def get_config(argument: str = "small") -> ConfigDict:
    name, _, directory = argument.partition(":")
    size, schedule = SIZES[name], SCHEDULES[name]
    directory = directory or "~/.cache/lmjax-data/ende"
    config = ConfigDict()
    config.num_steps = schedule["num_steps"]
    config.batch_size = schedule["batch_size"]
    config.model = base.transformer(**size, max_length=160)
    config.tokenizer = base.subwords(4000)
    config.data = base.parallel_text(directory, source="en", target="de", length=160)
    config.task = {"kind": "seq2seq", "label_smoothing": 0.1, "num_answers": 200}
    config.optim = base.muon(learning_rate=0.02, warmup_steps=200)
    every = {"every_steps": schedule["every_steps"]}
    config.checkpoint = {**every, "keep": 1, "best_metric": "bleu", "best_mode": "max"}
    config.eval = {**every, "batch_size": 64}
    config.log = {"every_steps": 20}
    return config
