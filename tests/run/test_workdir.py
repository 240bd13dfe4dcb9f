"""The config of a run: which leaves may be overridden when its model is used."""

import contextlib
import socket

import pytest

from lmjax.config.experiment import parse
from lmjax.errors import UserError
from lmjax.run import workdir

SECTIONS = {
    "model": {"kind": "encoder", "pooler": True, "vocab_size": 300, "max_length": 64},
    "tokenizer": {"kind": "bytes", "mask": True},
    "data": {"source": "jsonl", "path": "x", "length": 32},
    "task": {"kind": "classify", "labels": ("a", "b")},
}


@pytest.fixture
def run(tmp_path):
    workdir.write_config(tmp_path, parse(SECTIONS))
    return tmp_path


def test_data_and_what_a_run_may_resume_with_are_overridden(run):
    overrides = ["data.fields.text=review", "data.source=csv", "data.length=16"]
    config = workdir.read_config(run, [*overrides, "mesh.fsdp=2", "eval.num_batches=3"])
    assert (config.data.fields.text, config.data.length) == ("review", 16)
    assert (config.mesh.fsdp, config.eval.num_batches) == (2, 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dropout=0.5", "config.model.dropout was 0.0, is 0.5"),
        ("task.labels=('b','a')", r"config.task.labels was \('a', 'b'\), is \('b', "),
        ("tokenizer.bos=False", "config.tokenizer.bos was True, is False"),
        ("data.length=99", "config.data.length = 99: must be at most config.model.max"),
        ("data.fields.txt=a", "config.data.fields.txt: no such field"),
    ],
)
def test_leaves_that_the_trained_run_fixes(run, override, message):
    with pytest.raises(UserError, match=message):
        workdir.read_config(run, [override])


def test_an_imported_model_may_be_given_a_task(tmp_path):
    data = {"source": "none", "length": 32}
    imported = {**SECTIONS, "data": data, "task": {"kind": "causal_lm"}}
    workdir.write_config(tmp_path, parse(imported))
    overrides = ["task.kind=masked_lm", "data.source=text", "data.path=x"]
    config = workdir.read_config(tmp_path, overrides)
    assert (config.task.kind, config.data.source) == ("masked_lm", "text")
    with pytest.raises(UserError, match=r"config\.model\.dropout was 0\.0"):
        workdir.read_config(tmp_path, [*overrides, "model.dropout=0.5"])


def test_a_process_that_sees_another_directory_names_its_host(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "_VISIBLE_SECONDS", 0.1)
    processes = workdir.processes
    monkeypatch.setattr(processes, "several_processes", lambda: True)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "sync_errors", contextlib.nullcontext)
    monkeypatch.setattr(processes, "allgather_strings", lambda own: ["first", own])
    message = f"--workdir={tmp_path}: host {socket.gethostname()} does not see"
    with pytest.raises(UserError, match=message), workdir.hold(tmp_path):
        pass
    (tmp_path / workdir._MARKER).write_text("first")
    with workdir.hold(tmp_path):
        pass
