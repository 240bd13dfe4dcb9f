"""A file of predictions from a file of examples."""

import json
import shutil

import jax
import pytest

from lmjax import models
from lmjax.config.experiment import parse
from lmjax.data.tokenizers.plain import Bytes
from lmjax.errors import UserError
from lmjax.inference import predict_file as predict_file_lib
from lmjax.inference.language_model import LanguageModel, load
from lmjax.inference.predict_file import predict_file
from lmjax.run import checkpoint, workdir

CONFIG = {
    "model": {
        "kind": "encoder",
        "dim": 16,
        "num_layers": 1,
        "num_heads": 2,
        "max_length": 32,
        "vocab_size": 258,
        "pooler": True,
    },
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "jsonl", "path": "gone.jsonl", "length": 16},
    "task": {"kind": "classify", "labels": ("neg", "pos")},
    "mesh": {"data": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the workdir of a classifier with random parameters."""
    directory = tmp_path_factory.mktemp("run")
    config = parse(CONFIG)
    model = models.build(config.model, platform="cpu")
    checkpoint.save_params(directory, jax.jit(model.init)(jax.random.key(0)))
    workdir.write_config(directory, config)
    Bytes(bos=True).save(directory / "tokenizer")
    return directory


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """Return a file of 11 examples of many lengths, predicted in blocks of 4."""
    monkeypatch.setattr(predict_file_lib, "_BLOCK_SIZE", 4)
    path = tmp_path / "examples.jsonl"
    lines = [json.dumps({"text": "word " * (1 + i * 5 % 11)}) for i in range(11)]
    path.write_text("\n".join([*lines[:3], "", *lines[3:]]) + "\n")
    return path


def read_lines(path):
    return [*map(json.loads, path.read_text().splitlines())]


def test_predictions_are_in_the_order_of_the_examples(run, examples, tmp_path):
    predict_file(run, examples, tmp_path / "out.jsonl")
    texts = [json.loads(line) for line in examples.read_text().splitlines() if line]
    expected = load(run).predict(texts)
    answers = read_lines(tmp_path / "out.jsonl")
    assert answers.pop(3) == {"error": f"{examples}:4: is blank"}
    for found, one in zip(answers, expected, strict=True):
        assert found["label"] == one["label"]
        assert found["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)


def test_every_line_has_an_answer_that_can_be_joined(run, tmp_path):
    rows = [{"id": "q1", "text": "a"}, None, {"id": 7, "text": "b", "n": [1]}, None]
    lines = ("" if row is None else json.dumps(row) for row in rows)
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join([*lines, "  "]) + "\n")

    def predict(name, **options):
        predict_file(run, path, tmp_path / name, **options)
        return read_lines(tmp_path / name)

    answers = predict("by_id")
    blank = ["error" in answer for answer in answers]
    assert blank == [False, True, False, True, True]
    assert [answer.get("id") for answer in answers] == ["q1", None, 7, None, None]
    assert all("label" in answer for answer in (answers[0], answers[2]))
    assert predict("inputs", keep="input")[2]["input"] == rows[2]
    assert predict("fields", keep="n,text", skip_bad=True)[2]["n"] == [1]
    with pytest.raises(UserError, match=r"in\.jsonl:1: --keep=nn: no field 'nn'"):
        predict("typo", keep="nn")
    texts = tmp_path / "in.txt"
    texts.write_bytes(b"\xef\xbb\xbfa\r\n\r\nb")
    predict_file(run, texts, tmp_path / "texts", format="text", keep="input")
    found = [line.get("input") for line in read_lines(tmp_path / "texts")]
    assert found == ["a", None, "b"]
    table = tmp_path / "in.tsv"
    table.write_text("id\ttext\n1\ta\n\n2\tb\n \t \n")
    predict_file(run, table, tmp_path / "table")
    rows = [*map(tuple, map(sorted, read_lines(tmp_path / "table")))]
    answer = ("id", "label", "probabilities")
    assert rows == [answer, ("error",), answer, ("error",)]


@pytest.mark.parametrize("explain", ["", "leave_one_out"])
def test_an_interrupted_file_is_resumed_to_the_same_bytes(
    run, examples, tmp_path, explain
):
    path = tmp_path / "out.jsonl"
    predict_file(run, examples, path, explain=explain)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    predict_file(run, examples, path, explain=explain)
    assert path.read_bytes() == whole
    if explain:
        lines = [line for line in read_lines(path) if "label" in line]
        assert len(lines) == 11
        assert all(line["explanation"]["target"] == line["label"] for line in lines)
        with pytest.raises(UserError, match="explain"):
            predict_file(run, examples, path)
        with pytest.raises(UserError, match=r"--explain=logit_lens: .* no tokens"):
            predict_file(run, examples, path, explain="logit_lens")


def test_what_cannot_be_explained_is_one_example(run, tmp_path, monkeypatch):
    source, path = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    texts = ["good", "other", "bad"]
    source.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    explain_one = LanguageModel.explain_prediction

    def explain(self, parsed, *args):
        if "other" in str(parsed):
            raise UserError("text: has no tokens to explain")
        return explain_one(self, parsed, *args)

    monkeypatch.setattr(LanguageModel, "explain_prediction", explain)
    with pytest.raises(UserError, match=r"in\.jsonl:2: text: has no tokens"):
        predict_file(run, source, path, explain="leave_one_out")
    path.unlink(missing_ok=True)
    predict_file(run, source, path, explain="leave_one_out", skip_bad=True)
    first, second, third = read_lines(path)
    assert "explanation" in first and "explanation" in third
    assert [*second] == ["error"] and "in.jsonl:2" in second["error"]


def test_a_complete_file_needs_no_model(run, examples, tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    predict_file(run, examples, path)
    whole = path.read_bytes()
    monkeypatch.setattr(predict_file_lib, "restore_language_model", None)
    predict_file(run, examples, path)
    assert path.read_bytes() == whole


def test_another_checkpoint_is_read_if_a_run_removes_the_newest(
    run, examples, tmp_path, monkeypatch
):
    predict_file(run, examples, tmp_path / "expected.jsonl")
    copy = shutil.copytree(run, tmp_path / "run")
    newest = copy / "checkpoints" / "1"
    shutil.copytree(copy / "checkpoints" / "0", newest)
    restore = predict_file_lib.restore_language_model

    def remove_and_restore(*args, step, **options):
        shutil.rmtree(newest, ignore_errors=True)
        return restore(*args, step=step, **options)

    monkeypatch.setattr(predict_file_lib, "restore_language_model", remove_and_restore)
    path = tmp_path / "out.jsonl"
    predict_file(copy, examples, path)
    assert path.read_bytes() == (tmp_path / "expected.jsonl").read_bytes()
    made_from = json.loads((tmp_path / "out.jsonl.made_from.json").read_text())
    assert made_from["step"] == 0


def test_the_config_and_the_checkpoints_are_opened_once(
    run, examples, tmp_path, monkeypatch
):
    calls = []

    def count(module, name):
        function = getattr(module, name)
        wrapped = lambda *args, **kw: calls.append(name) or function(*args, **kw)
        monkeypatch.setattr(module, name, wrapped)

    count(workdir, "read_config")
    count(checkpoint.Checkpoints, "__init__")
    count(checkpoint.Checkpoints, "close")
    predict_file(run, examples, tmp_path / "out.jsonl")
    assert sorted(calls) == ["__init__", "close", "read_config"]


def test_an_example_that_cannot_be_used(run, tmp_path):
    examples, path = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    examples.write_text('{"text": "good"}\n{"txt": "bad"}\nx\n')
    with pytest.raises(UserError, match=r"in\.jsonl:2: .*'text'.*--skip_bad"):
        predict_file(run, examples, path)
    predict_file(run, examples, path, skip_bad=True)
    first, second, third = read_lines(path)
    assert "label" in first
    assert "in.jsonl:2: " in second["error"] and "in.jsonl:3: " in third["error"]


def test_predictions_of_something_else_are_refused(run, examples, tmp_path):
    path = tmp_path / "out.jsonl"
    predict_file(run, examples, path)
    before = path.read_bytes()
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "x"}\n')
    for arguments, name in (
        ({"input": other}, "input was "),
        ({"overrides": ["data.length=8"]}, "config.data.length was 16, is 8"),
    ):
        with pytest.raises(UserError, match=name):
            predict_file(run, output=path, **{"input": examples, **arguments})
        assert path.read_bytes() == before


def test_files_that_cannot_be_used(run, examples, tmp_path):
    with pytest.raises(UserError, match=r"--output=.* is --input"):
        predict_file(run, examples, examples)
    with pytest.raises(UserError, match="--input"):
        predict_file(run, tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(UserError, match="--step=5: "):
        predict_file(run, examples, tmp_path / "out.jsonl", step=5)
    text = tmp_path / "in.txt"
    text.write_text("good film\n")
    with pytest.raises(UserError, match=r"in\.txt:1: not JSON.*--format=text"):
        predict_file(run, text, tmp_path / "text.jsonl")
    predict_file(run, text, tmp_path / "text.jsonl", format="text")
    assert len(read_lines(tmp_path / "text.jsonl")) == 1
