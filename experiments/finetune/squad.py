"""An encoder fine-tuned to find answers in texts (Rajpurkar et al. 2016).

    lmjax import --from=sentence-transformers/all-MiniLM-L6-v2 --workdir=runs/minilm
    lmjax train --config=experiments/finetune/squad.py --workdir=runs/squad

The argument is the directory of train.json and dev.json, as SQuAD 1.1 has them;
--config.init_from is any encoder, a workdir or a Hugging Face directory. With a network
the same is `squad` of TFDS. Both held-out splits are dev.json, of which 15 questions
(of 10,565) are left out: they have an answer which is not where it should be. As the
run goes, 400 of them are answered, at its end all.

Measured, on all of dev.json: F1 0.665, exact match 0.529, after five sixths of an epoch
and 38 minutes on two CPU cores, a quarter of them spent on the 10,550 answers. A
baseline without a model (tools/squad_baselines.py) has F1 0.187 and exact match 0.002.
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
    # The loss of dev.json is that of a part; its answers are judged all.
    config.eval = {"every_steps": 260, "batch_size": 32, "num_batches": 20}
    return config
