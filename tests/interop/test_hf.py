"""Import and export of whole directories, and what mistakes leave on the disk."""

import json

import numpy as np
import pytest

from lmjax import models
from lmjax.cli.main import main
from lmjax.errors import UserError
from lmjax.interop import hf, labels
from lmjax.interop.dry_run import describe_import
from lmjax.interop.families import llama
from lmjax.interop.registry import read_config
from lmjax.interop.safetensors import Spec, open_tensors, write_tensors
from lmjax.types import named_leaves

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}


@pytest.fixture
def directory(tmp_path):
    """Return a directory with a tiny Llama, written without transformers."""
    config = read_config(llama.LLAMA, LLAMA, (), file="config.json")
    return save_random(tmp_path / "hf", LLAMA, config)


def save_random(directory, values, config, *, family=llama.LLAMA, scale=1.0):
    """Write a model with random weights into a directory."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(values))
    model = models.build(config.model, platform="cpu")
    leaves = named_leaves(model.shapes)
    rng = np.random.default_rng(0)
    arrays = {}
    table = labels.name_heads(family.table(config.model), config.model, config.task)
    for entry in table.entries_for(leaves):
        shape = leaves[entry.param].shape
        for _, name in entry.tensor_names(shape):
            size = entry.tensor_shape(entry.layer_shape(shape))
            arrays[name] = (scale * rng.standard_normal(size)).astype(np.float32)
    specs = {name: Spec(a.dtype, a.shape) for name, a in arrays.items()}
    write_tensors(directory, specs, arrays.values())
    return directory


def test_import_and_export_commands(directory, tmp_path, capsys):
    workdir, exported = tmp_path / "workdir", tmp_path / "exported"
    assert main(["import", f"--from={directory}", f"--workdir={workdir}"]) == 0
    printed = capsys.readouterr().out
    assert "LlamaForCausalLM" in printed and "4,944 parameters" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "workdir"]
    assert main(["export", f"--workdir={workdir}", f"--to={exported}"]) == 0
    a, b = open_tensors(directory), open_tensors(exported)
    assert a.tensors.keys() == b.tensors.keys()
    for name in a.tensors:
        np.testing.assert_array_equal(a.read(name), b.read(name))
    assert json.loads((exported / "config.json").read_text())["eos_token_id"] == 2
    half = tmp_path / "half"
    assert (
        main(["export", f"--workdir={workdir}", f"--to={half}", "--dtype=bfloat16"])
        == 0
    )
    assert {e.dtype.name for e in open_tensors(half).tensors.values()} == {"bfloat16"}
    assert sorted(p.name for p in half.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def test_a_dry_run_says_what_an_import_would_make(directory, tmp_path, capsys):
    extra = {"score.weight": np.zeros((2, 16), np.float32)}
    arrays = {
        n: open_tensors(directory).read(n) for n in open_tensors(directory).tensors
    }
    arrays |= extra
    specs = {name: Spec(a.dtype, a.shape) for name, a in arrays.items()}
    write_tensors(directory, specs, arrays.values())
    assert main(["import", f"--from={directory}", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    for part in ("llama (LlamaForCausalLM)", "4,944", "2 layers", "vocabulary 32"):
        assert part in printed
    assert "none, texts are token ids" in printed
    assert printed.splitlines()[-1].split() == ["dropped", "score.weight"]
    assert [path.name for path in tmp_path.iterdir()] == [directory.name]
    assert main(["import", f"--from={directory}"]) == 2
    assert "--workdir: must be given" in capsys.readouterr().err


def test_what_an_import_does_not_heed_is_told(directory, caplog):
    file = directory / "config.json"
    values = json.loads(file.read_text())
    describe_import(directory)
    assert not caplog.records
    file.write_text(json.dumps({**values, "auto_map": {"AutoModel": "own.Model"}}))
    settings = json.dumps({"tokenizer_class": "ByT5Tokenizer"})
    (directory / "tokenizer_config.json").write_text(settings)
    describe_import(directory)
    code, tokenizer = (record.getMessage() for record in caplog.records)
    assert "auto_map: code of its own is not run" in code
    assert "tokenizer_class = 'ByT5Tokenizer'" in tokenizer


def test_classes_with_labels_are_told_as_such(tmp_path, caplog):
    """A model without a head over the vocabulary is a base only without labels."""
    for name, text in (
        ("LlamaForSequenceClassification", "classify (LABEL_0, LABEL_1)"),
        ("LlamaModel", "none, a base"),
    ):
        caplog.clear()
        values = {**LLAMA, "architectures": [name], "tie_word_embeddings": False}
        config = read_config(llama.LLAMA, values, (), file="config.json")
        path = save_random(tmp_path / name, values, config)
        assert text in describe_import(path)
        assert ("a base model" in caplog.text) == (name == "LlamaModel")


def test_a_failed_import_leaves_nothing(directory, tmp_path, capsys):
    workdir = tmp_path / "workdir"
    command = ["import", f"--from={directory}", f"--workdir={workdir}"]

    def check_error(message, command=command):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert [path.name for path in tmp_path.glob("*")] == [directory.name]
        assert not list(tmp_path.glob(".*"))

    missing = ["import", f"--from={tmp_path}/nowhere", f"--workdir={workdir}"]
    check_error("nowhere: neither a directory", missing)
    file = directory / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-4])
    check_error("model.safetensors: truncated")
    file.write_bytes(content)
    path = directory / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"intermediate_size": 25}))
    check_error("config.json implies [25, 16]")
    path.write_text(json.dumps(values | {"num_hidden_layers": 1}))
    check_error("unexpected; ")
    path.unlink()
    check_error("config.json: cannot be read: No such file")


def test_existing_directories_are_not_changed(directory, tmp_path, capsys):
    workdir, exported = tmp_path / "workdir", tmp_path / "exported"
    workdir.mkdir()  # may exist if it is empty
    hf.import_hf(directory, workdir)
    before = sorted(workdir.rglob("*"))
    assert main(["import", f"--from={directory}", f"--workdir={workdir}"]) == 2
    assert f"--workdir={workdir}: exists" in capsys.readouterr().err
    assert sorted(workdir.rglob("*")) == before
    with pytest.raises(UserError, match=r"--dtype=float8.*float32"):
        hf.export_hf(workdir, exported, dtype="float8")
    with pytest.raises(UserError, match=r"--to=.*hf: exists"):
        hf.export_hf(workdir, directory)
    with pytest.raises(UserError, match="--step=3"):
        hf.export_hf(workdir, exported, step=3)
    assert not exported.exists()


def test_an_interrupted_import_is_cleaned_up(directory, tmp_path):
    part = tmp_path / ".workdir.part"
    (part / "checkpoints" / "0").mkdir(parents=True)
    (part / "config.json").write_text("{")
    hf.import_hf(directory, tmp_path / "workdir")
    assert not part.exists()
    assert "config.json" in {path.name for path in (tmp_path / "workdir").iterdir()}
    assert not (tmp_path / "workdir" / ".lock").exists()
