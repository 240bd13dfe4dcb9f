"""x."""

from ml_collections import ConfigDict

from experiments import base


def get_config(directory: str = "~/.cache/lmjax-data/squad") -> ConfigDict:
    config = ConfigDict()
    config.init_from = "runs/minilm"
    config.num_steps = 500
    config.batch_size = 16
    config.model = {"kind": "encoder", "mlm_head": False, "pooler": False}
    config.model.dropout = config.model.attention_dropout = 0.1
    config.data = {
        "source": "squad",
        "path": f"{directory}/train.json",
        "test_path": f"{directory}/dev.json",
        "holdout_every": 40,
        "on_bad_example": "skip",
        "length": 256,
        "num_buckets": 6,
    }
    config.task = {"kind": "span_qa", "max_question_tokens": 32}
    config.optim = base.adamw(
        learning_rate=2e-4,
        warmup_steps=50,
        schedule="linear",
        final_fraction=0.0,
        weight_decay=0.01,
    )
    config.checkpoint = {"every_steps": 250, "keep": 1}
    config.eval = {"every_steps": 250, "batch_size": 32}
    return config
