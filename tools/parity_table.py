"""Compare every family with transformers, and write docs/parity.md.

    python tools/parity_table.py [--output=docs/parity.md] [NAME ...]

The models are those of tests/interop/references.py, with random weights: a case that is
added there is in the table. Needs PyTorch and transformers (`pip install -e
'.[parity]'`); about 10 s for each model on 2 CPU cores. With names, only these are
computed, and printed.
"""

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax.config.experiment import MeshConfig, parse, to_dict
from lmjax.data.tokenizers.tokenizer import load_tokenizer, make_tokenizer
from lmjax.errors import UserError
from lmjax.generate.decode import Generator
from lmjax.generate.sampling import Sampling
from lmjax.interop import hf
from lmjax.parallel import sharding
from lmjax.run import workdir
from lmjax.run.checkpoint import save_params

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 2e-5  # of logits
NUM_TOKENS = 16  # of each greedy continuation, or as many as the model has room for
PROMPT_LENGTHS = (4, 7)
COLUMNS = ("model", "class", "logits", "greedy", "round trip", "tokenizer ids")
HEADER = """# Parity with transformers

Each model has random weights, in float32, none of them 0 or 1. Made by
`python tools/parity_table.py`, with transformers {version}.

- logits: the largest absolute difference of all outputs (hidden states of models
  without a head) from those of transformers, over two texts of 14 tokens; must be
  below {tolerance}
- greedy: differing tokens among all that were generated; - where nothing is generated
- round trip: the largest difference of a parameter after export and import again,
  which must be 0; and of outputs computed by transformers from the exported files
- tokenizer ids: differing texts among {num_texts} odd ones, encoded by tokenizers that
  lmjax trained (BPE, unigram) and by transformers from the files exported with the
  model; "refused", with the reason below, where the family's files cannot hold one.
  AutoTokenizer reads every tokenizer of a qwen2 model as Qwen's, which an export says

"""
# Combined with one another: white space, case, scripts, controls, special tokens.
PARTS = (
    *("", " ", "  two  spaces ", "UPPER lower", "tab\tnew\nline\r\n", "don't we're"),
    *(
        "naïve café",
        "e\u0301 ﬁ ½ ²",
        "漢字かな交じり文。",
        "한국어",
        "العربية",
        "ไทย हिन्दी",
    ),
    *(
        "👩\u200d👧 🇩🇪",
        "\u200bzero\ufeff",
        "nbsp\u00a0\u3000",
        "$1,234.56",
        "<s> </s> <unk>",
    ),
    *("[CLS] [MASK]", "C++ a@b.c #x", "a" * 40, "x=y+z*(a-b)/c"),
)
TEXTS = sorted({a + b for a in PARTS for b in PARTS[::2]})[:220]


class Documents(list[str]):
    """Texts to train a tokenizer on."""

    def fingerprint(self) -> str:
        """Return what identifies them."""
        return "parity"

    def size(self, index: int) -> int:
        """Return the bytes of one."""
        return len(self[index].encode())


def main() -> None:
    """Measure all cases, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "parity.md")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    sys.path.insert(0, str(ROOT / "tests" / "interop"))
    import references
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    names = arguments.names or list(references.CASES)
    if unknown := [name for name in names if name not in references.CASES]:
        parser.error(
            f"{unknown[0]}: no such case; known: {', '.join(references.CASES)}"
        )
    tokenizers = [train_tokenizer(algorithm) for algorithm in ("bpe", "unigram")]
    rows, notes = [], {}
    for name in names:
        try:
            rows.append(measure(name, tokenizers, notes))
        except Exception as error:  # the others are still of interest
            notes[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            rows.append([name, references.CASES[name][0], *["failed"] * 4])
        print(" | ".join(rows[-1]), flush=True)
    if not arguments.names:
        header = HEADER.format(
            version=transformers.__version__,
            tolerance=TOLERANCE,
            num_texts=len(TEXTS) * len(tokenizers),
        )
        lines = [f"| {' | '.join(row)} |" for row in (COLUMNS, ["---"] * 6, *rows)]
        remarks = [f"- {name}: {why}" for name, why in notes.items()]
        text = header + "\n".join([*lines, "", *remarks]).rstrip() + "\n"
        arguments.output.write_text(text)


def measure(name: str, tokenizers: list[Any], notes: dict[str, str]) -> list[str]:
    """Return a row of the table; `notes` gets the reasons of what was refused."""
    import references
    import test_parity as parity
    import torch

    mesh = sharding.make_mesh(MeshConfig(), devices=jax.devices()[:1])
    with tempfile.TemporaryDirectory() as path:
        directory = Path(path)
        reference = references.save_reference(name, directory / "hf")
        hf.import_hf(directory / "hf", directory / "workdir", mesh)
        model, params = hf.restore_model(directory / "workdir", None)
        batch, inputs = parity.make_batch(model, np.random.default_rng(0))
        with torch.no_grad():
            expected = reference(**inputs)
        found = parity.compute_outputs(name, model, params, batch)
        logits = parity.max_difference(found, expected, batch["segments"])
        hf.export_hf(directory / "workdir", directory / "exported")
        exported = load_exported(reference, directory / "exported")
        with torch.no_grad():
            returned = exported(**inputs)
        outputs = max(float((returned[k] - expected[k]).abs().max()) for k in found)
        hf.import_hf(directory / "exported", directory / "again", mesh)
        again, params_again = hf.restore_model(directory / "again", None)
        if again.config != model.config:
            notes[name] = "after the round trip its config differs"
        changed = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, params_again)
        cells = [
            f"{logits:.1e}",
            compare_greedy(model, params, reference),
            f"{max(map(float, jax.tree.leaves(changed))):g}; {outputs:.1e}",
            compare_tokenizers(name, directory, tokenizers, notes),
        ]
    return [name, type(reference).__name__, *cells]


def load_exported(reference: Any, directory: Path) -> Any:
    """Return the model of transformers in a directory, for inference."""
    import transformers

    model_class = type(reference)
    config = transformers.AutoConfig.from_pretrained(directory)
    if config.architectures != [model_class.__name__]:
        model_class = transformers.AutoModel  # exported with its tied head
    return model_class.from_pretrained(directory, attn_implementation="eager").eval()


def compare_greedy(model: Any, params: Any, reference: Any) -> str:
    """Return how many greedily chosen tokens differ from transformers'."""
    import torch
    import transformers

    config = model.config
    if not (config.can_generate and hasattr(reference, "generate")):
        return "-"
    if not reference.can_generate():
        return "-"
    is_pair = config.kind == "encoder_decoder"
    rng, differing, total = np.random.default_rng(1), 0, 0
    for length in PROMPT_LENGTHS:
        prompt = rng.integers(3, 66, length).tolist()
        start = list(config.decoder_prefix_ids) if is_pair else prompt
        room = config.longest_continuation(len(start)) - len(start)
        num = min(NUM_TOKENS, room)
        (tokens,) = Generator(model).generate(
            params,
            [start],
            max_tokens=num,
            sampling=Sampling(temperature=0.0),
            stop_ids=(),
            sources=[prompt] if is_pair else None,
        )
        settings = {"max_new_tokens": num, "do_sample": False, "pad_token_id": 0}
        settings["use_cache"] = (
            False  # T5's assumes as many decoder layers as encoder's
        )
        more = {"input_ids": torch.tensor([prompt])}
        if is_pair:
            settings["decoder_start_token_id"] = start[0]
            more["decoder_input_ids"] = torch.tensor([start])
        reference.generation_config = transformers.GenerationConfig()
        with torch.no_grad():
            row = reference.generate(
                **more, generation_config=transformers.GenerationConfig(**settings)
            )
        expected = row[0, len(start) :].tolist()
        differing += sum(a != b for a, b in zip(tokens, expected, strict=True))
        total += num
    return f"{differing} of {total}"


def train_tokenizer(algorithm: str) -> Any:
    """Return a tokenizer that lmjax trained on odd texts and on plain ones."""
    config = parse(
        {
            "tokenizer": {"algorithm": algorithm, "vocab_size": 420},
            "data": {"source": "none"},
        }
    ).tokenizer
    plain = (ROOT / "README.md").read_text().splitlines()
    return make_tokenizer(config, documents=[Documents(TEXTS + plain)], seed=0)


def compare_tokenizers(
    name: str, directory: Path, tokenizers: list[Any], notes: dict[str, str]
) -> str:
    """Return how many texts have other ids in transformers, after an export."""
    differing = refused = 0
    for i, tokenizer in enumerate(tokenizers):
        source, target = directory / f"trained{i}", directory / f"target{i}"
        write_workdir(directory / "workdir", source, tokenizer)
        try:
            hf.export_hf(source, target)
        except UserError as error:
            notes[name] = str(error).replace(str(directory), "")
            refused += 1
            continue
        differing += count_differences(source, target)
    if refused == len(tokenizers):
        return "refused"
    total = len(TEXTS) * (len(tokenizers) - refused)
    return f"{differing} of {total}" + (", one refused" if refused else "")


def write_workdir(source: Path, target: Path, tokenizer: Any) -> None:
    """Write the model of a workdir with another vocabulary; its parameters are 0."""
    values = to_dict(workdir.read_config(source))
    values["model"]["vocab_size"] = tokenizer.vocab_size
    target.mkdir()
    tokenizer.save(target / "tokenizer")
    values["tokenizer"] = {"kind": "tokenizers", "path": str(target / "tokenizer")}
    config = parse(values)
    model, shardings = hf.build_model(config, None)
    zeros: Callable[..., Any] = lambda leaf, where: jax.device_put(
        np.zeros(leaf.shape, leaf.dtype), where
    )
    save_params(target, jax.tree.map(zeros, model.shapes, shardings))
    workdir.write_config(target, config)


def count_differences(source: Path, target: Path) -> int:
    """Return how many texts have other ids in a directory than in a workdir."""
    import transformers

    ours = load_tokenizer(source / "tokenizer")
    theirs = transformers.AutoTokenizer.from_pretrained(target)
    return sum(
        list(ours.encode(text)) != theirs.encode(text, add_special_tokens=False)
        for text in TEXTS
    )


if __name__ == "__main__":
    main()
