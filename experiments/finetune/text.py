"""A language model trained further, on text of your own.

    lmjax import --from=HuggingFaceTB/SmolLM2-135M --workdir=runs/smollm2
    lmjax train --config=experiments/finetune/text.py:'books/**/*.txt' \
      --workdir=runs/tuned

The argument is a glob of text files; every 20th file is held out. The model and its
tokenizer are those of --config.init_from, runs/smollm2 by default: any decoder, a
workdir or a Hugging Face directory. --config.model.lora.rank=8 trains adapters only.

Score: not trained.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(path: str = "books/**/*.txt") -> ConfigDict:
    config = ConfigDict()
    config.init_from = "runs/smollm2"
    config.num_steps = 500
    config.batch_size = 8
    config.model = {"kind": "decoder"}
    config.data = {"source": "text", "path": path, "length": 256}
    config.optim = base.adamw(learning_rate=1e-4, warmup_steps=50)
    config.checkpoint = {"every_steps": 250, "keep": 1}
    config.eval = {"every_steps": 250, "num_batches": 50}
    config.log = {"every_steps": 10}
    return config
