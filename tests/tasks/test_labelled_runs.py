"""Runs on labelled examples: training, resuming, evaluating, predicting."""

import json
import logging
import random

import jax
import numpy as np
import pytest

import lmjax
from lmjax.cli import main, report
from lmjax.config.experiment import parse
from lmjax.errors import UserError
from lmjax.inference import predict_file
from lmjax.run import workdir
from lmjax.training import init_from, loop
from lmjax.training.evaluate_workdir import evaluate_workdir

TINY = {
    "num_steps": 24,
    "batch_size": 8,
    "model": {"dim": 16, "num_layers": 1, "num_heads": 2, "max_length": 64},
    "tokenizer": {"kind": "bytes"},
    "task": {"kind": "classify"},
    "optim": {"learning_rate": 1e-2, "schedule": "constant", "warmup_steps": 2},
    "mesh": {"data": 1},
    "eval": {"every_steps": 12},
    "checkpoint": {"best_metric": "accuracy", "best_mode": "max"},
    "log": {"every_steps": 1, "tensorboard": False},
}
WORDS = {"pos": ["good", "nice"], "neg": ["bad", "dull"]}


def rows(count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        label = rng.choice(sorted(WORDS))
        words = rng.choices(WORDS[label] + ["the", "film"], k=rng.randint(1, 9))
        text = " ".join([*words, WORDS[label][0]])
        yield {"text": text, "more": words[0], "label": label}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("texts")
    for seed, (split, count) in enumerate([("train", 90), ("valid", 21), ("test", 19)]):
        lines = (json.dumps(row) + "\n" for row in rows(count, seed))
        (directory / f"{split}.jsonl").write_text("".join(lines))
    return directory


@pytest.fixture
def make(files, monkeypatch):
    def build(*overrides):
        data = {"source": "jsonl", "length": 32, "num_buckets": 2}
        names = {"path": "train", "valid_path": "valid", "test_path": "test"}
        data |= {leaf: str(files / f"{split}.jsonl") for leaf, split in names.items()}
        config = parse({**TINY, "data": data}, overrides)
        size = max(config.mesh.data, 1) * config.mesh.fsdp * config.mesh.tensor
        monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:size])
        return config

    return build


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """A run of an encoder on eight devices."""
    directory = tmp_path_factory.mktemp("finished")
    sections = {**TINY, "mesh": {"data": 4, "fsdp": 2}}
    sections["model"] = {**TINY["model"], "kind": "encoder", "pooler": True}
    names = {"path": "train", "valid_path": "valid", "test_path": "test"}
    data = {leaf: str(files / f"{split}.jsonl") for leaf, split in names.items()}
    sections["data"] = {"source": "jsonl", "length": 32, "num_buckets": 2, **data}
    assert loop.train(parse(sections), directory)
    return directory


def metrics(directory, split):
    found = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [row for row in found if row["split"] == split]


def untimed(row):
    timed = ("seconds", "tokens_per", "bytes", "num_comp")
    return {name: row[name] for name in row if not any(t in name for t in timed)}


def test_a_run_compiles_once_for_each_shape_and_learns(finished):
    train = metrics(finished, "train")
    counts = [row["num_compilations"] for row in train if "num_compilations" in row]
    assert counts == [2]  # both before the first step, none in mid-run
    assert len([row for row in train if "compile_seconds" in row]) == 1
    assert train[0]["num_compilations"] == 2
    assert all(0 <= row["padding"] < 0.6 for row in train)
    held_out = metrics(finished, "valid")[-1], metrics(finished, "test")[-1]
    for row in held_out:
        assert {"loss", "accuracy", "macro_f1", "matthews"} <= row.keys()
        assert not {"perplexity", "bits_per_byte", "confusion"} & row.keys()
        assert row["accuracy"] > 0.8
    saved = json.loads((finished / "config.json").read_text())
    assert saved["task"]["labels"] == ["neg", "pos"]
    assert saved["model"]["num_labels"] == 2


@pytest.mark.slow
def test_a_run_that_was_stopped_equals_one_that_was_not(make, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert loop.train(make("model.dropout=0.1"), whole)
    for num_steps in (12, 24):
        config = make("model.dropout=0.1", f"num_steps={num_steps}")
        assert loop.train(config, parts)
    a, b = ([*map(untimed, metrics(d, "train"))] for d in (whole, parts))
    assert a == b
    last = [untimed(metrics(d, "test")[-1]) for d in (whole, parts)]
    assert last[0] == last[1]
    report.after_training(make(), whole)


def test_other_labels_are_another_run(make, finished, tmp_path):
    assert loop.train(make("num_steps=2"), tmp_path)
    with pytest.raises(UserError, match=r"config\.task\.labels was .*holds|labels"):
        loop.train(make("num_steps=3", "task.labels=('pos','neg')"), tmp_path)


def test_evaluation_is_exact_whatever_buckets_and_mesh(finished, capsys):
    expected = [untimed(metrics(finished, s)[-1]) for s in ("valid", "test")]
    for flags in ([], ["--config.data.num_buckets=1"], ["--config.eval.batch_size=40"]):
        assert main.main(["eval", f"--workdir={finished}", *flags]) == 0
        found = map(json.loads, capsys.readouterr().out.splitlines())
        for row, before in zip(found, expected, strict=True):
            for name in ("loss", "accuracy", "macro_f1", "matthews"):
                assert row[name] == pytest.approx(before[name], 1e-5, 1e-6), name


def test_eval_reads_other_text_with_the_labels_of_the_run(finished, files, tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text('{"text": "good", "label": "pos"}\n')
    overrides = [f"data.valid_path={path}", "data.test_path="]
    (row,) = evaluate_workdir(finished, step=None, overrides=overrides)
    assert row["accuracy"] in (0.0, 1.0)
    path.write_text('{"text": "good", "label": "posh"}\n')
    with pytest.raises(UserError, match=r"label 'posh': not seen.*mean 'pos'"):
        next(evaluate_workdir(finished, step=None, overrides=overrides))


def predict(workdir, source, target, *flags):
    files = [f"--input={source}", f"--output={target}"]
    return main.main(["predict", f"--workdir={workdir}", *files, *flags])


def test_predictions_keep_the_order_and_resume(
    finished, files, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(predict_file, "_BLOCK_SIZE", 8)
    source, whole = files / "test.jsonl", tmp_path / "whole.jsonl"
    assert predict(finished, source, whole) == 0
    answers = [*map(json.loads, whole.read_text().splitlines())]
    examples = [*map(json.loads, source.read_text().splitlines())]
    lm = lmjax.load(finished)
    for example, answer in zip(examples, answers, strict=True):
        (alone,) = lm.predict([example["text"]])
        assert alone["label"] == answer["label"]
        for label, probability in answer["probabilities"].items():
            assert alone["probabilities"][label] == pytest.approx(probability, abs=1e-5)
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    right = np.mean(
        [a["label"] == e["label"] for a, e in zip(answers, examples, strict=True)]
    )
    assert right == pytest.approx(metrics(finished, "test")[-1]["accuracy"])
    before = whole.read_bytes()
    monkeypatch.setattr(
        predict_file, "restore_language_model", None
    )  # what is there needs no model
    assert predict(finished, source, whole) == 0
    assert "has all 19 predictions" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(predict_file, "_BLOCK_SIZE", 8)
    whole.write_bytes(before[:-300])  # cut off within a line, and within eight
    assert predict(finished, source, whole) == 0
    assert whole.read_bytes() == before


def test_user_errors_in_examples_to_predict(finished, tmp_path, capsys):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "good"}\n{"txt": "bad"}\n{"text": ""}\nx\n')
    assert predict(finished, source, target) == 2
    said = capsys.readouterr().err
    assert "in.jsonl:2: config.data.fields.text = 'text': no such field" in said
    assert said.count("\n") == 1
    assert predict(finished, source, target, "--skip_bad") == 0
    lines = [*map(json.loads, target.read_text().splitlines())]
    assert ["label" in line for line in lines] == [True, False, False, False]
    assert "in.jsonl:4: not JSON" in lines[3]["error"]
    source.write_text('{"text": "good"}\n')
    assert predict(finished, source, target) == 2
    assert "input was '" in capsys.readouterr().err
    texts = tmp_path / "in.txt"
    texts.write_text("good\n")
    assert predict(finished, texts, tmp_path / "texts.jsonl") == 2
    said = capsys.readouterr().err
    assert "in.txt:1: not JSON" in said and "--format=text" in said
    assert predict(finished, texts, tmp_path / "texts.jsonl", "--format=text") == 0
    assert predict(finished, source, source) == 2
    assert predict(finished, tmp_path / "none", target) == 2
    lm = lmjax.load(finished)
    with pytest.raises(UserError, match=r"examples\[1\]: 'text' is empty"):
        lm.predict(["good", " "])
    with pytest.raises(UserError, match="must be a mapping of fields"):
        lm.predict([3])
    assert lm.predict([]) == []


def test_every_leaf_of_labelled_data_is_read(make, tmp_path, watch_leaves):
    config = make("num_steps=2", "data.fields.pair=more")
    leaves, read = watch_leaves(config)
    loop.train(config, tmp_path)
    wanted = {leaf for leaf in leaves if leaf[0] == "ClassifyConfig"}
    wanted |= {("DataConfig", n) for n in ("fields", "on_bad_example", "num_buckets")}
    wanted |= {("FieldsConfig", name) for name in ("text", "pair", "label")}
    assert wanted <= leaves
    assert not wanted - read


@pytest.mark.slow
def test_a_tagger_learns_evaluates_and_predicts(make, tmp_path):
    library = pytest.importorskip("seqeval.metrics")
    rng = random.Random(0)
    for split, num in (("train", 90), ("valid", 21)):
        lines = []
        for _ in range(num):
            for word in rng.choices(
                ["Ann Lee", "Ulm", "met", "in"], k=rng.randint(1, 5)
            ):
                kind = {"Ann Lee": "PER", "Ulm": "LOC"}.get(word)
                for i, part in enumerate(word.split()):
                    lines.append(f"{part} {'BI'[i] + '-' + kind if kind else 'O'}")
            lines.append("")
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    flags = {
        "model.kind": "encoder",
        "task.kind": "tag",
        "num_steps": 60,
        "eval.every_steps": 60,
        "checkpoint.best_metric": "f1",
        "data.source": "conll",
        "data.columns": "('tokens','tags')",
        "data.path": tmp_path / "train.txt",
        "data.valid_path": tmp_path / "valid.txt",
        "data.test_path": "",
        "data.length": 16,  # many sentences are longer
        "mesh.data": 4,
        "mesh.fsdp": 2,
    }
    run = tmp_path / "run"
    assert loop.train(make(*(f"{k}={v}" for k, v in flags.items())), run)
    last = metrics(run, "valid")[-1]
    assert {"loss", "accuracy", "precision", "recall", "f1"} <= last.keys()
    assert last["f1"] > 0.9
    (again,) = evaluate_workdir(run, step=None, overrides=["data.num_buckets=1"])
    assert again["f1"] == last["f1"]
    lm = lmjax.load(run)
    answers = lm.predict([{"tokens": ["Ann", "Lee", "met"]}, "in Ulm"])
    assert [a["tags"] for a in answers] == [["B-PER", "I-PER", "O"], ["O", "B-LOC"]]
    texts = (tmp_path / "valid.txt").read_text().strip().split("\n\n")
    cells = [[line.split() for line in text.split("\n")] for text in texts]
    true = [[tag for _, tag in sentence] for sentence in cells]
    found = lm.predict([" ".join(word for word, _ in sentence) for sentence in cells])
    given = [answer["tags"] for answer in found]
    assert library.f1_score(true, given) == pytest.approx(last["f1"])
    assert library.accuracy_score(true, given) == pytest.approx(last["accuracy"])


@pytest.mark.parametrize("num_labels", [2, 3])
def test_fine_tuning_to_other_labels_draws_a_new_classifier(
    finished, make, tmp_path, caplog, num_labels
):
    examples = [*rows(40, 7)]
    for i, row in enumerate(examples):
        row["label"] = i % num_labels
    path = tmp_path / "other.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in examples))
    base = {**TINY, "model": {"dropout": 0.1, "kind": "encoder"}, "num_steps": 2}
    del base["tokenizer"]
    data = {"source": "jsonl", "length": 32, "path": str(path)}
    config = parse(
        {**base, "data": data, "init_from": str(finished)}, defaults=init_from.sections
    )
    assert config.model.num_labels == 0
    make()  # one device
    with caplog.at_level(logging.INFO, logger="lmjax"):
        assert loop.train(config, tmp_path / "run")
    assert "fresh: classifier.bias, classifier.kernel" in caplog.text
    labels = workdir.read_config(tmp_path / "run").task.labels
    assert labels == ("0", "1", "2")[:num_labels]
