"""Send an exported directory to the Hugging Face hub, with a model card."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import lmjax
from lmjax.config.experiment import Config
from lmjax.errors import UserError
from lmjax.fileio import write_bytes
from lmjax.run import workdir
from lmjax.run.metric_log import read_metrics

CARD = "README.md"
# What models do, by the kind of their task; for the hub's search and its widgets.
PIPELINES = {
    "causal_lm": "text-generation",
    "prompted_lm": "text-generation",
    "masked_lm": "fill-mask",
    "classify": "text-classification",
    "tag": "token-classification",
    "span_qa": "question-answering",
    "seq2seq": "text2text-generation",
}
# Of the metrics of a run, those that say nothing about the model.
_SPEED = ("seconds", "per_second", "signatures", "step", "split")


def check_push(name: str) -> Any:
    """Check that a model of this name can be sent; return the hub's interface.

    Raises:
      UserError: it is no name of a model, or huggingface_hub is not installed.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise UserError(f"--push={name}: must be the name of a model, as ORG/NAME")
    try:
        return importlib.import_module("huggingface_hub").HfApi()
    except ImportError as error:
        raise UserError(
            f"--push={name}: needs huggingface_hub: pip install 'lmjax[hf]'"
        ) from error


def push(directory: Path, exported: Path, name: str, *, private: bool = False) -> str:
    """Write a model card into an exported directory and send all of it to the hub.

    Args:
      directory: the workdir.
      exported: what was exported from it, without a card of its own.
      name: of the model, ORG/NAME; it is created if it is missing.
      private: create one that others cannot see.

    Returns:
      The address of the model.

    Raises:
      UserError: the hub refuses; the directory stays.
    """
    api = check_push(name)
    card = write_card(directory, workdir.read_config(directory), name=name)
    write_bytes(exported / CARD, card.encode())
    try:
        address = api.create_repo(name, exist_ok=True, private=private)
        message = f"Export by lmjax {lmjax.__version__}"
        api.upload_folder(
            repo_id=name, folder_path=str(exported), commit_message=message
        )
    except Exception as error:  # of many classes: network, token, rights
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--push={name}: {first} ({exported} has been written)"
        ) from error
    return str(address)


def write_card(directory: Path, config: Config, *, name: str) -> str:
    """Return the card of a model: what it is, its scores, and how it was trained."""
    kind = config.task.kind
    head = {"library_name": "transformers", "tags": ["lmjax", kind]}
    if kind in PIPELINES:
        head["pipeline_tag"] = PIPELINES[kind]
    front = "".join(f"{key}: {json.dumps(value)}\n" for key, value in head.items())
    m, o, d = config.model, config.optim, config.data
    facts = {
        "architecture": f"{m.kind}, {m.num_layers} layers of {m.dim}",
        "vocabulary": f"{m.vocab_size:,} ({config.tokenizer.kind})",
        "task": kind,
    }
    trained = any(line["split"] == "train" for line in read_metrics(directory))
    if trained:  # else it was imported, or made of another model
        facts |= {
            "data": d.source,
            "length of a row": f"{d.length} tokens",
            "training": f"{config.num_steps:,} steps of {config.batch_size} rows",
            "optimizer": f"{o.name}, learning rate {o.learning_rate:g}",
        }
    if config.init_from:
        facts["began with"] = Path(config.init_from).name
    rows = "".join(f"| {key} | {value} |\n" for key, value in facts.items())
    made = "Trained" if trained else "Exported"
    return (
        f"---\n{front}---\n\n# {name.split('/')[1]}\n\n{made} with lmjax "
        f"{lmjax.__version__}.\n\n| | |\n|---|---|\n{rows}{_scores(directory)}"
    )


def _scores(directory: Path) -> str:
    """Return the last metrics of each held-out split, as a section."""
    last = {line["split"]: line for line in read_metrics(directory)}
    lines = [
        f"| {split} | {metric} | {value:.4g} |\n"
        for split, line in last.items()
        if split != "train"
        for metric, value in line.items()
        if isinstance(value, int | float) and not metric.endswith(_SPEED)
    ]
    if not lines:
        return ""
    return f"\n## Scores\n\n| split | metric | value |\n|---|---|---|\n{''.join(lines)}"
