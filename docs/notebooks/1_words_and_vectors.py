# %% [markdown]
# # 1. Words and vectors
#
# A model needs numbers, and a word is none. We count words, see why the number of a
# word in a list says nothing about it, and learn vectors that do: words in similar
# company get similar vectors (*skip-gram*, Mikolov et al. 2013).
#
# The text is the documentation inside Python packages that you have already. Nothing
# is downloaded; with text files of your own, set `OWN_TEXT`.

# %%
# This cell installs lmjax where it is missing, as in Colab.
import importlib.util

if importlib.util.find_spec("lmjax") is None:
    # %pip install -q lmjax matplotlib
    pass

# %%
import collections
import glob
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import lmjax

plt.rcParams.update({"figure.dpi": 72, "figure.figsize": (8, 4)})

# %% tags=["parameters"]
OWN_TEXT = ""  # such as "books/*.txt"
PACKAGES = (
    "numpy",
    "jax",
    "matplotlib",
    "optax",
    "flax",
    "email",
    "tkinter",
    "asyncio",
)
MIN_COUNT = 10  # rarer words are left out
NUM_STEPS = 240
DIM = 64

# %% [markdown]
# ## The text
#
# What stands between triple quotes in the source files of a package is English prose
# for the most part.


# %%
def documentation(package):
    """Yield the texts between triple quotes in the files of a package."""
    folder = Path(importlib.util.find_spec(package).origin).parent
    for file in sorted(folder.rglob("*.py")):
        source = file.read_text(encoding="utf-8", errors="ignore")
        yield from re.findall(r'"""(.+?)"""', source, re.DOTALL)


if OWN_TEXT:
    texts = [Path(file).read_text() for file in glob.glob(OWN_TEXT)]
else:
    texts = [text for package in PACKAGES for text in documentation(package)]
texts = list(dict.fromkeys(texts))  # each once
with open("texts.jsonl", "w") as file:
    file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
print(f"{len(texts):,} texts, {sum(map(len, texts)) / 1e6:.1f} million characters")
print(texts[len(texts) // 2][:300])

# %% [markdown]
# ## Few words are frequent, most are rare
#
# Sorted by how often they come, the second word comes about half as often as the
# first, the tenth a tenth as often (*Zipf's law*). A model sees most words only a few
# times.

# %%
words = [word for text in texts for word in re.findall(r"[a-z]+", text.lower())]
counts = collections.Counter(words).most_common()
frequency = [count for _, count in counts]
rank = np.arange(1, len(counts) + 1)
plt.loglog(rank, frequency, ".", markersize=2)
plt.loglog(rank, frequency[0] / rank, "--", label="1 / rank")
for i in (0, 9, 99, 999):
    if i < len(counts):
        plt.annotate(counts[i][0], (i + 1, frequency[i]))
plt.xlabel("rank")
plt.ylabel("how often")
plt.legend()
plt.title(f"{len(words):,} words, {len(counts):,} of them different")
plt.show()

# %% [markdown]
# ## A word is known by the company it keeps
#
# As a *one-hot* vector, all zeros but a one at the word's own number, every word is
# equally far from every other. Let us count instead which words stand at most four
# places away. Similar words have similar rows.

# %%
known = {word for word, _ in counts[:3000]}
rows = [
    word for word in ("array", "list", "tuple", "raises", "returns") if word in known
]
columns = ["of", "values", "elements", "error", "if", "shape", "index", "exception"]
company = collections.Counter()
for i, word in enumerate(words):
    if word in rows:
        near = words[max(i - 4, 0) : i] + words[i + 1 : i + 5]
        company.update((word, other) for other in near if other in columns)
table = np.array([[company[row, column] for column in columns] for row in rows], float)
table /= np.maximum(table.sum(axis=1, keepdims=True), 1)
plt.imshow(table, cmap="Blues")
plt.xticks(range(len(columns)), columns, rotation=45)
plt.yticks(range(len(rows)), rows)
plt.title("share of the neighbours")
plt.show()

# %% [markdown]
# ## Skip-gram
#
# Each word has a vector of a few dozen numbers, and another one as a neighbour.
# Training makes their product large for pairs of words that stand near each other and
# small for pairs drawn at random (*negative sampling*). One config says all of it.

# %%
config = {
    "num_steps": NUM_STEPS,
    "batch_size": 256,
    "model": {"kind": "word_vectors", "dim": DIM},
    "tokenizer": {
        "kind": "words",
        "vocab_size": 20_000,
        "min_count": MIN_COUNT,
        "lowercase": True,
        "bos": False,
    },
    "data": {"source": "jsonl", "path": "texts.jsonl", "length": 64},
    "task": {"kind": "word_vectors"},
    "optim": {
        "name": "adagrad",
        "learning_rate": 0.4,
        "schedule": "linear",
        "final_fraction": 0.01,
        "epsilon": 1.2e-5,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
    },
    "eval": {"every_steps": max(NUM_STEPS // 3, 1)},
    "checkpoint": {"every_steps": NUM_STEPS},
    "log": {"every_steps": 10, "tensorboard": False},
}
result = lmjax.train(config, "runs/words")
lm = result.load()
lm

# %%
for split, style in (("train", "-"), ("valid", "o")):
    lines = [line for line in result.history if line["split"] == split]
    steps = [line["step"] for line in lines]
    plt.plot(steps, [line["loss"] for line in lines], style, label=split)
plt.xlabel("step")
plt.ylabel("loss of a pair, nats")
plt.legend()
plt.show()

# %% [markdown]
# ## The nearest words
#
# Near means: a small angle between two vectors.

# %%
for word in (
    "array",
    "returns",
    "error",
    "first",
    "float",
    "window",
    "message",
    "axis",
):
    found = ", ".join(
        f"{other} {cosine:.2f}" for other, cosine in lm.nearest(word, count=6)
    )
    print(f"{word:>8}: {found}")

# %% [markdown]
# ## A map of words
#
# The two directions in which the chosen vectors differ most (their first principal
# components) make a map of them.

# %%
groups = {
    "numbers": ["one", "two", "three", "four"],
    "types": ["int", "float", "bool", "string", "list", "tuple"],
    "verbs": ["returns", "raises", "computes", "creates"],
    "pictures": ["color", "line", "axes", "figure"],
    "mail": ["message", "header", "headers"],
}
names = [word for group in groups.values() for word in group]
vectors = lm.vectors(names)
vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
centred = vectors - vectors.mean(axis=0)
_, _, directions = np.linalg.svd(centred, full_matrices=False)
places = dict(zip(names, centred @ directions[:2].T))
plt.figure(figsize=(7, 6))
for name, group in groups.items():
    plt.plot(*zip(*[places[word] for word in group]), "o", label=name)
    for word in group:
        plt.annotate(word, places[word])
plt.legend()
plt.show()

# %% [markdown]
# ## Differences mean something, too
#
# *arrays - array + list*: what is to *list* as *arrays* is to *array*? With so little
# text only some of these succeed.

# %%
for plus, minus in ((["arrays", "value"], ["array"]), (["two", "first"], ["one"])):
    best = ", ".join(word for word, _ in lm.nearest(plus, minus=minus, count=4))
    print(f"{' + '.join(plus)} - {minus[0]} = {best}")

# %% [markdown]
# To go on: `lmjax export --workdir=runs/words --to=words.vec` writes the vectors in
# word2vec's format, and `init_embedding_from` starts another model with them.
