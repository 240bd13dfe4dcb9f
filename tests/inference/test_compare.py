"""Models compared on one file."""

import json
import math

import jax
import numpy as np
import pytest

from lmjax import models
from lmjax.cli.main import main
from lmjax.config.experiment import parse
from lmjax.data.tokenizers.plain import Bytes
from lmjax.errors import UserError
from lmjax.inference import speed
from lmjax.inference.compare import compare
from lmjax.inference.language_model import load
from lmjax.run import checkpoint, workdir

SIZES = {"dim": 16, "num_layers": 1, "num_heads": 2, "max_length": 32}
KINDS = {
    "text": {
        "model": {"kind": "decoder"},
        "data": {"source": "text", "path": "gone.txt"},
    },
    "classify": {
        "model": {"kind": "encoder", "pooler": True},
        "data": {"source": "jsonl", "path": "gone.jsonl"},
        "task": {"kind": "classify", "labels": ("neg", "pos")},
    },
    "tag": {
        "model": {"kind": "encoder"},
        "data": {"source": "conll", "path": "gone.txt", "columns": ("tokens", "tags")},
        "task": {"kind": "tag", "labels": ("B-X", "I-X", "O")},
    },
    "seq2seq": {
        "model": {"kind": "encoder_decoder", "start_id": 256},
        "data": {"source": "jsonl", "path": "gone.jsonl", "target_length": 8},
        "task": {"kind": "seq2seq", "metrics": ("exact_match",)},
    },
}
DOCUMENTS = [
    "one line\nand another",
    "short",
    "a text that is much longer than the model can read at once, in two windows",
]
EXAMPLES = [
    {"text": "word " * (1 + i * 3 % 7), "label": ("neg", "pos")[i % 2]}
    for i in range(9)
]


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
    """Return what makes workdirs with random parameters, each once."""
    made = {}

    def make(kind, *, seed=0, bos=True):
        name = f"{kind}-{seed}-{bos}"
        if name not in made:
            directory = tmp_path_factory.mktemp(name)
            sections = KINDS[kind]
            model = {**SIZES, "vocab_size": 257 + bos, **sections["model"]}
            data = {"length": 16, **sections.get("data", {})}
            common = {"tokenizer": {"kind": "bytes"}, "mesh": {"data": 1}}
            config = parse({**sections, **common, "model": model, "data": data})
            network = models.build(config.model, platform="cpu")
            params = jax.jit(network.init)(jax.random.key(seed))
            # Far from uniform, so that models disagree.
            params = jax.tree.map(lambda x: x * 4, params)
            checkpoint.save_params(directory, params)
            workdir.write_config(directory, config)
            Bytes(bos=bos).save(directory / "tokenizer")
            made[name] = directory
        return made[name]

    return make


@pytest.fixture(autouse=True)
def no_speed(monkeypatch):
    """Leave out what takes most of the time; one test undoes this."""
    found = {"prefill": 9.0, "decode": None}
    monkeypatch.setattr(speed, "measure_writing", lambda *_: found)
    monkeypatch.setattr(speed, "measure_predicting", lambda *_: found)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "held_out.txt"
    path.write_text("\n\n".join(DOCUMENTS) + "\n")
    return path


@pytest.fixture
def examples(tmp_path):
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in EXAMPLES))
    return path


def values(model):
    return {name: metric["value"] for name, metric in model["metrics"].items()}


def test_language_models_are_scored_token_by_token(make_run, text):
    runs = [make_run("text"), make_run("text"), make_run("text", seed=1)]
    found = compare(runs, text)
    first, same, other = found["models"]
    scores = load(runs[0]).score(DOCUMENTS)
    nats = -sum(score["log_prob"] for score in scores)
    count = sum(score["num_tokens"] for score in scores)
    assert count == sum(map(len, DOCUMENTS))  # each byte is a token, the BOS is given
    assert found["num_units"] == 3
    assert values(first) == pytest.approx(
        {
            "loss": nats / count,
            "perplexity": math.exp(nats / count),
            "bits_per_byte": nats / count / math.log(2),
            "accuracy": values(first)["accuracy"],
        }
    )
    assert same["agreement"] == 1
    assert {*map(tuple, map(dict.values, same["differences"].values()))} == {(0, 0, 0)}
    assert 0 <= other["agreement"] < 1
    loss = other["differences"]["loss"]
    assert loss["value"] == pytest.approx(values(other)["loss"] - values(first)["loss"])
    assert loss["low"] <= loss["value"] <= loss["high"]
    params = load(runs[0]).params
    assert first["parameters"] == sum(x.size for x in jax.tree.leaves(params))
    assert first["bytes_in_memory"] == 4 * first["parameters"]
    assert 0 < first["bytes_on_disk"] < 2 * first["bytes_in_memory"]
    losses = [[*unit["losses"]] for unit in found["most_different"]]
    spread = [abs(c - a) for a, _, c in losses]
    assert spread == sorted(spread, reverse=True)
    assert all(a == b for a, b, _ in losses)


def test_models_of_several_tokenizers_are_compared_by_byte(make_run, text):
    found = compare([make_run("text"), make_run("text", bos=False)], text)
    _, other = found["models"]
    assert [*other["differences"]] == ["bits_per_byte"]
    assert other["agreement"] is None
    assert not found["most_different"]
    assert "bits_per_byte" in found["notes"][0]
    # Without a BOS the first byte of each document is neither scored nor counted.
    metrics = values(other)
    bits = metrics["loss"] / math.log(2)
    assert metrics["bits_per_byte"] == pytest.approx(bits)


@pytest.mark.slow
def test_classifiers_are_compared_by_example(make_run, examples):
    runs = [make_run("classify"), make_run("classify", seed=1)]
    first, other = compare(runs, examples)["models"]
    predicted = load(runs[0]).predict([example["text"] for example in EXAMPLES])
    pairs = [*zip(predicted, EXAMPLES, strict=True)]
    correct = [p["label"] == e["label"] for p, e in pairs]
    right = [p["probabilities"][e["label"]] for p, e in pairs]
    assert values(first)["accuracy"] == pytest.approx(np.mean(correct))
    assert values(first)["loss"] == pytest.approx(-np.log(right).mean(), rel=1e-3)
    assert {"macro_f1", "matthews"} < {*other["differences"]}


@pytest.mark.slow
def test_taggers_are_compared_by_spans_and_words(make_run, tmp_path):
    pytest.importorskip("seqeval")
    path = tmp_path / "test.txt"
    rows = [("Ann", "B-X"), ("Lee", "I-X"), ("sat", "O")]
    path.write_text("\n\n".join("\n".join(map(" ".join, rows[i:])) for i in range(3)))
    runs = [make_run("tag"), make_run("tag", seed=1)]
    found = compare(runs, path, format="conll")
    words = [[word for word, _ in rows[i:]] for i in range(3)]
    tags = [
        [
            tag
            for p in load(run).predict([{"tokens": w} for w in words])
            for tag in p["tags"]
        ]
        for run in runs
    ]
    true = [tag for i in range(3) for _, tag in rows[i:]]
    first, other = found["models"]
    assert values(first)["accuracy"] == pytest.approx(
        np.mean(np.array(tags[0]) == true)
    )
    assert other["agreement"] == pytest.approx(np.mean(np.array(tags[0]) == tags[1]))
    assert {"f1", "loss"} < {*other["differences"]}


@pytest.mark.slow
def test_writers_are_compared_by_their_texts(make_run, tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"source": "abc", "target": "ab"}, {"source": "d", "target": "e"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = make_run("seq2seq")
    found = compare([run, run], path)
    _, other = found["models"]
    assert other["agreement"] == 1
    assert {"loss", "exact_match"} < {*other["differences"]}


@pytest.mark.slow
def test_how_fast_models_read_and_write_is_measured(make_run, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(speed, "NUM_RUNS", 1)
    found = speed.measure_writing(load(make_run("text")), DOCUMENTS[2] * 9)
    assert found["prefill"] > 0
    assert found["decode"] is None or found["decode"] > 0
    lm = load(make_run("classify"))
    found = speed.measure_predicting(lm, lm.predictor.parse_all(EXAMPLES))
    assert found["prefill"] > 0
    assert found["decode"] is None


@pytest.mark.slow
def test_the_command_prints_and_writes_a_page(make_run, text, tmp_path, capsys):
    run = make_run("text")
    command = ["compare", str(run), str(run), f"--input={text}"]
    page = tmp_path / "page.html"
    assert main([*command, f"--output={page}"]) == 0
    printed = capsys.readouterr().out
    for name in (
        "on disk",
        "prefill, tokens/s",
        "agreement",
        "bits_per_byte",
        "100.00%",
    ):
        assert name in printed
        assert name in page.read_text()
    pytest.importorskip("matplotlib")
    picture = tmp_path / "picture.svg"
    assert main([*command, "--json", f"--output={picture}"]) == 0
    assert json.loads(capsys.readouterr().out)["units"] == "documents"
    assert "</svg>" in picture.read_text()


def test_one_document_has_no_intervals(make_run, tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("one line")
    found = compare([make_run("text")] * 2, path)
    assert found["models"][1]["differences"]["loss"]["low"] is None
    assert "interval" in found["notes"][0]


def test_what_cannot_be_compared_is_one_line(make_run, text, examples, tmp_path):
    lm, classifier = make_run("text"), make_run("classify")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": "good"}\n')
    (tmp_path / "unlabelled.jsonl").write_text('{"text": "a"}\n')
    cases = [
        ([lm], text, "two"),
        ([lm, classifier], text, "config.task.kind = 'classify'.*'causal_lm'"),
        ([lm, tmp_path / "none"], text, f"{tmp_path}/none: holds no run"),
        ([lm, lm], tmp_path / "empty.txt", "--input=.*empty.txt: has no text"),
        ([lm, lm], tmp_path / "gone.txt", "--input=.*gone.txt: no such file"),
        ([lm, lm], tmp_path, "--input=.*: no such file"),
        ([classifier] * 2, tmp_path / "empty.jsonl", "empty.jsonl.*no example"),
        ([classifier] * 2, tmp_path / "bad.jsonl", "bad.jsonl:1: label 'good'"),
        (
            [classifier] * 2,
            tmp_path / "unlabelled.jsonl",
            "unlabelled.jsonl:1: .*label",
        ),
        ([classifier] * 2, text, "held_out.txt:1: not JSON"),
        ([make_run("seq2seq"), make_run("tag")], examples, "config.task.kind"),
    ]
    for runs, file, match in cases:
        with pytest.raises(UserError, match=match) as caught:
            compare(runs, file)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="--format=jsonl: must be text"):
        compare([lm, lm], text, format="jsonl")


@pytest.mark.parametrize("output", ["x.gif", "gone/x.png"])
def test_a_page_that_cannot_be_written_is_found_first(output, tmp_path, capsys):
    command = ["compare", "a", "b", "--input=c", f"--output={tmp_path / output}"]
    assert main(command) == 2
    assert "--output=" in capsys.readouterr().err
