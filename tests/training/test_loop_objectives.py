"""Runs of encoders and encoder-decoders, from the text to the last evaluation."""

import json
import random

import jax
import pytest

from lmjax.cli import report
from lmjax.config.experiment import parse
from lmjax.training import loop

TINY = {
    "num_steps": 6,
    "batch_size": 4,
    "tokenizer": {"kind": "bytes", "mask": True, "num_sentinels": 4},
    "optim": {"learning_rate": 1e-2, "schedule": "constant"},
    "mesh": {"data": 1},
    "eval": {"every_steps": 3},
    "log": {"every_steps": 1, "tensorboard": False},
}
SIZE = {"dim": 16, "num_layers": 1, "num_heads": 2, "max_length": 32, "dropout": 0.1}
PAIRS = {"pooler": True, "pair_head": True, "num_token_types": 2}
KINDS = {
    "sentence_order": {
        "model": {**SIZE, **PAIRS, "kind": "encoder"},
        "task": {"kind": "masked_lm", "sentence_order": True},
    },
    "span_corruption": {
        "model": {**SIZE, "kind": "encoder_decoder"},
        "task": {"kind": "span_corruption"},
        "sample": {"prompts": ("to be",), "max_tokens": 4},
    },
    "recurrent": {
        "model": {
            "kind": "recurrent_encoder_decoder",
            "dim": 16,
            "max_length": 32,
            "dropout": 0.1,
        },
        "task": {"kind": "prefix_lm"},
        "sample": {"prompts": ("to be",), "max_tokens": 4},
    },
}


@pytest.fixture
def data(tmp_path):
    words = random.Random(0).choices(["to", "be", "or", "not", "that", "is"], k=999)
    path = tmp_path / "text.txt"
    path.write_text("\n".join(" ".join(words[i : i + 9]) for i in range(0, 999, 9)))
    return {
        "source": "text",
        "path": str(path),
        "document": "line",
        "length": 32,
        "isolate_documents": False,
    }


def metrics(directory, split):
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    timed = ("seconds", "tokens_per", "bytes", "num_comp")
    return [
        {name: row[name] for name in row if not any(t in name for t in timed)}
        for row in rows
        if row["split"] == split
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_run_that_was_stopped_equals_one_that_was_not(
    name, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    sections = {**TINY, "data": data, **KINDS[name]}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert loop.train(parse(sections), whole)
    for num_steps in (2, 6):
        assert loop.train(parse(sections, [f"num_steps={num_steps}"]), parts)
    assert metrics(parts, "train") == metrics(whole, "train")
    last = metrics(whole, "valid")[-1]
    assert metrics(parts, "valid")[-1] == last
    assert {"loss", "accuracy", "perplexity"} <= last.keys()
    assert not {"bits_per_byte", "word_perplexity"} & last.keys()
    assert ("pair_accuracy" in last) == (name == "sentence_order")
    assert (whole / "samples" / "6.txt").exists() == ("sample" in sections)
    report.after_training(parse(sections), whole)
