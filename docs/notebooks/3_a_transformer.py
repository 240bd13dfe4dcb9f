# %% [markdown]
# # 3. A Transformer, from attention to sampling
#
# A Transformer has no state that it carries along: every token looks back at all
# tokens before it and takes what it needs (*attention*, Vaswani et al. 2017). We
# compute attention by hand, train a small model of Python's source code, draw where its
# heads look, and choose its words in several ways.

# %%
# This cell installs lmjax where it is missing, as in Colab.
import importlib.util

if importlib.util.find_spec("lmjax") is None:
    # %pip install -q lmjax matplotlib
    pass

# %%
import matplotlib.pyplot as plt
import numpy as np

import lmjax

plt.rcParams.update({"figure.dpi": 72, "figure.figsize": (8, 4)})

# %% tags=["parameters"]
OWN_TEXT = ""  # such as "src/**/*.py"; by default Python's own library
NUM_STEPS = 500
DIM = 128
NUM_LAYERS = 3
VOCABULARY = 2048

# %% [markdown]
# ## Attention by hand
#
# Each token has a *query* (what it looks for), a *key* (what it offers) and a *value*
# (what it gives). The products of a query with all keys, divided by the root of their
# size, become weights by a softmax; the result is the weighted mean of the values. A
# token must not see those after it: their scores are set to minus infinity.


# %%
def softmax(scores):
    """Return positive weights that add up to 1 along the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def attend(queries, keys, values):
    """Return the weighted means of the values, and the weights."""
    scores = queries @ keys.T / np.sqrt(keys.shape[1])
    future = np.triu(np.ones_like(scores), k=1) > 0
    weights = softmax(np.where(future, -np.inf, scores))
    return weights @ values, weights


rng = np.random.default_rng(0)
queries, keys, values = rng.normal(size=(3, 6, 8))
mixed, weights = attend(queries, keys, values)
plt.figure(figsize=(4, 3.5))
plt.imshow(weights, cmap="Blues")
plt.xlabel("looks at")
plt.ylabel("token")
plt.title("random queries and keys")
plt.colorbar()
plt.show()

# %% [markdown]
# ## A small model of Python
#
# The vocabulary is of pieces of words: *byte-pair encoding* merges the pairs that come
# most often. Blocks of attention and a feed-forward layer are added to what comes in,
# with a norm before each.

# %%
config = {
    "num_steps": NUM_STEPS,
    "batch_size": 8,
    "model": {
        "kind": "decoder",
        "dim": DIM,
        "num_layers": NUM_LAYERS,
        "num_heads": 4,
        "mlp_dim": 3 * DIM,
        "max_length": 256,
        "tie_embeddings": True,
    },
    "tokenizer": {
        "kind": "sentencepiece",
        "algorithm": "bpe",
        "vocab_size": VOCABULARY,
    },
    "data": {"source": "text", "path": OWN_TEXT, "length": 128}
    if OWN_TEXT
    else {"source": "python_stdlib", "length": 128},
    "optim": {
        "name": "muon",
        "learning_rate": 0.01,
        "schedule": "linear",
        "warmup_steps": min(100, NUM_STEPS // 4),
    },
    "eval": {"every_steps": max(NUM_STEPS // 3, 1), "num_batches": 20},
    "checkpoint": {"every_steps": NUM_STEPS},
    "log": {"every_steps": 10, "tensorboard": False},
}
result = lmjax.train(config, "runs/transformer")
lm = result.load()
lm

# %%
for split, style in (("train", "-"), ("valid", "o")):
    lines = [line for line in result.history if line["split"] == split]
    losses = [line["loss"] for line in lines]
    plt.plot([line["step"] for line in lines], losses, style, label=split)
plt.axhline(np.log(VOCABULARY), linestyle=":", color="gray", label="guessing")
plt.xlabel("step")
plt.ylabel("loss of a token, nats")
plt.legend()
plt.show()

# %% [markdown]
# ## Where the heads look
#
# A row is a token, a column one that it looks at. Some heads look at the token before,
# some at the first one (where nothing is to be found), some at the same word earlier.

# %%
snippet = "for name in names:\n    if name in seen:\n        return name\n"
ids = [lm.tokenizer.bos_id, *lm.tokenizer.encode(snippet)]
pieces = [lm.tokenizer.id_to_piece(int(i)) for i in ids]
weights = np.asarray(lm.attention([ids]).own)[:, 0]  # layer, head, token, token
layers, heads = weights.shape[:2]
figure, axes = plt.subplots(
    layers, heads, figsize=(3 * heads, 3 * layers), squeeze=False
)
for layer in range(layers):
    for head in range(heads):
        axis = axes[layer, head]
        axis.imshow(weights[layer, head], cmap="Blues", vmin=0, vmax=1)
        axis.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks(range(len(pieces)), pieces if head == 0 else [], fontsize=6)
plt.tight_layout()
plt.show()

# %% [markdown]
# ## What comes next
#
# The model gives a probability to every token. The temperature sharpens or flattens
# them; *top-k* keeps the k likeliest, *top-p* the fewest that have the probability p
# together.

# %%
prompt = "def read(self, "
ids = [lm.tokenizer.bos_id, *lm.tokenizer.encode(prompt)]
logits = np.asarray(lm.logits([ids]))[0, -1]
best = np.argsort(-logits)[:12]
names = [lm.tokenizer.id_to_piece(int(i)) for i in best]
figure, axes = plt.subplots(1, 3, figsize=(12, 3), sharey=True)
for axis, temperature in zip(axes, (0.5, 1.0, 1.5)):
    chances = softmax(logits / temperature)
    kept = np.cumsum(np.sort(chances)[::-1]) - np.sort(chances)[::-1] < 0.8
    colours = ["C0" if i < kept.sum() else "lightgray" for i in range(len(best))]
    axis.bar(range(len(best)), chances[best], color=colours)
    axis.set_xticks(range(len(best)), names, rotation=60)
    axis.set_title(f"temperature {temperature}; top-p 0.8 keeps {kept.sum()}")
plt.show()

# %%
ways = {
    "greedy": {"temperature": 0.0},
    "temperature 0.8, top-p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "temperature 1.3": {"temperature": 1.3},
    "beam search": {"num_beams": 4},
}
for name, options in ways.items():
    [more] = lm.generate([prompt], max_tokens=40, seed=0, **options)
    print(f"--- {name}\n{prompt}{more}\n")

# %% [markdown]
# ## Layer by layer
#
# Every layer adds to the same vector. If we read it after each layer as if it were the
# last one (*logit lens*, nostalgebraist 2020), we see the guess take shape: the darker,
# the likelier is the token that really comes next.

# %%
lm.explain("for name in", "logit_lens")

# %% [markdown]
# ## Why this token?
#
# Integrated gradients share out what the text adds to the log-probability of a
# continuation among its tokens: green ones speak for it, red ones against it.

# %%
lm.explain("import os\nimport sys\n\npath = os", target=".path")
