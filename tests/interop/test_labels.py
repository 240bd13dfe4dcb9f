"""Label heads of Hugging Face directories: they become a task, and back."""

import json
import re

import numpy as np
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
        ("roberta_classify", "classify", tuple(f"LABEL_{i}" for i in range(3))),
        ("llama_classify", "classify", ("bad", "fair", "good")),
        ("gpt2_tag", "tag", tuple(f"LABEL_{i}" for i in range(5))),
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


def add_tensors(directory, **shapes):
    """Add tensors of random values to the files of a model."""
    from safetensors.numpy import load_file, save_file

    file, rng = directory / "model.safetensors", np.random.default_rng(0)
    added = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    added = {name: array.astype(np.float32) for name, array in added.items()}
    save_file({**load_file(file), **added}, file)


POOLER = {"pooler.dense.weight": (32, 32), "pooler.dense.bias": (32,)}
TAGGER = {"classifier.weight": (5, 32), "classifier.bias": (5,)}


@pytest.mark.parametrize(
    ("name", "extra", "kind", "dropped"),
    [
        ("bert_tag", {f"bert.{k}": v for k, v in POOLER.items()}, "tag", "pooler"),
        ("roberta_tag", {f"roberta.{k}": v for k, v in POOLER.items()}, "tag", "pool"),
        ("bert_tag", {"qa_outputs.weight": (2, 32)}, "tag", "qa_outputs"),
        ("bert_classify", {"cls.predictions.bias": (67,)}, "classify", "cls.pred"),
        ("bert_span_qa", TAGGER, "span_qa", "classifier.bias"),
        ("bert", TAGGER, "causal_lm", "classifier.weight"),
        (
            "bert_classify",
            {"cls.predictions.decoder.weight": (67, 32)},
            "classify",
            "decoder.weight",
        ),
        ("bert_base", {"qa_outputs.bias": (2,)}, "causal_lm", "qa_outputs.bias"),
        ("bart", {"classification_head.dense.bias": (8,)}, "causal_lm", "head.dense"),
        ("llama_classify", {"lm_head.weight": (67, 32)}, "classify", "lm_head.weight"),
        ("gpt2", {"score.weight": (2, 32)}, "causal_lm", "score.weight"),
        ("llama_base", {"lm_head.weight": (67, 32)}, "causal_lm", "lm_head.weight"),
    ],
)
def test_architectures_decides_on_the_task(
    name, extra, kind, dropped, tmp_path, caplog
):
    save_reference(name, tmp_path)
    expected = hf.open_hf(tmp_path)
    add_tensors(tmp_path, **extra)
    checkpoint = hf.open_hf(tmp_path)
    assert checkpoint.config.task.kind == kind
    assert checkpoint.config == expected.config
    model, shardings = hf.build_model(checkpoint.config, None)
    checkpoint.load_params(model, shardings)
    assert f"{len(extra)} tensors" in caplog.text and dropped in caplog.text


@pytest.mark.parametrize("name", ["bert_tag", "llama_base", "bart", "t5"])
def test_weights_that_are_not_finite_are_refused_by_name(name, tmp_path):
    from safetensors.numpy import load_file, save_file

    save_reference(name, tmp_path)
    checkpoint = hf.open_hf(tmp_path)
    model, shardings = hf.build_model(checkpoint.config, None)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for value, tensor in zip((np.nan, np.inf, -np.inf), [*tensors][::9], strict=False):
        damaged = tensors[tensor].copy()
        damaged.flat[-1] = value
        save_file({**tensors, tensor: damaged}, file)
        with pytest.raises(UserError, match=rf"'{re.escape(tensor)}'.*not finite"):
            hf.open_hf(tmp_path).load_params(model, shardings)


@pytest.mark.parametrize(
    ("change", "labels"),
    [
        ({"id2label": None, "num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": None}, ("LABEL_0", "LABEL_1")),
    ],
)
def test_labels_without_names_are_numbered(change, labels, tmp_path):
    save_reference("bert_classify", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert hf.open_hf(tmp_path).config.task.labels == labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "id2label = .*from 0"),
        ({"id2label": ["a"]}, r"id2label = \['a'\]"),
        ({"id2label": {"0": "LABEL_0"}}, "id2label = .*a regression"),
        ({"id2label": None, "num_labels": 1}, "num_labels = 1: .*a regression"),
        (
            {"architectures": ["BertForMultipleChoice"]},
            "architectures = 'BertForMultipleChoice': not supported",
        ),
        ({"model_type": "roberta"}, "model_type = 'roberta': .*'bert'"),
        ({"architectures": "BertModel"}, "architectures = 'BertModel': expected a l"),
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
