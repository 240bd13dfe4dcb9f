# %% [markdown]
# # 5. Translate with attention
#
# An *encoder* reads a sentence, a *decoder* writes its translation. Bahdanau et al.
# (2015) let the decoder look at the words of the source, one after the other: this was
# the first attention. We translate number words from English to German, which puts ones
# before tens: *forty two* is *zwei und vierzig*. Then we draw where the decoder looks.
#
# The pairs are made by rule, so that nothing needs to be downloaded.

# %%
# This cell installs lmjax where it is missing, as in Colab.
import importlib.util

if importlib.util.find_spec("lmjax") is None:
    # %pip install -q lmjax matplotlib
    pass

# %%
import json
import random

import matplotlib.pyplot as plt
import numpy as np

import lmjax

plt.rcParams.update({"figure.dpi": 72, "figure.figsize": (8, 4)})

# %% tags=["parameters"]
NUM_PAIRS = 12_000
NUM_HELD_OUT = 300
NUM_STEPS = 240
DIM = 128

# %% [markdown]
# ## The pairs

# %%
ENGLISH = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
GERMAN = (
    "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn "
    "vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ZEHNER = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()


def english(number):
    """Return an English number below a million in words."""
    if number < 20:
        return ENGLISH[number]
    if number < 100:
        rest = f" {ENGLISH[number % 10]}" if number % 10 else ""
        return TENS[number // 10 - 2] + rest
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    rest = f" {english(number % size)}" if number % size else ""
    return f"{english(number // size)} {name}{rest}"


def german(number):
    """Return a German number below a million in its parts, ones before tens."""
    if number < 20:
        return GERMAN[number]
    if number < 100:
        ones = f"{GERMAN[number % 10]} und " if number % 10 else ""
        return ones + ZEHNER[number // 10 - 2]
    size, name = (100, "hundert") if number < 1000 else (1000, "tausend")
    rest = f" {german(number % size)}" if number % size else ""
    return f"{german(number // size)} {name}{rest}"


numbers = random.Random(0).sample(range(1, 1_000_000), NUM_PAIRS + NUM_HELD_OUT)
pairs = [{"source": english(n), "target": german(n)} for n in numbers]
for name, part in (("train", pairs[NUM_HELD_OUT:]), ("valid", pairs[:NUM_HELD_OUT])):
    with open(f"{name}.jsonl", "w") as file:
        file.writelines(json.dumps(pair, ensure_ascii=False) + "\n" for pair in part)
print(pairs[0])


# %% [markdown]
# ## Two translators
#
# One is recurrent, with Bahdanau's attention; the other is a Transformer, with four
# heads of attention in each of two layers.


# %%
def translate(name, model):
    """Train a translator, and return the run."""
    config = {
        "num_steps": NUM_STEPS,
        "batch_size": 64,
        "model": {**model, "dim": DIM, "max_length": 32, "tie_embeddings": False},
        "tokenizer": {"kind": "words", "vocab_size": 200, "bos": False},
        "data": {
            "source": "jsonl",
            "path": "train.jsonl",
            "valid_path": "valid.jsonl",
            "length": 24,
            "target_length": 24,
        },
        "task": {"kind": "seq2seq", "num_answers": 100, "write": {"num_beams": 1}},
        "optim": {
            "name": "muon",
            "learning_rate": 0.02,
            "schedule": "linear",
            "warmup_steps": min(50, NUM_STEPS // 4),
            "weight_decay": 0.0,
        },
        "eval": {"every_steps": max(NUM_STEPS // 5, 1)},
        "checkpoint": {"every_steps": NUM_STEPS},
        "log": {"every_steps": 10, "tensorboard": False},
    }
    return lmjax.train(config, f"runs/{name}")


recurrent = translate(
    "bahdanau",
    {
        "kind": "recurrent_encoder_decoder",
        "cell": "gru",
        "attention": "bahdanau",
        "num_layers": 1,
        "hidden_dim": DIM,
    },
)
transformer = translate(
    "attention",
    {"kind": "encoder_decoder", "num_layers": 2, "num_heads": 4, "position": "rope"},
)
runs = {"recurrent": recurrent, "Transformer": transformer}

# %%
for name, run in runs.items():
    lines = [line for line in run.history if line["split"] == "valid"]
    steps = [line["step"] for line in lines]
    plt.semilogy(steps, [line["loss"] for line in lines], "o-", label=name)
plt.xlabel("step")
plt.ylabel("loss of a token, held out, nats")
plt.legend()
plt.show()

# %%
held_out = pairs[:NUM_HELD_OUT]
models = {name: run.load() for name, run in runs.items()}
for name, lm in models.items():
    answers = lm.predict([{"source": pair["source"]} for pair in held_out])
    right = [a["text"] == pair["target"] for a, pair in zip(answers, held_out)]
    print(f"{name}: {np.mean(right):.1%} of {len(right)} numbers all right")
    print("  ", held_out[0]["source"], "->", answers[0]["text"])

# %% [markdown]
# ## Where it looks
#
# A row is a German word that is written, a column an English word. Where the order is
# the same, the weights lie on the diagonal; at ones and tens they cross over.


# %%
def draw(lm, source, axis, title, **options):
    """Draw the weights of attention from each word of the target to the source."""
    found = lm.explain(source, "attention", **options)
    axis.imshow(found.scores, cmap="Blues", vmin=0, vmax=1)
    words = [token.piece for token in found.tokens]
    axis.set_xticks(range(len(words)), words, rotation=60)
    axis.set_yticks(range(len(found.rows)), found.rows)
    axis.set_title(title)


source = english(742_385)
figure, axes = plt.subplots(1, 2, figsize=(13, 6))
for axis, (name, lm) in zip(axes, models.items()):
    draw(lm, source, axis, name)
plt.tight_layout()
plt.show()

# %% [markdown]
# The heads of the Transformer share the work. These are the four of its last layer.

# %%
figure, axes = plt.subplots(1, 4, figsize=(18, 5))
for head, axis in enumerate(axes):
    draw(models["Transformer"], source, axis, f"head {head + 1}", layer=-1, head=head)
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Is attention an explanation?
#
# Weights say where a model looks, not what that changes. Integrated gradients measure
# how the words of the source change the log-probability of the translation.

# %%
models["recurrent"].explain(source)
