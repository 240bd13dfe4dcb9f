"""Answers in a text: an encoder fine-tuned on SQuAD (Rajpurkar et al. 2016).

    lmjax import --from=sentence-transformers/all-MiniLM-L6-v2 --workdir=runs/minilm
    lmjax train --config=experiments/finetune/squad.py --workdir=runs/squad

The argument is the directory of train.json and dev.json in the format of SQuAD 1.1.
--config.init_from can be any encoder, a workdir or a Hugging Face directory. If you are
online, TFDS has the data as `squad`. Both held-out splits are dev.json; 15 of its
10,565 questions are skipped, because their answer is not at the place given for it.
During the run 400 questions are answered, at its end all.

Cost: 38 minutes on two CPU cores for five sixths of an epoch; a quarter of the time is
spent on the 10,550 answers.
Score on all of dev.json: F1 0.665, exact match 0.529. A baseline without a model
(tools/squad_baselines.py) has F1 0.187 and exact match 0.002.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(directory: str = "~/.cache/lmjax-data/squad") -> ConfigDict:
    config = ConfigDict()
    config.init_from = "runs/minilm"
    config.num_steps = 520
    config.batch_size = 16
    config.model = {"kind": "encoder", "mlm_head": False, "pooler": False}
    config.model.dropout = config.model.attention_dropout = 0.1
    config.data = {
        "source": "squad",
        "path": f"{directory}/train.json",
        "valid_path": f"{directory}/dev.json",
        "test_path": f"{directory}/dev.json",
        "on_bad_example": "skip",
        "length": 256,
    }
    config.task = {"kind": "span_qa", "max_question_tokens": 32, "num_answers": 400}
    config.optim = base.adamw(
        learning_rate=2e-4,
        warmup_steps=50,
        schedule="linear",
        final_fraction=0.0,
        weight_decay=0.01,
    )
    config.checkpoint = {"every_steps": 130, "keep": 1}
    # The loss is that of a part of dev.json; all of its answers are scored.
    config.eval = {"every_steps": 260, "batch_size": 32, "num_batches": 20}
    return config
