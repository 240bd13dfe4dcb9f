"""A chat model that learns which answers people prefer: DPO (Rafailov et al. 2023).

    lmjax train --config=experiments/finetune/preferences.py:pairs.jsonl:runs/chat \
      --workdir=runs/preferred
    lmjax chat --workdir=runs/preferred

The argument is FILE:MODEL. FILE has a line {"prompt": "...", "chosen": "...",
"rejected": "..."} for each pair, texts or lists of messages. MODEL is a decoder, a
workdir or a Hugging Face directory, best one that was fine-tuned on such chats. Its
adapters are merged into it; new ones learn to prefer the chosen completions, and the
model without them is the reference. --config.task.loss=ipo, orpo, kto and simpo are
other losses; kto reads {"prompt", "completion", "label"}.

Score: not trained.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(argument: str = "data/pairs.jsonl:runs/chat") -> ConfigDict:
    path, _, model = argument.partition(":")
    config = ConfigDict()
    config.num_steps = 200
    config.batch_size = 16
    config.init_from = model or "runs/chat"
    config.model = {"kind": "decoder", "lora": {"rank": 16, "targets": ("*",)}}
    config.data = {"source": "jsonl", "path": path, "length": 512}
    config.data.on_bad_example = "skip"
    config.task = {"kind": "preference", "loss": "dpo", "beta": 0.1}
    config.optim = base.adamw(learning_rate=5e-5, warmup_steps=20)
    config.checkpoint = {"every_steps": 100, "keep": 1}
    config.eval = {"every_steps": 50}
    return config
