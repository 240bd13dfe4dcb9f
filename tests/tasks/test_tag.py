"""Tagging by recurrent networks, with the casing of words, on any mesh."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from lmjax.config.data import FieldsConfig
from lmjax.config.experiment import parse
from lmjax.config.task import CASES
from lmjax.data.features import classify, tag
from lmjax.data.features.registry import make_features
from lmjax.data.features.tag import Sentence, classify_case
from lmjax.data.tokenizers.plain import Bytes
from lmjax.parallel import sharding
from lmjax.parallel.batch import put_batch
from lmjax.training.compiled import make_program

LABELS = ("B-PER", "I-PER", "O")
SENTENCES = [
    (("Ann", "met", "Bo", "Lee"), (0, 2, 0, 1)),
    (("EU", "is", "2"), (2, 2, 2)),
    (("iPad",), (2,)),
    (("A", "man", ",", "Cy"), (2, 2, 2, 0)),
]
MODEL = {
    "kind": "recurrent",
    "vocab_size": 264,
    "dim": 16,
    "hidden_dim": 12,
    "num_layers": 2,
    "bidirectional": True,
    "num_token_types": len(CASES),
    "max_length": 32,
}
SGD = {"name": "sgd", "learning_rate": 0.1, "clip_norm": 0.0, "schedule": "constant"}
ADAM = {"learning_rate": 0.02, "schedule": "constant", "weight_decay": 0.0}


@functools.cache
def make(mesh=(1, 1, 1), *, kind="tag", adam=False):
    """Return the program of a labelled task, and one batch of it."""
    labelled = {"kind": kind, "labels": LABELS}
    config = parse(
        {
            "num_steps": 80,
            "batch_size": 4,
            "num_microbatches": 1 if adam else 2,
            "model": MODEL | ({"summary": "max"} if kind == "classify" else {}),
            "tokenizer": {"kind": "bytes"},
            "data": {
                "source": {"tag": "conll", "classify": "jsonl"}[kind],
                "path": "x",
                "length": 24,
            },
            "task": labelled | ({"casing": True} if kind == "tag" else {}),
            "optim": ADAM if adam else SGD,
            "eval": {"batch_size": 4},
            "mesh": dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)),
        }
    )
    features = make_features(config)
    parsed = [
        Sentence(words, ids)
        if kind == "tag"
        else classify.LabelledText((" ".join(words),), ids[0])
        for words, ids in SENTENCES
    ]
    rows = [row.columns for (row,) in features.encode(parsed, Bytes(bos=True))]
    batch = features.batch([*rows[:3], None] if not adam else rows, length=24)
    devices = jax.devices()[: int(np.prod(mesh))]
    return make_program(config, sharding.make_mesh(config.mesh, devices)), batch


def test_the_case_of_words():
    words = ["and", "EU", "Ann", "iPad", "McAdam", "A", "I'm", "U.S.", "3", "3rd", ","]
    words += ["É", "ÉTÉ", "日本"]
    kinds = [CASES[classify_case(word)] for word in words]
    assert kinds == [
        *("lower", "upper", "title", "mixed", "mixed", "title", "title", "upper"),
        *("none", "lower", "none", "title", "upper", "none"),
    ]


def test_batches_have_the_declared_shapes_and_types_of_words():
    program, batch = make()
    shapes = {
        n: (s.shape, s.dtype) for n, s in program.task.batch_shapes(4, 24).items()
    }
    assert shapes == {name: (x.shape, x.dtype) for name, x in batch.items()}
    here = batch["weights"][0] > 0
    types = [CASES[i] for i in batch["token_types"][0, here]]
    assert types == ["title", "lower", "title", "title"]
    text = bytes(batch["tokens"][0, 1:][: len(" ".join(SENTENCES[0][0]))].tolist())
    of_word = batch["token_types"][0, 1 : 1 + len(SENTENCES[0][0][0])]
    assert text.decode().startswith(SENTENCES[0][0][0])
    assert {CASES[i] for i in of_word} == {"title"}


def test_without_casing_all_words_are_of_one_type():
    plain = tag.TagFeatures(
        fields=FieldsConfig(), labels=LABELS, length=24, repair=True
    )
    row = plain.encode([Sentence(*SENTENCES[0])], Bytes(bos=True))[0][0]
    assert not row.columns["types"].any()
    assert plain.identity() != dataclasses.replace(plain, casing=True).identity()


def test_a_tiny_tagger_overfits():
    program, batch = make(adam=True)
    with jax.set_mesh(program.mesh):
        state = program.init(jax.random.key(0))
        for _ in range(80):
            state, metrics = program.train_step(state, batch)
        total, weight = metrics["loss"]
        assert weight == sum(len(words) for words, _ in SENTENCES)
        assert total / weight < 0.1
        predict = functools.partial(program.task.predict, program.model)
        given = jax.jit(predict)(state.params, batch)["tags"]
    here = batch["weights"] > 0
    np.testing.assert_array_equal(given[here], batch["labels"][here])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tag", "classify"])
@pytest.mark.parametrize("mesh", [(2, 1, 1), (1, 2, 2)])
def test_every_mesh_computes_the_same(assert_close, kind, mesh):
    """Gradients, parameters and metrics of two steps, padding rows among them."""
    one, _ = make(kind=kind)
    with jax.set_mesh(one.mesh):
        first = jax.device_get(one.init(jax.random.key(0)).params)
    seen = []
    for shape in ((1, 1, 1), mesh):
        program, batch = make(shape, kind=kind)
        shardings = jax.tree.map(lambda x: x.sharding, program.state_shapes.params)
        with jax.set_mesh(program.mesh):
            params = jax.device_put(first, shardings)
            state = program.init_from_params(jax.random.key(1), params)
            for _ in range(2):
                placed = put_batch(batch, program.mesh)
                state, metrics = program.train_step(state, placed)
            evaluated = program.eval_step(
                state.params, put_batch(batch, program.mesh)
            ).metrics
        seen.append(jax.device_get([state.params, state.opt_state, metrics]))
        seen[-1].append(jax.device_get(evaluated["loss"]))
    assert_close(seen[1], seen[0], rtol=1e-5)
    assert np.isfinite(seen[0][-1]).all()
