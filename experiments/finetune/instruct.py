"""A decoder that answers, fine-tuned on prompts and answers (Ouyang et al. 2022).

    lmjax train --config=experiments/finetune/instruct.py:answers.jsonl:runs/llama \
      --workdir=runs/instruct
    lmjax predict --workdir=runs/instruct --input=prompts.jsonl --output=out.jsonl

The argument is a file with a line {"source": "...", "target": "..."} for each example,
and after a colon the decoder to begin with, a workdir or a Hugging Face directory, to
which low-rank adapters are added; without one a small decoder is trained from scratch.
The loss counts the answers' tokens alone. Of a prompt that is too long the beginning
is cut off.

It has not been measured.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(argument: str = "data/answers.jsonl") -> ConfigDict:
    path, _, beginning = argument.partition(":")
    config = ConfigDict()
    config.num_steps = 600
    config.batch_size = 16
    if beginning:
        config.init_from = beginning
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
