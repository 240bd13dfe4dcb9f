"""A new task: a config section, a loss, features, and a row in each of their tables.

It is trained, evaluated and applied by the same code and commands as all others.
"""

import dataclasses
import json
import random
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lmjax
from lmjax.cli import main
from lmjax.config.data import FieldsConfig
from lmjax.config.experiment import Config, parse
from lmjax.config.task import LABEL_KINDS, PredictionTaskConfig, TaskConfig
from lmjax.data.features.features import Features, Row, pad_token_rows
from lmjax.data.features.registry import FEATURES
from lmjax.data.formats import fields
from lmjax.errors import UserError
from lmjax.tasks import TASKS, EvalOutput, LossOutput, Task
from lmjax.tasks.losses import padding
from lmjax.training import loop


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountConfig(PredictionTaskConfig):
    """Predict a number that is given with each text."""

    kind: Literal["count"] = "count"
    scale: float = 10.0  # of the numbers, about
    model_kinds = LABEL_KINDS
    example_sources = ("jsonl",)
    example_fields = ("text", "label")
    uses_classifier = True

    @property
    def output_names(self):
        return ("count",)


@dataclasses.dataclass(frozen=True)
class Count(Task):
    """The squared error of `counts` (B,)."""

    config: CountConfig

    def batch_shapes(self, batch_size, length, *, target_length=0):
        row = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        count = jax.ShapeDtypeStruct((batch_size,), jnp.float32)
        names = ("tokens", "segments", "positions")
        return dict.fromkeys(names, row) | dict.fromkeys(("counts", "weights"), count)

    def loss(self, model, params, batch, *, key, carry=None):
        count_B = self.predict(model, params, batch, key=key)["count"]
        error_sum, weight = self._error(count_B, batch)
        metrics = {"loss": (error_sum, weight), "padding": padding(batch)}
        return LossOutput(error_sum, weight, metrics)

    def evaluate(self, model, params, batch, *, carry=None):
        predictions = self.predict(model, params, batch)
        return EvalOutput(
            {"loss": self._error(predictions["count"], batch)}, predictions
        )

    def predict(self, model, params, batch, *, key=None):
        hidden_BTD = model.hidden(params, batch, key=key)
        summary_BD = model.summary(params, hidden_BTD, batch["segments"])
        logits_B1 = model.label_logits(params, summary_BD)
        return {"count": self.config.scale * logits_B1[:, 0]}

    def _error(self, count_B, batch):
        error_B = jnp.square((count_B - batch["counts"]) / self.config.scale)
        return (error_B * batch["weights"]).sum(), batch["weights"].sum()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountFeatures(Features):
    """A text and its number. Columns: `tokens`, `count`."""

    fields: FieldsConfig
    length: int
    metric_names = ("mean_error",)

    @classmethod
    def from_config(cls, config):
        return cls(fields=config.data.fields, length=config.data.length)

    def texts(self, example):
        return [fields.get_text(example, self.fields.text, leaf="config.data.fields")]

    def parse(self, example, *, labelled=True):
        (text,) = self.texts(example)
        return text, int(example[self.fields.label]) if labelled else 0

    def encode(self, parsed, tokenizer):
        encoded = tokenizer.encode_batch([text for text, _ in parsed])
        return [
            [self._row(ids, count)]
            for ids, (_, count) in zip(encoded, parsed, strict=True)
        ]

    def _row(self, ids, count):
        tokens = ids[: self.length]
        columns = {"tokens": tokens, "count": np.array([count], np.int32)}
        return Row(columns=columns, size=len(tokens), truncated=len(ids) > len(tokens))

    def batch(self, rows, *, length):
        batch = pad_token_rows(rows, length=length)
        counts = [0 if row is None else row["count"][0] for row in rows]
        weights = [row is not None for row in rows]
        return batch | {"counts": np.float32(counts), "weights": np.float32(weights)}

    def example_from_text(self, text):
        return {self.fields.text: text}

    def postprocess(self, parsed, rows, outputs):
        return {"count": round(float(outputs[0]["count"]), 4)}

    def compute_metrics(self, predictions, parsed):
        pairs = zip(predictions, parsed, strict=True)
        errors = [abs(p["count"] - count) for p, (_, count) in pairs]
        return {"mean_error": sum(errors) / len(errors)}

    def identity(self):
        return ["count", self.fields.text, self.fields.label, self.length]


@pytest.fixture
def count_task(monkeypatch):
    monkeypatch.setitem(Config.__annotations__, "task", TaskConfig | CountConfig)
    monkeypatch.setitem(TASKS, "count", Count)
    monkeypatch.setitem(FEATURES, "count", CountFeatures)


def sections(tmp_path):
    rng = random.Random(0)
    data = {"source": "jsonl", "length": 24, "num_buckets": 2}
    names = {"train": "path", "valid": "valid_path", "test": "test_path"}
    for (split, leaf), size in zip(names.items(), (90, 21, 13), strict=True):
        path = tmp_path / f"{split}.jsonl"
        texts = ("".join(rng.choices("ab", k=rng.randint(1, 20))) for _ in range(size))
        lines = [json.dumps({"text": t, "label": len(t)}) + "\n" for t in texts]
        path.write_text("".join(lines))
        data[leaf] = str(path)
    return {
        "num_steps": 20,
        "batch_size": 8,
        "model": {"dim": 16, "num_layers": 1, "num_heads": 2, "max_length": 32},
        "tokenizer": {"kind": "bytes"},
        "data": data,
        "task": {"kind": "count"},
        "optim": {"learning_rate": 3e-2, "warmup_steps": 2},
        "mesh": {"data": 1},
        "checkpoint": {"best_metric": "mean_error"},
        "log": {"every_steps": 1, "tensorboard": False},
    }


def test_a_task_of_three_places(count_task, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    run, config = tmp_path / "run", parse(sections(tmp_path))
    assert config.task == CountConfig()
    assert loop.train(config, run)

    logged = [*map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]
    train = [row["loss"] for row in logged if row["split"] == "train"]
    assert len(train) == 20
    assert sum(train[-5:]) < sum(train[:5]) / 2
    held_out = {row["split"]: row for row in logged if row["split"] != "train"}
    assert {"loss", "mean_error"} <= held_out["valid"].keys() & held_out["test"].keys()

    assert main.main(["eval", f"--workdir={run}"]) == 0
    for row in map(json.loads, capsys.readouterr().out.splitlines()):
        for name in ("loss", "mean_error"):
            assert row[name] == held_out[row["split"]][name]

    source, target = tmp_path / "test.jsonl", tmp_path / "predictions.jsonl"
    files = [f"--input={source}", f"--output={target}"]
    assert main.main(["predict", f"--workdir={run}", *files]) == 0
    predictions = [*map(json.loads, target.read_text().splitlines())]
    examples = [*map(json.loads, source.read_text().splitlines())]
    errors = [
        abs(p["count"] - e["label"]) for p, e in zip(predictions, examples, strict=True)
    ]
    assert np.mean(errors) == pytest.approx(held_out["test"]["mean_error"], abs=1e-3)
    texts = [example["text"] for example in examples]
    again = lmjax.load(run).predict(texts)
    assert [p["count"] for p in again] == pytest.approx(
        [p["count"] for p in predictions], abs=1e-3
    )


def test_its_config_is_checked_as_others_are(count_task, tmp_path):
    given = sections(tmp_path)
    for override, why in (
        ("task.kind=cont", "mean 'count'"),
        ("task.scal=2", r"config\.task\.scal: no such field \(did you mean 'scale'"),
        ("task.model_kinds=('decoder',)", r"config\.task\.model_kinds: no such field"),
        ("model.kind=encoder_decoder", r"config\.task\.kind = 'count': needs .*'enco"),
        ("data.source=tsv", r"config\.data\.source = 'tsv': must be one of jsonl"),
        ("data.fields.label=text", r"fields\.label = 'text': must not be"),
        ("data.target_length=8", r"config\.data\.target_length = 8: must be 0"),
        ("model.num_labels=2", r"config\.model\.num_labels = 2: .* as many .* 1"),
    ):
        with pytest.raises(UserError, match=why):
            parse(given, [override])
