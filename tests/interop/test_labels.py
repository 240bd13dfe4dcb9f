"""Classifiers of Hugging Face directories: their labels become a task, and back."""

import json

import pytest
from references import reference, write

import lmjax
from lmjax.errors import UserError
from lmjax.interop import hf
from lmjax.run import workdir

pytest.importorskip("torch", reason="the reference runs on torch")
pytest.importorskip("transformers", reason="is the reference")


@pytest.mark.parametrize(
    ("name", "kind", "labels"),
    [
        ("bert_classify", "classify", ("bad", "fair", "good")),
        ("bert_tag", "tag", tuple(f"LABEL_{i}" for i in range(5))),
        ("roberta_tag", "tag", tuple(f"LABEL_{i}" for i in range(5))),
    ],
)
def test_labels_come_and_go(name, kind, labels, tmp_path):
    write(name, reference(name), tmp_path / "theirs")
    hf.import_hf(tmp_path / "theirs", tmp_path / "ours")
    config = workdir.read_config(tmp_path / "ours")
    assert config.task.kind == kind
    assert config.task.labels == labels
    hf.export_hf(tmp_path / "ours", tmp_path / "back")
    before, after = (
        json.loads((tmp_path / where / "config.json").read_text())
        for where in ("theirs", "back")
    )
    assert after["architectures"] == before["architectures"]
    assert tuple(after["id2label"].values()) == labels
    answers = lmjax.load(tmp_path / "ours").predict
    if kind == "classify":  # the tokenizer of tests reads ids
        assert answers([{"text": "3 4 5"}])[0]["label"] in labels
    else:
        assert set(answers([{"tokens": ["3", "4"]}])[0]["tags"]) <= {*labels}


@pytest.mark.parametrize("name", ["bert_span_qa", "roberta_span_qa"])
def test_what_finds_answers_comes_and_goes(name, tmp_path):
    write(name, reference(name), tmp_path / "theirs")
    hf.import_hf(tmp_path / "theirs", tmp_path / "ours")
    config = workdir.read_config(tmp_path / "ours")
    assert (config.task.kind, config.model.num_labels) == ("span_qa", 2)
    said = hf.export_hf(tmp_path / "ours", tmp_path / "back")
    after = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (
        after["architectures"]
        == [said.architecture]
        == [type(reference(name)).__name__]
    )
    context = " ".join(str(3 + i % 60) for i in range(300))  # the tokens of tests
    example = {"question": "3 4", "context": context}
    (answer,) = lmjax.load(tmp_path / "ours").predict([example])
    text, start = answer["answer"], answer["start"]
    assert text and context[start : start + len(text)] == text


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "numbered from 0, without a gap"),
        ({"id2label": ["a"]}, "must be an object of numbers and labels"),
        ({"problem_type": "regression"}, "problem_type = 'regression': allowed"),
    ],
)
def test_mistakes(change, why, tmp_path):
    write("bert_classify", reference("bert_classify"), tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=why):
        hf.import_hf(tmp_path / "theirs", tmp_path / "ours")
