"""Matrices as products: the nearest ones, on inputs or by themselves; as a model."""

import jax
import numpy as np
import pytest

from lmjax.cli.main import main
from lmjax.compress.low_rank import factor, parse_low_rank
from lmjax.errors import UserError
from lmjax.inference.language_model import load
from lmjax.interop import hf
from lmjax.interop.families import llama
from lmjax.interop.registry import read_config
from lmjax.types import named_leaves
from tests.interop.test_hf import LLAMA, save_random

VALUES = LLAMA | {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 64}


def test_products_are_the_nearest_on_what_is_read():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 24)) * np.geomspace(0.1, 5, 24)
    w = rng.standard_normal((24, 40))
    errors = {}
    for name, gram in {"alone": None, "on inputs": x.T @ x}.items():
        a, b = map(np.asarray, factor(np.float32(w), gram, rank=6))
        assert a.shape == (24, 6) and b.shape == (6, 40)
        errors[name] = [np.linalg.norm(left @ (w - a @ b)) for left in (np.eye(24), x)]
    # The least possible: the singular values that are left out (Eckart and Young).
    for i, least_of in enumerate((w, x @ w)):
        least = np.sqrt((np.linalg.svd(least_of)[1][6:] ** 2).sum())
        np.testing.assert_allclose(errors[[*errors][i]][i], least, rtol=1e-3)
    assert errors["on inputs"][1] < 0.9 * errors["alone"][1]


def test_inputs_that_never_occur_do_no_harm():
    w = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    gram = np.zeros((8, 8), np.float32)
    gram[:4, :4] = np.eye(4)
    for read in (gram, 0 * gram):
        a, b = factor(w, read, rank=4)
        assert np.isfinite(a).all() and np.isfinite(b).all()
    a, b = factor(w, gram, rank=4)
    np.testing.assert_allclose((a @ b)[:4], w[:4], atol=0.02)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    root = tmp_path_factory.mktemp("low_rank")
    config = read_config(llama.LLAMA, VALUES, (), file="config.json")
    hf.import_hf(save_random(root / "hf", VALUES, config, scale=0.1), root / "workdir")
    return root / "workdir"


def test_a_model_of_products(workdir, tmp_path, caplog):
    small, out = tmp_path / "small", tmp_path / "hf"
    flags = [f"--workdir={workdir}", f"--to={small}"]
    assert main(["compress", *flags, "--low_rank=0.5:mlp.*,attention.out"]) == 0
    lm, whole = load(small), load(workdir)
    shapes = {name: leaf.shape for name, leaf in named_leaves(lm.params).items()}
    assert shapes["decoder.blocks.mlp.up.factor_a"] == (2, 64, 19)
    assert shapes["decoder.blocks.attention.out.factor_a"] == (2, 4, 16, 16)
    assert shapes["decoder.blocks.attention.out.factor_b"] == (2, 16, 64)
    assert "decoder.blocks.attention.query.kernel" in shapes
    count = lambda params: sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count(lm.params) < 0.75 * count(whole.params)
    assert main(["export", f"--workdir={small}", f"--to={out}"]) == 0
    assert "is of low rank; its matrices are written whole" in caplog.text
    hf.import_hf(out, tmp_path / "back")
    ids = np.arange(3, 40, dtype=np.int32)[None]
    np.testing.assert_allclose(
        lm.logits(ids), load(tmp_path / "back").logits(ids), rtol=1e-5, atol=1e-5
    )
    again = ["compress", f"--workdir={small}", f"--to={tmp_path / 'x'}"]
    assert main([*again, "--prune=heads:0.5"]) == 2


def test_all_of_the_rank_changes_nothing(workdir, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(str(i % 60) for i in range(4000)))
    flags = [f"--workdir={workdir}", f"--calibrate={text}", "--windows=4"]
    ids = np.arange(3, 40, dtype=np.int32)[None]
    expected, errors = np.asarray(load(workdir).logits(ids)), []
    for fraction in (0.99999, 0.3):  # of a square matrix half of the rank
        target = tmp_path / str(fraction)
        low_rank = f"--low_rank={fraction}:mlp.up"
        assert main(["compress", *flags, f"--to={target}", low_rank]) == 0
        errors.append(np.abs(np.asarray(load(target).logits(ids)) - expected).mean())
    assert 0 < errors[0] < errors[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1", "'1' must be a fraction between 0 and 1"),
        ("half", "'half' must be a fraction between 0 and 1"),
        ("nan", "'nan' must be a fraction between 0 and 1"),
        (
            "0.5:mlp.upp",
            "'mlp.upp' matches no matrix of a block (did you mean 'mlp.up'",
        ),
    ],
)
def test_bad_fractions_and_patterns_are_refused(text, message):
    with pytest.raises(UserError) as caught:
        parse_low_rank(text)
    assert str(caught.value).startswith(f"--low_rank={text}: ")
    assert message in str(caught.value)
