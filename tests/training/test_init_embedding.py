"""Runs whose embeddings begin as word vectors."""

import contextlib
import json
import logging
import random

import jax
import numpy as np
import pytest

import lmjax
from lmjax.cli import main
from lmjax.config.experiment import parse
from lmjax.data import pipeline
from lmjax.data.tokenizers import vocabulary
from lmjax.data.tokenizers.word_vectors import WordVectors
from lmjax.errors import UserError
from lmjax.parallel import processes, sharding
from lmjax.training import init_embedding, init_from, loop
from lmjax.training.compiled import make_program
from lmjax.training.evaluate_workdir import evaluate_workdir

pytest.importorskip("tokenizers")

LABELS = {"pos": ["good", "nice", "GRAND"], "neg": ["bad", "dull", "Poor"]}
VECTORS = ["the", "good", "bad", "Good", "film", "grand", "poor", "unseen"]
DIM = 8
BASE = {
    "num_steps": 30,
    "batch_size": 8,
    "model": {
        "kind": "recurrent",
        "cell": "gru",
        "dim": DIM,
        "hidden_dim": 12,
        "num_layers": 1,
        "bidirectional": True,
        "max_length": 32,
    },
    "tokenizer": {"kind": "words", "vocab_size": 16},
    "task": {"kind": "classify"},
    "optim": {"learning_rate": 2e-2, "schedule": "constant", "weight_decay": 0.0},
    "eval": {"every_steps": 15},
    "mesh": {"data": 1},
    "log": {"every_steps": 5, "tensorboard": False},
}


def table():
    return np.random.default_rng(0).normal(size=(len(VECTORS), DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory, rng = tmp_path_factory.mktemp("texts"), random.Random(0)
    for split, count in (("train", 64), ("valid", 21), ("test", 19)):
        rows = []
        for _ in range(count):
            label = rng.choice(sorted(LABELS))
            words = rng.choices([*LABELS[label], "the", "film"], k=rng.randint(1, 9))
            text = " ".join([*words, rng.choice(LABELS[label])])
            rows.append(json.dumps({"text": text, "label": label}) + "\n")
        (directory / f"{split}.jsonl").write_text("".join(rows))
    rows = zip(VECTORS, table().tolist(), strict=True)
    lines = (" ".join([word, *map(str, row)]) + "\n" for word, row in rows)
    (directory / "vectors.txt").write_text("".join(lines))
    return directory


@pytest.fixture(scope="module")
def make(files):
    def build(*overrides, **sections):
        names = {"path": "train", "valid_path": "valid", "test_path": "test"}
        data = {leaf: str(files / f"{split}.jsonl") for leaf, split in names.items()}
        data |= {"source": "jsonl", "length": 16, "num_buckets": 2}
        given = {"data": data, "init_embedding_from": str(files / "vectors.txt")}
        return parse({**BASE, **given, **sections}, overrides)

    return build


@pytest.fixture
def begin(make, tmp_path):
    """Return a program's first state as drawn, and with the vectors in it."""

    def start(*overrides, size=1, **sections):
        config = pipeline.resolve_vocabulary(make(*overrides, **sections))
        datasets = pipeline.prepare(config, workdir=tmp_path)
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:size])
        with jax.set_mesh(mesh):
            program = make_program(config, mesh)
            drawn = init_from.initial_state(program)
            state = init_embedding.with_word_vectors(drawn, program, datasets)
            pieces = map(datasets.tokenizer.id_to_piece, range(16))
            return drawn, state, [*pieces]

    return start


def embedding(params):
    return np.asarray(params["embed"]["embedding"])


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 1), (1, 2, 2)])
def test_rows_are_the_vectors_of_their_words(begin, mesh):
    flags = [
        f"mesh.{n}={s}" for n, s in zip(("data", "fsdp", "tensor"), mesh, strict=True)
    ]
    drawn, state, words = begin(*flags, size=int(np.prod(mesh)))
    before, after = embedding(drawn.params), embedding(state.params)
    found = [i for i, w in enumerate(words) if w.lower() in VECTORS]
    assert {words[i] for i in found} == {"the", "film", "good", "bad", "GRAND", "Poor"}
    for i in found:
        name = words[i] if words[i] in VECTORS else words[i].lower()
        np.testing.assert_array_equal(after[i], table()[VECTORS.index(name)])
    others = np.setdiff1d(np.arange(16), found)
    spread = after[found].std() / before.std()
    np.testing.assert_allclose(after[others], before[others] * spread, rtol=1e-5)
    assert np.abs(after[others]).max() > 0.1
    laid = state.params["embed"]["embedding"].sharding
    assert laid == drawn.params["embed"]["embedding"].sharding
    assert len(laid.device_set) == np.prod(mesh)


def test_nothing_else_is_touched_and_the_average_begins_there_too(begin):
    drawn, state, _ = begin("optim.ema_decay=0.9")
    a, b = dict(drawn.params), dict(state.params)
    assert a.pop("embed").keys() == b.pop("embed").keys()
    assert jax.tree.all(jax.tree.map(lambda x, y: x is y, a, b))
    ema = state.ema_params["embed"]["embedding"]
    np.testing.assert_array_equal(ema, embedding(state.params))
    assert ema is not state.params["embed"]["embedding"]
    _, same, _ = begin("init_embedding_from=")
    np.testing.assert_array_equal(embedding(same.params), embedding(drawn.params))


def test_the_coverage_is_logged(begin, files, caplog):
    with caplog.at_level(logging.INFO, logger="lmjax"):
        _, _, words = begin()
    rows = map(json.loads, (files / "train.jsonl").read_text().splitlines())
    text = " ".join(row["text"] for row in rows).split()
    share = sum(word.lower() in VECTORS for word in text) / len(text)
    size = len([word for word in words if word])
    expected = (
        f"vectors for 6 of {size} words ({6 / size:.1%}; 2 by their lower case), "
    )
    assert expected + f"{share:.1%} of the training text" in caplog.text


def test_a_word_itself_comes_before_its_lower_case(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("apple 1\nApple 2\nPEAR 3\npear 4\npear 5\nplum 6\n")
    vectors = WordVectors(str(path), leaf="x")
    words = ["Apple", "apple", "APPLE", "pear", "PEAR", "fig", "Pear", "pear"]
    rows, found = init_embedding.match(vectors, words)
    assert rows[:, 0].tolist() == [2, 1, 1, 4, 3, 0, 4, 4]
    assert found.tolist() == [2, 2, 1, 2, 2, 0, 1, 2]


def test_the_space_mark_is_not_part_of_a_word():
    class Pieces:
        vocab_size = 3
        id_to_piece = staticmethod(["\u2581the", "the", "<unk>"].__getitem__)

    assert vocabulary.read_words(Pieces()) == ["the", "the", "<unk>"]


def test_vectors_that_cannot_be_used(begin, make, tmp_path):
    path = tmp_path / "other.txt"
    path.write_text("x " + "1 " * DIM + "\n")
    with pytest.raises(UserError, match=r"other\.txt': has none of the \d+ words"):
        begin(f"init_embedding_from={path}")
    with pytest.raises(UserError, match=r"numbers, but config\.model\.dim = 9"):
        loop.train(make("model.dim=9"), tmp_path / "a")
    with pytest.raises(UserError, match=r"config\.init_embedding_from = .*No such"):
        loop.train(make(f"init_embedding_from={tmp_path}/none"), tmp_path / "b")
    path.write_text("the " + "1 " * DIM + "\nx " + "1 " * (DIM - 1) + "y\n")
    with pytest.raises(UserError, match=r"other\.txt:2: 'x' is followed by text"):
        loop.train(make(f"init_embedding_from={path}"), tmp_path / "c")
    assert not (tmp_path / "c" / "tokenizer").exists(), "before anything is made"


def test_processes_read_together_and_the_first_counts(begin, monkeypatch):
    """What ends one of them in the file ends all; the text is counted for one line."""
    inside = []

    @contextlib.contextmanager
    def sync_errors():
        inside.append(True)
        yield
        inside.pop()

    def match(*arguments):
        assert inside
        return read(*arguments)

    read = init_embedding.match
    monkeypatch.setattr(init_embedding, "match", match)
    monkeypatch.setattr(init_embedding, "_coverage", None)
    monkeypatch.setattr(processes, "sync_errors", sync_errors)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    begin()


@pytest.fixture(scope="module")
def finished(make, tmp_path_factory):
    """A run on eight devices whose embeddings are frozen."""
    directory = tmp_path_factory.mktemp("finished")
    config = make("mesh.data=4", "mesh.fsdp=2", "optim.frozen=('embed.*',)")
    assert loop.train(config, directory)
    return directory


def metrics(directory, split):
    found = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [row for row in found if row["split"] == split]


def test_frozen_rows_stay_and_others_learn(finished, make, begin, tmp_path):
    _, state, _ = begin()
    start, lm = embedding(state.params), lmjax.load(finished)
    np.testing.assert_allclose(embedding(lm.params), start, rtol=1e-6)
    kernel = lambda params: np.asarray(params["classifier"]["kernel"])
    assert np.abs(kernel(lm.params) - kernel(state.params)).max() > 0.01
    assert metrics(finished, "test")[-1]["accuracy"] > 0.9
    assert lm.predict(["the GRAND film"])[0]["label"] == "pos"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
        assert loop.train(make("num_steps=3"), tmp_path / "tuned")
    tuned = embedding(lmjax.load(tmp_path / "tuned").params)
    assert np.abs(tuned - start).max() > 0.01


def test_evaluation_is_exact_whatever_the_buckets(finished):
    expected = [metrics(finished, split)[-1] for split in ("valid", "test")]
    for override in ("data.num_buckets=1", "eval.batch_size=40"):
        found = evaluate_workdir(finished, step=None, overrides=[override])
        for row, before in zip(found, expected, strict=True):
            for name in ("loss", "accuracy", "macro_f1"):
                assert row[name] == pytest.approx(before[name], 1e-5, 1e-6), name


def test_a_resumed_run_reads_no_vectors(finished, make, files, monkeypatch):
    monkeypatch.setattr(init_embedding, "WordVectors", None)
    config = make(
        "mesh.data=4", "mesh.fsdp=2", "optim.frozen=('embed.*',)", "num_steps=31"
    )
    assert loop.train(config, finished)


def test_a_classifier_generates_no_text(finished, capsys):
    assert main.main(["generate", f"--workdir={finished}", "--prompt=the film"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: config.model.num_labels = 2: it generates no text")
    assert error.count("\n") == 1
