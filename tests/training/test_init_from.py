"""Runs that begin with the parameters of another."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest

from lmjax.config.experiment import MeshConfig, parse
from lmjax.errors import UserError
from lmjax.parallel import sharding
from lmjax.training import init_from, loop
from lmjax.training.compiled import make_program
from lmjax.types import named_leaves

BASE = {
    "num_steps": 3,
    "batch_size": 4,
    "model": {"dim": 16, "num_layers": 2, "num_heads": 2, "max_length": 32},
    "tokenizer": {"kind": "bytes"},
    "data": {"source": "text", "document": "line", "length": 16},
    "optim": {"learning_rate": 1e-2},
    "mesh": {"data": 1},
    "log": {"every_steps": 1, "tensorboard": False},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n".join(f"{i} times {i} is {i * i}" for i in range(200)))
    return path


@pytest.fixture(scope="module")
def origin(corpus, tmp_path_factory):
    """Return the workdir of a finished run."""
    directory = tmp_path_factory.mktemp("origin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
        loop.train(parse(BASE, [f"data.path={corpus}"]), directory)
    return directory


@pytest.fixture
def begin(origin, corpus):
    """Return the program of a config that begins with `origin`, and its first state."""

    def make(*overrides, source=None, model=None, size=1):
        sections = {**BASE, "model": model or {}, "init_from": str(source or origin)}
        sections |= {"tokenizer": {}}
        given = [f"data.path={corpus}", *overrides]
        config = parse(sections, given, defaults=init_from.sections)
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:size])
        with jax.set_mesh(mesh):
            program = make_program(config, mesh)
            return program, init_from.initial_state(program)

    return make


@pytest.fixture(scope="module")
def trained(origin):
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    opened = init_from.open_pretrained(str(origin))
    from lmjax import models

    model = models.build(opened.config.model, platform="cpu")
    return named_leaves(opened.read(model, mesh))


def test_model_and_tokenizer_are_taken_over(begin, trained, origin):
    program, state = begin()
    assert program.config.model.dim == 16
    assert program.config.tokenizer.path == str(origin / "tokenizer")
    assert int(state.step) == 0
    found = named_leaves(state.params)
    assert found.keys() == trained.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, trained[name])


def test_on_another_mesh_it_is_the_same(begin, trained):
    _, state = begin("mesh.fsdp=2", "mesh.tensor=2", "mesh.data=1", size=4)
    kernel = state.params["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    assert len(kernel.sharding.device_set) == 4
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    np.testing.assert_array_equal(kernel, trained["decoder.blocks.mlp.up.kernel"])


def test_the_vocabulary_grows_and_a_new_head_is_fresh(begin, trained, caplog):
    with caplog.at_level(logging.INFO, logger="lmjax"):
        _, state = begin("model.vocab_size=300", "model.tie_embeddings=false")
    table = np.asarray(state.params["embed"]["embedding"])
    np.testing.assert_array_equal(table[:258], trained["embed.embedding"])
    assert table.shape == (300, 16) and table[258:].std() > 0.01
    assert "fresh: head.embedding" in caplog.text
    assert "grown: embed.embedding" in caplog.text


def test_adapters_are_initialized_and_only_they_train(begin, trained):
    program, state = begin("model.lora.rank=2")
    kernel = state.params["decoder"]["blocks"]["attention"]["query"]
    np.testing.assert_array_equal(
        kernel["kernel"], trained["decoder.blocks.attention.query.kernel"]
    )
    assert not np.asarray(kernel["lora_b"]).any()
    assert sum(jax.tree.leaves(program.optimizer.trainable_mask)) == 4


def test_adapters_are_merged_when_the_new_run_has_none(
    begin, corpus, origin, tmp_path, monkeypatch
):
    program, _ = begin("model.lora.rank=2")
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    loop.train(program.config, tmp_path)
    monkeypatch.undo()
    plain, state = begin("model.lora.rank=0", source=tmp_path)
    assert not plain.model.config.lora.rank
    query = state.params["decoder"]["blocks"]["attention"]["query"]
    assert query.keys() == {"kernel"}
    _, before = begin()
    change = (
        query["kernel"]
        - (before.params["decoder"]["blocks"]["attention"]["query"]["kernel"])
    )
    assert 0 < np.abs(change).max() < 1.0
    rank = np.linalg.matrix_rank(np.asarray(change).reshape(2, 16, 16), tol=1e-5)
    assert (rank <= 2).all()


def test_a_run_resumes_without_its_pretrained_checkpoint(begin, tmp_path, monkeypatch):
    """What init_from names may change or go away afterwards."""
    program, _ = begin()
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    loop.train(program.config, tmp_path)
    longer = dataclasses.replace(program.config, num_steps=5)
    monkeypatch.setattr(init_from, "initial_state", None)
    assert loop.train(longer, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(x)["step"] for x in lines if '"train"' in x]
    assert steps == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.dim=32", "model.head_dim=0"], ["attention.key.kernel", "(2, 32, "]),
        (["model.num_layers=3"], ["decoder.blocks", "(3, ", "(2, "]),
        (["model.use_bias=true"], ["has no decoder.blocks", ".bias"]),
        (["model.vocab_size=10"], ["(10, 16)", "(258, 16)"]),
        (["model.gated=false"], ["has decoder.blocks.mlp.gate.kernel"]),
    ],
)
def test_another_shape_is_refused_by_name(begin, overrides, parts):
    with pytest.raises(UserError) as error:
        begin(*overrides)
    for part in parts:
        assert part in str(error.value)


def test_adapters_of_another_rank_are_merged_and_initialized(
    begin, tmp_path, monkeypatch
):
    program, _ = begin("model.lora.rank=2")
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    loop.train(program.config, tmp_path)
    monkeypatch.undo()
    same, goes_on = begin(source=tmp_path)
    assert same.config.model.lora.rank == 2
    query = lambda state: state.params["decoder"]["blocks"]["attention"]["query"]
    assert np.asarray(query(goes_on)["lora_b"]).any()
    other, anew = begin("model.lora.alpha=3", source=tmp_path)
    assert other.config.model.lora.rank == 2, "the leaf beside is still the origin's"
    assert not np.asarray(query(anew)["lora_b"]).any()
    _, plain = begin("model.lora.rank=0", source=tmp_path)
    np.testing.assert_array_equal(query(anew)["kernel"], query(plain)["kernel"])


def test_a_started_run_does_not_open_its_pretrained_checkpoint(
    begin, tmp_path, monkeypatch
):
    program, _ = begin()
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    loop.train(program.config, tmp_path / "run")
    monkeypatch.setattr(init_from, "open_pretrained", None)
    path = program.config.init_from
    found = init_from.sections(path, workdir=tmp_path / "run")
    assert found["model"]["dim"] == 16
    assert found["tokenizer"]["path"] == program.config.tokenizer.path


def test_a_new_head_must_be_trainable(begin):
    with pytest.raises(UserError, match=r"head\.embedding is new.*add 'head\.\*'"):
        begin("model.lora.rank=2", "model.tie_embeddings=false")
    learning = "optim.trainable=('head.*',)"
    program, _ = begin("model.lora.rank=2", "model.tie_embeddings=false", learning)
    assert program.optimizer.trainable_mask["head"]["embedding"]
    assert not program.optimizer.trainable_mask["embed"]["embedding"]


def test_changes_of_the_model_config_are_logged(begin, caplog):
    with caplog.at_level(logging.INFO, logger="lmjax"):
        begin("model.activation=gelu")
    assert "config.model.activation was 'silu', is 'gelu'" in caplog.text


def test_a_directory_without_a_model(begin, tmp_path):
    with pytest.raises(UserError, match=r"config\.init_from=.*neither a directory"):
        begin(source=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json"):
        begin(source=tmp_path)
