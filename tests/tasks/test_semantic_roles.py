"""Who does what to whom: tags that depend on which predicate is marked."""

import json
import random

import pytest

import lmjax
from lmjax.cli import main
from lmjax.config.experiment import parse
from lmjax.training import loop
from lmjax.training.evaluate_workdir import evaluate_workdir

NAMES, VERBS = ["Al", "Bo", "Cy", "Di"], ["hit", "saw"]
KINDS = {
    "encoder": {"kind": "encoder", "num_token_types": 2},
    "decoder": {"kind": "decoder"},
}
MARKS = {"encoder": "token_types", "decoder": "separators"}


def sentence(rng):
    """Return lines of two clauses, verbs first: the roles of each are a column."""
    first, second = ((rng.choice(VERBS), *rng.sample(NAMES, 2)) for _ in range(2))
    brackets = "(V*)", "(A0*)", "(A1*)"
    for word, own in zip(first, brackets, strict=True):
        yield f"{word} {word if word in VERBS else '-'} {own} *"
    for word, own in zip(second, brackets, strict=True):
        yield f"{word} {word if word in VERBS else '-'} * {own}"
    yield ""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    pytest.importorskip("seqeval")
    directory, rng = tmp_path_factory.mktemp("roles"), random.Random(0)
    for split, count in (("train", 60), ("valid", 11)):
        lines = [line for _ in range(count) for line in sentence(rng)]
        (directory / f"{split}.props").write_text("\n".join(lines))
    return directory


def config(files, kind, **more):
    return parse(
        {
            "num_steps": 40,
            "batch_size": 16,
            "model": {
                "dim": 16,
                "num_layers": 1,
                "num_heads": 2,
                "max_length": 64,
                **KINDS[kind],
            },
            "tokenizer": {"kind": "bytes"},
            "data": {
                "source": "props",
                "path": str(files / "train.props"),
                "valid_path": str(files / "valid.props"),
                "columns": ("tokens", "predicate", "tags"),
                "fields": {"predicate": "predicate"},
                "length": 48,
            },
            "task": {"kind": "tag", "mark_predicate": MARKS[kind], "unscored": ("V",)},
            "optim": {"learning_rate": 2e-2, "schedule": "constant", "warmup_steps": 5},
            "mesh": {"data": 4, "fsdp": 2},
            "eval": {"every_steps": 0},
            "log": {"tensorboard": False},
            **more,
        }
    )


@pytest.mark.parametrize("kind", KINDS)
def test_roles_are_trained_and_scored(files, tmp_path, kind, capsys):
    run = tmp_path / "run"
    assert loop.train(config(files, kind), run)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    (last,) = [row for row in lines if row["split"] == "valid"]
    assert last["f1"] > 0.9
    overrides = ["data.num_buckets=1", "eval.batch_size=24"]
    (again,) = evaluate_workdir(run, step=None, overrides=overrides)
    for name in ("loss", "accuracy", "f1"):
        assert again[name] == pytest.approx(last[name], 1e-5), name
    words = ["saw", "Al", "Bo", "hit", "Bo", "Al"]
    examples = [{"tokens": words, "predicate": i} for i in (0, 3)]
    answers = lmjax.load(run).predict(examples)
    roles, none = ["B-V", "B-A0", "B-A1"], ["O"] * 3
    assert [a["tags"] for a in answers] == [roles + none, none + roles]
    source, target = files / "valid.props", tmp_path / "out.jsonl"
    flags = [f"--workdir={run}", f"--input={source}", f"--output={target}"]
    assert main.main(["predict", *flags]) == 0
    assert len(target.read_text().splitlines()) == 2 * 11
