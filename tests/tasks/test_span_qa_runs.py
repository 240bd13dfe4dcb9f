"""Runs of extractive question answering: training, evaluating, predicting."""

import dataclasses
import json
import random

import jax
import pytest

import lmjax
from lmjax.cli import main, report
from lmjax.config import data as data_lib
from lmjax.config import task as task_lib
from lmjax.config.experiment import parse
from lmjax.errors import UserError
from lmjax.training import loop
from lmjax.training.evaluate_workdir import evaluate_workdir

LETTERS = "bcdefghijklmnopqrstuvwxy"


def question(rng, number, *, answerable):
    """Ask for the letters between two brackets, if there are any."""
    words = ["".join(rng.choices(LETTERS, k=3)) for _ in range(rng.randint(3, 16))]
    answer, place = rng.choice(words), rng.randint(0, len(words))
    if answerable:
        words.insert(place, f"<{answer}>")
    context = " ".join(words)
    answers = [{"text": answer, "answer_start": context.find("<") + 1}]
    return {
        "id": f"q{number}",
        "question": "?",
        "answers": answers * answerable,
        "is_impossible": not answerable,
    }, context


def write(path, count, seed, *, impossible):
    rng, paragraphs = random.Random(seed), []
    for number in range(count):
        answerable = not impossible or number % 3 > 0
        qa, context = question(rng, number, answerable=answerable)
        paragraphs.append({"context": context, "qas": [qa]})
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return str(path)


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    directory = tmp_path_factory.mktemp("squad")

    def make(*, impossible=False, **task):
        data = {"source": "squad", "length": 40, "num_buckets": 2}
        for seed, (leaf, count) in enumerate(
            [("path", 240), ("valid_path", 30), ("test_path", 26)]
        ):
            path = directory / f"{leaf}{impossible}.json"
            data[leaf] = write(path, count, seed, impossible=impossible)
        windows = {"max_question_tokens": 1, "stride": 20, "max_answer_tokens": 5}
        return {
            "num_steps": 150,
            "batch_size": 24,
            "model": {"kind": "encoder", "dim": 32, "num_layers": 1, "num_heads": 2},
            "tokenizer": {"kind": "bytes"},
            "data": data,
            "task": {"kind": "span_qa", "no_answer": impossible, **windows, **task},
            "optim": {"learning_rate": 1e-2, "warmup_steps": 10, "weight_decay": 0.0},
            "mesh": {"data": 4, "fsdp": 2},
            "eval": {"every_steps": 75, "batch_size": 16},
            "checkpoint": {"best_metric": "f1", "best_mode": "max"},
            "log": {"every_steps": 25, "tensorboard": False},
        }

    return make


def metrics(directory, split):
    found = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [row for row in found if row["split"] == split]


@pytest.fixture(scope="module")
def finished(sections, tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished")
    assert loop.train(parse(sections()), directory)
    return directory


def test_it_learns_to_find_marked_answers(finished):
    for split in ("valid", "test"):
        last = metrics(finished, split)[-1]
        assert {"loss", "exact_match", "f1"} <= last.keys()
        assert not {"accuracy", "perplexity"} & last.keys()
        assert last["f1"] > 0.95
        assert last["exact_match"] > 0.9
    counts = [row.get("num_compilations", 0) for row in metrics(finished, "train")]
    assert max(counts) <= 2
    report.after_training(
        parse(json.loads((finished / "config.json").read_text())), finished
    )


def test_evaluation_is_the_same_whatever_buckets_and_mesh(finished, monkeypatch):
    before = {split: metrics(finished, split)[-1] for split in ("valid", "test")}
    one = [jax.local_devices()[0]]
    for devices, overrides in (
        (jax.local_devices(), ["data.num_buckets=1", "eval.batch_size=40"]),
        (one, ["mesh.data=1", "mesh.fsdp=1"]),
    ):
        monkeypatch.setattr(jax, "devices", lambda *_, devices=devices: devices)
        for row in evaluate_workdir(finished, step=None, overrides=overrides):
            for name in ("loss", "exact_match", "f1"):
                expected = before[row["split"]][name]
                assert row[name] == pytest.approx(expected, 1e-4, 1e-6), name


def test_predictions_are_parts_of_the_context(finished, tmp_path, capsys):
    long = " ".join(["bcd"] * 30) + " <vwx> " + " ".join(["bcd"] * 30)
    examples = [{"question": "?", "context": text} for text in ("é <xy> z", long)]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(example) + "\n" for example in examples))
    flags = [f"--workdir={finished}", f"--input={source}", f"--output={target}"]
    assert main.main(["predict", *flags]) == 0
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    alone = [lmjax.load(finished).predict([example])[0] for example in examples]
    for example, answer, other in zip(examples, answers, alone, strict=True):
        start, text = answer["start"], answer["answer"]
        assert example["context"][start : start + len(text)] == text
        assert other["answer"] == text
        assert other["score"] == pytest.approx(answer["score"], abs=1e-3)
    assert answers[1]["answer"] == "vwx"  # in the middle of some windows
    source.write_text('{"question": "?"}\n')
    target.unlink()
    assert main.main(["predict", *flags]) == 2
    said = capsys.readouterr().err
    assert "in.jsonl:1: config.data.fields.context = 'context': no such field" in said
    with pytest.raises(UserError, match=r"examples\[0\]: .*context = 'context'"):
        lmjax.load(finished).predict(["Who?"])


@pytest.mark.slow
def test_a_bidirectional_network_learns_that_some_have_no_answer(sections, tmp_path):
    given = sections(impossible=True)
    both = {"bidirectional": True, "cell": "gru"}
    given["model"] = {"kind": "recurrent", "dim": 32, "num_layers": 1, **both}
    shorter = ["num_steps=100", "eval.every_steps=0", "data.num_buckets=1"]
    assert loop.train(parse(given, shorter), tmp_path)
    assert metrics(tmp_path, "valid")[-1]["f1"] > 0.95
    lm = lmjax.load(tmp_path)
    answers = lm.predict([{"question": "?", "context": c} for c in ("abc", "a <bcd>")])
    assert [answer["answer"] for answer in answers] == ["", "bcd"]
    assert answers[0]["start"] is None
    never = ["task.no_answer_threshold=1e9"]
    (row, _) = evaluate_workdir(tmp_path, step=None, overrides=never)
    assert row["f1"] <= 2 / 3  # now each third answer is wrong


def test_every_leaf_is_read(sections, tmp_path, monkeypatch):
    seen = set()
    kinds = (task_lib.SpanQAConfig, data_lib.FieldsConfig)
    config = parse(
        {**sections(impossible=True), "num_steps": 1}, ["optim.warmup_steps=1"]
    )
    shallow = lambda config: json.loads(
        json.dumps(config, default=lambda c: {**vars(c)})
    )
    monkeypatch.setattr(dataclasses, "asdict", shallow)
    for kind in kinds:
        plain = kind.__getattribute__

        def noted(self, name, kind=kind, plain=plain):
            seen.add((kind.__name__, name))
            return plain(self, name)

        monkeypatch.setattr(kind, "__getattribute__", noted)
    loop.train(config, tmp_path)
    leaves = {field.name for field in dataclasses.fields(task_lib.SpanQAConfig)}
    wanted = {("SpanQAConfig", leaf) for leaf in leaves}
    wanted |= {("FieldsConfig", leaf) for leaf in ("question", "context", "answers")}
    assert not wanted - seen
