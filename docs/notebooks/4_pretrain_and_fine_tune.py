# %% [markdown]
# # 4. Pretrain, then fine-tune: BERT
#
# Labels are few, text is plenty. BERT (Devlin et al. 2019) first learns from text
# alone, by guessing words that are masked, and then from few labelled examples. We do
# both, and compare with a model that has seen the labelled examples alone.
#
# The task: from which package does a piece of documentation come? Names of packages
# are taken out of the texts.

# %%
# This cell installs lmjax where it is missing, as in Colab.
import importlib.util

if importlib.util.find_spec("lmjax") is None:
    # %pip install -q lmjax matplotlib
    pass

# %%
import json
import random
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import lmjax

plt.rcParams.update({"figure.dpi": 72, "figure.figsize": (8, 4)})

# %% tags=["parameters"]
PACKAGES = (
    "numpy",
    "jax",
    "matplotlib",
    "optax",
    "email",
    "tkinter",
    "asyncio",
    "logging",
)
NUM_LABELLED = 400  # examples to fine-tune on
NUM_HELD_OUT = 400  # examples to judge by
PRETRAIN_STEPS = 600
FINE_TUNE_STEPS = 120
DIM = 128
NUM_LAYERS = 3
VOCABULARY = 2000


# %%
def documentation(package):
    """Yield the texts between triple quotes in the files of a package."""
    folder = Path(importlib.util.find_spec(package).origin).parent
    for file in sorted(folder.rglob("*.py")):
        source = file.read_text(encoding="utf-8", errors="ignore")
        for text in re.findall(r'"""(.+?)"""', source, re.DOTALL):
            yield re.sub("|".join(PACKAGES), "it", " ".join(text.split()), flags=re.I)


examples = {}
for package in PACKAGES:
    for text in documentation(package):
        if len(text) > 60:
            examples[text] = {"text": text, "label": package}
examples = list(examples.values())
random.Random(0).shuffle(examples)


def balanced(examples, count):
    """Return as many examples of each label, as far as there are."""
    chosen = []
    for package in PACKAGES:
        own = [e for e in examples if e["label"] == package]
        chosen += own[: count // len(PACKAGES)]
    return chosen


def write(name, examples):
    """Write examples as JSON lines."""
    with open(name, "w") as file:
        file.writelines(json.dumps(example) + "\n" for example in examples)


half = len(examples) // 2
labelled = balanced(examples[:half], NUM_LABELLED)
held_out = balanced(examples[half:], NUM_HELD_OUT)
write("train.jsonl", labelled)
write("valid.jsonl", held_out)
write("text.jsonl", examples[:half])  # to pretrain on: nothing that is held out
print(f"{half:,} texts, {len(labelled)} of them with labels; {len(held_out)} held out")
print(labelled[0])

# %% [markdown]
# ## Pretraining
#
# Of the tokens 15% are to be guessed: most of them are replaced by `[MASK]`. The
# context on both sides helps, so that attention may look both ways.

# %%
model = {
    "kind": "encoder",
    "dim": DIM,
    "num_layers": NUM_LAYERS,
    "num_heads": 4,
    "max_length": 64,
    "num_token_types": 2,
    "pooler": True,
}
optim = {
    "name": "muon",
    "learning_rate": 0.01,
    "schedule": "linear",
    "warmup_steps": min(100, PRETRAIN_STEPS // 4),
}
pretraining = {
    "num_steps": PRETRAIN_STEPS,
    "batch_size": 32,
    "model": model,
    "tokenizer": {"algorithm": "bpe", "vocab_size": VOCABULARY, "mask": True},
    "data": {"source": "jsonl", "path": "text.jsonl", "length": 64},
    "task": {"kind": "masked_lm"},
    "optim": optim,
    "eval": {"every_steps": max(PRETRAIN_STEPS // 4, 1), "num_batches": 10},
    "checkpoint": {"every_steps": PRETRAIN_STEPS},
    "log": {"every_steps": 10, "tensorboard": False},
}
pretrained = lmjax.train(pretraining, "runs/pretrained")
bert = pretrained.load()
bert

# %%
for split, style in (("train", "-"), ("valid", "o")):
    lines = [line for line in pretrained.history if line["split"] == split]
    losses = [line["loss"] for line in lines]
    plt.plot([line["step"] for line in lines], losses, style, label=split)
plt.xlabel("step")
plt.ylabel("loss of a masked token, nats")
plt.legend()
plt.show()

# %% [markdown]
# What does it put in the place of a mask?


# %%
def guess(before, after):
    """Print the likeliest tokens between two texts."""
    encode = bert.tokenizer.encode
    ids = [*encode(before), bert.tokenizer.mask_id, *encode(after)]
    logits = np.asarray(bert.logits([ids]))[0, len(encode(before))]
    best = [bert.tokenizer.id_to_piece(int(i)) for i in np.argsort(-logits)[:6]]
    print(f"{before} [MASK]{after}\n   {'  '.join(best)}")


guess("Return the", " of the array.")
guess("If the value", " not valid, an error is raised.")
guess("The number of", " in the list.")

# %% [markdown]
# ## Fine-tuning
#
# The same network, with a new layer for the labels, goes on from the pretrained
# parameters (`init_from`). The other one begins with random parameters.


# %%
def fine_tune(name, **more):
    """Train a classifier, and return the run."""
    config = {
        "num_steps": FINE_TUNE_STEPS,
        "batch_size": 32,
        "data": {
            "source": "jsonl",
            "path": "train.jsonl",
            "valid_path": "valid.jsonl",
            "length": 64,
        },
        "task": {"kind": "classify"},
        "optim": {"learning_rate": 1e-3, "warmup_steps": FINE_TUNE_STEPS // 10},
        "eval": {"every_steps": max(FINE_TUNE_STEPS // 6, 1)},
        "checkpoint": {
            "every_steps": max(FINE_TUNE_STEPS // 6, 1),
            "best_metric": "accuracy",
            "best_mode": "max",
        },
        "log": {"every_steps": 5, "tensorboard": False},
        **more,
    }
    return lmjax.train(config, f"runs/{name}")


tuned = fine_tune("tuned", init_from="runs/pretrained")
tokenizer = pretraining["tokenizer"]
scratch = fine_tune("scratch", model=model, tokenizer=tokenizer)

# %%
for name, run in (("pretrained", tuned), ("from scratch", scratch)):
    lines = [line for line in run.history if line["split"] == "valid"]
    steps = [line["step"] for line in lines]
    plt.plot(steps, [line["accuracy"] for line in lines], "o-", label=name)
plt.axhline(1 / len(PACKAGES), linestyle=":", color="gray", label="guessing")
plt.xlabel("step of fine-tuning")
plt.ylabel("accuracy, held out")
plt.legend()
plt.show()
for name, run in (("pretrained", tuned), ("from scratch", scratch)):
    scores = [line["accuracy"] for line in run.history if line["split"] == "valid"]
    print(f"{name}: {max(scores):.3f}")

# %% [markdown]
# ## What it mistakes for what

# %%
lm = tuned.load("best")
some = held_out[:: max(len(held_out) // 400, 1)]
answers = lm.predict([{"text": example["text"]} for example in some])
index = {package: i for i, package in enumerate(PACKAGES)}
table = np.zeros((len(PACKAGES), len(PACKAGES)))
for example, answer in zip(some, answers):
    table[index[example["label"]], index[answer["label"]]] += 1
plt.figure(figsize=(5, 5))
plt.imshow(table / np.maximum(table.sum(axis=1, keepdims=True), 1), cmap="Blues")
plt.xticks(range(len(PACKAGES)), PACKAGES, rotation=60)
plt.yticks(range(len(PACKAGES)), PACKAGES)
plt.xlabel("predicted")
plt.ylabel("true")
plt.show()

# %% [markdown]
# ## Why?
#
# Integrated gradients share out the log-probability of the label among the tokens
# (green: for it, red: against it). The shares add up to what the text changes.

# %%
example = max(held_out, key=lambda e: "mail" in e["text"] and len(e["text"]) < 200)
explanation = lm.explain(example["text"])
print(f"true: {example['label']}; off by {explanation.completeness_error:.2%}")
explanation

# %% [markdown]
# And by another method, which leaves out one token at a time:

# %%
lm.explain(example["text"], "leave_one_out")
