"""A chat model: a decoder fine-tuned on conversations, with LoRA.

    lmjax train --config=experiments/finetune/chat.py:chats.jsonl:runs/llama \
      --workdir=runs/chat --config.tokenizer.chat_template=llama3
    lmjax chat --workdir=runs/chat --system='Answer in a few words.'

The argument is FILE:MODEL. FILE has a line {"messages": [{"role": "user", "content":
"..."}, {"role": "assistant", "content": "..."}, ...]} for each conversation. MODEL is a
decoder, a workdir or a Hugging Face directory; without it a small one is trained from
scratch. A chat template is named for a tokenizer that has none of its own. Only the
words of the assistant and the ends of its turns have a loss; several short
conversations share a row, and do not see each other.

Score: not trained.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(argument: str = "data/chats.jsonl") -> ConfigDict:
    path, _, model = argument.partition(":")
    config = ConfigDict()
    config.num_steps = 400
    config.batch_size = 8
    if model:
        config.init_from = model
        config.model = {"kind": "decoder", "lora": {"rank": 16, "targets": ("*",)}}
        config.optim = base.adamw(learning_rate=5e-4, warmup_steps=20)
    else:
        config.model = base.llama(
            dim=256,
            num_layers=4,
            num_heads=4,
            num_kv_heads=2,
            mlp_dim=704,
            max_length=1024,
        )
        config.model.tie_embeddings = True
        config.tokenizer = {"vocab_size": 4096, "chat_template": "plain"}
        config.optim = base.muon(learning_rate=0.02, warmup_steps=40)
    config.data = {"source": "chat", "path": path, "length": 512}
    config.data.pack_examples = True
    config.data.on_bad_example = "skip"
    config.task = {
        "kind": "prompted_lm",
        "metrics": ("rouge", "exact_match"),
        "num_answers": 50,
        "write": {"num_beams": 1},
    }
    config.checkpoint = {"every_steps": 100, "keep": 1, "best_metric": "loss"}
    config.eval = {"every_steps": 100}
    return config
