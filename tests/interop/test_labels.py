"""Label heads of Hugging Face directories: they become a task, and back."""

import json

import pytest
from references import save_reference

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
def test_labels_are_imported_and_exported(name, kind, labels, tmp_path):
    save_reference(name, tmp_path / "hf")
    hf.import_hf(tmp_path / "hf", tmp_path / "workdir")
    config = workdir.read_config(tmp_path / "workdir")
    assert config.task.kind == kind
    assert config.task.labels == labels
    hf.export_hf(tmp_path / "workdir", tmp_path / "exported")
    before, after = (
        json.loads((tmp_path / where / "config.json").read_text())
        for where in ("hf", "exported")
    )
    assert after["architectures"] == before["architectures"]
    assert tuple(after["id2label"].values()) == labels
    predict = lmjax.load(tmp_path / "workdir").predict
    if kind == "classify":  # texts are token ids
        assert predict([{"text": "3 4 5"}])[0]["label"] in labels
    else:
        assert set(predict([{"tokens": ["3", "4"]}])[0]["tags"]) <= {*labels}


@pytest.mark.parametrize("name", ["bert_span_qa", "roberta_span_qa"])
def test_span_qa_heads_are_imported_and_exported(name, tmp_path):
    reference = save_reference(name, tmp_path / "hf")
    hf.import_hf(tmp_path / "hf", tmp_path / "workdir")
    config = workdir.read_config(tmp_path / "workdir")
    assert (config.task.kind, config.model.num_labels) == ("span_qa", 2)
    summary = hf.export_hf(tmp_path / "workdir", tmp_path / "exported")
    after = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert after["architectures"] == [summary.architecture]
    assert summary.architecture == type(reference).__name__
    context = " ".join(str(3 + i % 60) for i in range(300))  # texts are token ids
    example = {"question": "3 4", "context": context}
    (answer,) = lmjax.load(tmp_path / "workdir").predict([example])
    text, start = answer["answer"], answer["start"]
    assert text and context[start : start + len(text)] == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "id2label = .*from 0"),
        ({"id2label": ["a"]}, r"id2label = \['a'\]"),
        (
            {"problem_type": "regression"},
            "problem_type = 'regression': .*'single_",
        ),
    ],
)
def test_invalid_labels(change, message, tmp_path):
    save_reference("bert_classify", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        hf.import_hf(tmp_path / "hf", tmp_path / "workdir")
