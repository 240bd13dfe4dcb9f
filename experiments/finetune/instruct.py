"""Instruction tuning: a decoder fine-tuned on prompts and answers (Ouyang et al. 2022).

    lmjax train --config=experiments/finetune/instruct.py:answers.jsonl:runs/llama \
      --workdir=runs/instruct
    lmjax predict --workdir=runs/instruct --input=prompts.jsonl --output=out.jsonl

The argument is FILE:MODEL. FILE has a line {"source": "...", "target": "..."} for each
example. MODEL is a decoder, a workdir or a Hugging Face directory, to which LoRA
adapters are added; without it a small decoder is trained from scratch. Only the tokens
of the answers have a loss. A prompt that is too long loses its model.

Score: not trained.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(argument: str = "data/answers.jsonl") -> ConfigDict:
    path, _, model = argument.partition(":")
    config = ConfigDict()
    config.num_steps = 600
    config.batch_size = 16
    if model:
        config.init_from = model
        config.model = {"kind": "decoder", "lora": {"rank": 16, "targets": ("*",)}}
        config.optim = base.adamw(learning_rate=2e-4, warmup_steps=30)
    else:
        config.model = base.llama(
            dim=256,
            num_layers=4,
            num_heads=4,
            num_kv_heads=2,
            mlp_dim=704,
            max_length=512,
        )
        config.model.tie_embeddings = True
        config.tokenizer = {"vocab_size": 4096}
        config.optim = base.muon(learning_rate=0.02, warmup_steps=60)
    config.data = {"source": "jsonl", "path": path, "length": 512}
    config.data.target_length = 128
    config.task = {
        "kind": "prompted_lm",
        "template": "### Instruction:\n{source}\n\n### Response:\n",
        "metrics": ("rouge", "exact_match"),
        "num_answers": 100,
        "write": {"num_beams": 1},
    }
    config.checkpoint = {"every_steps": 200, "keep": 1, "best_metric": "loss"}
    config.eval = {"every_steps": 200}
    return config
