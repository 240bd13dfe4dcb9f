# %% [markdown]
# # 2. A recurrent model of your own text
#
# A recurrent network reads a text one character after the other and keeps what it
# needs to know in a *state*, a vector of fixed size. We train one to guess the next
# character, let it write, and look into its state (after Karpathy's *The Unreasonable
# Effectiveness of Recurrent Neural Networks*, 2015).
#
# Set `OWN_TEXT` to files of your own. By default it reads the documentation of Python
# packages that are there already.

# %%
# This cell installs lmjax where it is missing, as in Colab.
import importlib.util

if importlib.util.find_spec("lmjax") is None:
    # %pip install -q lmjax matplotlib
    pass

# %%
import glob
import html
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML

import lmjax

plt.rcParams.update({"figure.dpi": 72, "figure.figsize": (8, 4)})

# %% tags=["parameters"]
OWN_TEXT = ""  # such as "letters/*.txt"
PACKAGES = ("asyncio", "email", "tkinter", "unittest", "logging", "numpy")
NUM_CHARACTERS = 2_000_000
NUM_STEPS = 600
HIDDEN = 256


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
texts = [text.strip() + "\n" for text in dict.fromkeys(texts) if text.strip()]
text = "\n".join(texts)[:NUM_CHARACTERS]
with open("texts.jsonl", "w") as file:
    for document in text.split("\n\n"):
        file.write(json.dumps({"text": document + "\n"}) + "\n")
print(f"{len(text):,} characters\n\n{text[1000:1400]}")

# %% [markdown]
# ## Training
#
# The tokens are bytes: 256 of them, no vocabulary to learn. The text is read from its
# beginning to its end in several places at once (`order: contiguous`), and the state
# at the end of a window of 64 characters goes on into the next one, up to the end of a
# paragraph: then it is forgotten, so that the network knows how to begin. Gradients do
# not go on: *truncated backpropagation through time*.

# %%
config = {
    "num_steps": NUM_STEPS,
    "batch_size": 32,
    "model": {
        "kind": "recurrent",
        "cell": "lstm",
        "dim": 64,
        "hidden_dim": HIDDEN,
        "num_layers": 1,
        "max_length": 64,
        "tie_embeddings": False,
    },
    "tokenizer": {"kind": "bytes", "bos": False},
    "data": {
        "source": "jsonl",
        "path": "texts.jsonl",
        "length": 64,
        "order": "contiguous",
    },
    "optim": {"learning_rate": 4e-3, "warmup_steps": min(20, NUM_STEPS // 4)},
    "eval": {"every_steps": max(NUM_STEPS // 5, 1)},
    "checkpoint": {"every_steps": NUM_STEPS},
    "log": {"every_steps": 10, "tensorboard": False},
}
result = lmjax.train(config, "runs/recurrent")
lm = result.load()
lm

# %%
bits = 1 / np.log(2)
for split, style in (("train", "-"), ("valid", "o")):
    lines = [line for line in result.history if line["split"] == split]
    losses = [bits * line["loss"] for line in lines]
    plt.plot([line["step"] for line in lines], losses, style, label=split)
plt.axhline(np.log2(len(set(text))), linestyle=":", color="gray")
plt.annotate("all characters equally likely", (0, np.log2(len(set(text)))))
plt.xlabel("step")
plt.ylabel("bits a character")
plt.legend()
plt.show()

# %% [markdown]
# ## It writes
#
# The *temperature* divides the scores of the next character before they become
# probabilities: below 1 the likely ones get likelier, above 1 all get more alike.

# %%
for temperature in (0.3, 0.7, 1.1):
    [more] = lm.generate(["Return "], max_tokens=160, temperature=temperature, seed=1)
    print(f"--- temperature {temperature}\nReturn {more}\n")

# %% [markdown]
# ## Where it is surprised
#
# The *surprise* of a character is minus the logarithm of its probability. It is large
# at the beginning of a word and falls while the word becomes clear.

# %%
line = "Return the number of characters in the string."
[score] = lm.score([line], per_token=True)
surprise = -bits * np.array(score["token_log_probs"])
shown = line[len(line) - len(surprise) :]
plt.figure(figsize=(10, 3))
plt.bar(range(len(shown)), surprise, color=["C1" if c == " " else "C0" for c in shown])
plt.xticks(range(len(shown)), shown)
plt.ylabel("bits")
plt.title(f"{surprise.mean():.2f} bits a character")
plt.show()

# %% [markdown]
# ## What a state knows
#
# The state is a few hundred numbers. We look for the one that tells best whether we
# are inside of brackets or quotes, and colour a text by it.

# %%
sample = text[: 200 * 64][-6000:]
tokens = np.array(list(sample.encode()))[None]
states = np.asarray(lm.hidden(tokens))[0]  # one row for each character
depth, inside = 0, []
for byte in tokens[0]:
    depth = max(depth + (byte in b"([{") - (byte in b")]}"), 0)
    inside.append(min(depth, 1))
inside = np.array(inside) - np.mean(inside)
spread = states - states.mean(axis=0)
correlation = (
    inside @ spread / (np.linalg.norm(inside) * np.linalg.norm(spread, axis=0) + 1e-9)
)
unit = int(np.abs(correlation).argmax())
print(f"unit {unit}: correlation {correlation[unit]:.2f} with being inside of brackets")


def colour(text, values):
    """Return text as HTML, each character coloured by a value."""
    values = values / np.abs(values).max()
    cells = []
    for character, value in zip(text, values):
        shade = f"rgba({'46,160,67' if value > 0 else '218,54,51'},{abs(value):.2f})"
        cells.append(
            f'<span style="background:{shade}">{html.escape(character)}</span>'
        )
    return HTML(f"<pre style='line-height:1.5'>{''.join(cells)}</pre>")


start = max(int(np.argmax(inside > 0)) - 60, 0)
ascii_only = bytes(tokens[0, start : start + 500].astype(np.uint8)).decode("latin-1")
colour(ascii_only, states[start : start + 500, unit])

# %% [markdown]
# ## The first unit of forgetting
#
# How far back does it see? We change one character and measure how much the states
# after it differ.

# %%
change = tokens[:, :400].copy()
change[0, 100] = ord("(")
after = np.linalg.norm(
    np.asarray(lm.hidden(change))[0] - np.asarray(lm.hidden(tokens[:, :400]))[0], axis=1
)
plt.plot(np.arange(400) - 100, after)
plt.xlabel("characters after the changed one")
plt.ylabel("difference of the states")
plt.show()
