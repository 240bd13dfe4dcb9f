"""Pruning of weights and of parts, beside definitions in NumPy."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.cli.main import main
from lmjax.compress import prune, sparsegpt
from lmjax.compress.calibrate import Calibration
from lmjax.config.experiment import parse, to_dict
from lmjax.data.tokenizers.plain import Bytes
from lmjax.errors import UserError
from lmjax.nn.matrices import flatten, is_hidden_matrix
from lmjax.run import checkpoint, workdir
from lmjax.types import named_axes, named_leaves


@pytest.fixture(scope="module")
def make(make_lm, make_config):
    """Return a function to make a model whose config has the same changes."""

    def make_alike(architecture, **options):
        config = make_config(architecture, vocab_size=258, **options)
        return dataclasses.replace(make_lm(architecture, **options), config=config)

    return make_alike


def matrices(lm):
    """Return the hidden matrices (L, I, O) by name."""
    axes, leaves = named_axes(lm.model.axes), named_leaves(lm.params)
    return {
        name: np.asarray(flatten(leaf, axes[name]))
        for name, leaf in leaves.items()
        if is_hidden_matrix(name, axes[name])
    }


def compress(lm, spec, file=None):
    calibration = None if file is None else Calibration(file=file, num_windows=4)
    return prune.make_prune_step(spec, calibration=calibration).apply(lm)


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5", "lstm"])
@pytest.mark.parametrize("spec", ["magnitude:0.75", "magnitude:2:4"])
def test_the_smallest_weights_of_each_matrix_become_0(make_lm, architecture, spec):
    lm = make_lm(architecture)
    small = compress(lm, spec)
    before, after = matrices(lm), matrices(small)
    assert before
    for name, old in before.items():
        new = after[name]
        np.testing.assert_array_equal(new, np.where(new != 0, old, 0))
        for was, is_ in zip(old, new, strict=True):
            if spec.endswith("0.75"):
                assert np.mean(is_ == 0) == pytest.approx(0.75, abs=1e-3), name
                assert np.abs(was[is_ == 0]).max() < np.abs(was[is_ != 0]).min()
            else:
                groups = is_.reshape(-1, 4, is_.shape[1])
                assert ((groups != 0).sum(axis=1) == 2).all()
    others = named_leaves(lm.params).keys() - before.keys()
    for name in others:
        leaf = named_leaves(small.params)[name]
        np.testing.assert_array_equal(leaf, named_leaves(lm.params)[name])
    assert small.config.optim.prune.method == "keep"


def test_global_magnitude_compares_all_matrices(make_lm):
    lm = make_lm("llama")
    after = matrices(compress(lm, "global_magnitude:0.5"))
    join = lambda xs: np.concatenate([np.ravel(x) for x in xs.values()])
    old, new = join(matrices(lm)), join(after)
    assert np.mean(new == 0) == pytest.approx(0.5, abs=1e-4)
    assert np.abs(old[new == 0]).max() < np.abs(old[new != 0]).min()


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["wanda:0.5", "wanda:2:4"])
def test_wanda_weighs_weights_by_their_inputs(make_lm, text, spec):
    lm = make_lm("llama", scan_layers=True)
    read = Calibration(file=text, num_windows=4).measure(lm)
    after = matrices(compress(lm, spec, text))
    for name, old in matrices(lm).items():
        squares = np.asarray(read[name.removesuffix(".kernel")].squares_LI)
        score = np.abs(old) * np.sqrt(squares)[..., None]
        size = 4 if spec.endswith("4") else score.shape[1]
        score = score.reshape(-1, size, score.shape[2])
        kept = (after[name] != 0).reshape(score.shape)
        assert (kept.sum(axis=1) == size - size // 2).all(), name
        lost, left = np.where(kept, 0, score), np.where(kept, score, np.inf)
        assert (lost.max(axis=1) <= left.min(axis=1)).all(), name


def prune_slowly(w_IO, gram_II, *, sparsity, keep, of):
    """Return SparseGPT's result by the inverse of what remains, column by column."""
    w_IO = w_IO.astype(np.float64).copy()
    num = len(w_IO)
    gram_II = gram_II.astype(np.float64)
    gram_II = gram_II + 0.01 * np.diag(gram_II).mean() * np.eye(num)
    inverses = [np.linalg.inv(gram_II[i:, i:]) for i in range(num)]
    size = sparsegpt.block_size(num, of)
    mask = np.ones_like(w_IO, bool)
    for i in range(num):
        step = of or size
        if i % step == 0:
            rows = range(i, i + step)
            score = np.stack([w_IO[r] ** 2 / inverses[r][0, 0] for r in rows])
            if of:
                mask[rows] = score.argsort(0).argsort(0) >= of - keep
            else:
                limit = np.sort(score, axis=None)[round(sparsity * score.size)]
                mask[rows] = score >= limit
        left = w_IO[i] * mask[i]
        error = (w_IO[i] - left) / inverses[i][0, 0]
        w_IO[i:] -= inverses[i][0][:, None] * error
        w_IO[i] = left
    return w_IO


@pytest.mark.parametrize(
    ("num", "options"),
    [
        (24, {"fraction": 0.5}),
        (192, {"fraction": 0.6}),
        (24, {"fraction": 0.5, "keep": 2, "of": 4}),
        (160, {"fraction": 0.5, "keep": 4, "of": 8}),
    ],
)
def test_sparsegpt_equals_the_inverse_of_what_remains(num, options):
    rng = np.random.default_rng(0)
    w_LIO = rng.standard_normal((2, num, 12), np.float32)
    mixed = rng.standard_normal((2, num, num), np.float32) / num**0.5
    x_LNI = rng.standard_normal((2, 4 * num, num), np.float32) @ (
        mixed + 2 * np.eye(num)
    )
    gram_LII = (x_LNI.swapaxes(1, 2) @ x_LNI).astype(np.float32)
    ours = np.asarray(sparsegpt.solve(jnp.asarray(w_LIO), gram_LII, **options))
    rest = {"sparsity": options["fraction"], "keep": 0, "of": 0} | options
    del rest["fraction"]
    for layer in range(2):
        slow = prune_slowly(w_LIO[layer], gram_LII[layer], **rest)
        np.testing.assert_array_equal(ours[layer] == 0, slow == 0)
        np.testing.assert_allclose(ours[layer], slow, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_sparsegpt_loses_less_than_magnitude(make_lm, text):
    """The error of what each matrix makes of its inputs, at 2 of 4."""
    lm = make_lm("llama")
    read = Calibration(file=text, num_windows=4).measure(lm, gram=True)
    before = matrices(lm)

    def error(spec, file):
        lost = []
        for name, new in matrices(compress(lm, spec, file)).items():
            gram = np.asarray(read[name.removesuffix(".kernel")].gram_LII)
            change = new - before[name]
            lost.append(np.einsum("lij,lio,ljo->", gram, change, change))
        return np.array(lost)

    assert (error("sparsegpt:2:4", text) < error("magnitude:2:4", None)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "variant"),
    [
        *(("heads:0.5", name) for name in ("llama", "gemma", "bert", "t5", "bart")),
        *(("mlp:0.75", name) for name in ("llama", "bert")),
        # A block with a norm at its end always does something.
        *(("layers:1", name) for name in ("llama", "gemma", "t5")),
    ],
)
def test_parts_that_do_nothing_are_left_out(make, make_batch, text, variant, spec):
    """The smaller model computes what the whole one does."""
    lm = make(variant)
    part, _, _ = spec.partition(":")
    silent = silence(lm, part)
    small = compress(silent, spec, text)
    config = small.model.config
    expected = {
        "heads": ("num_heads", lm.model.config.num_heads // 2),
        "mlp": ("mlp_dim", lm.model.config.mlp_dim // 4),
        "layers": ("num_layers", 1),
    }[part]
    assert getattr(config, expected[0]) == expected[1]
    assert parse(to_dict(small.config)).model == small.config.model
    shapes = jax.tree.map(jnp.shape, small.params)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, small.model.shapes)
    batch = make_batch(source=config.is_encoder_decoder)
    whole = jax.jit(silent.model.hidden)(silent.params, batch)
    ours = jax.jit(small.model.hidden)(small.params, batch)
    np.testing.assert_allclose(ours, whole, rtol=1e-4, atol=1e-4)


def silence(lm, part):
    """Return a model of which only the parts that will be left do anything."""
    config = lm.model.config
    group = config.num_heads // config.num_kv_heads
    num_groups = config.num_kv_heads // 2

    def change(name, leaf):
        if ".blocks." not in name or not name.endswith(".kernel"):
            return leaf
        rng = np.random.default_rng(len(name))
        if part == "heads" and "attention.out" in name:
            alike = config.position == "relative" and "cross" not in name
            new = np.zeros_like(leaf)
            groups = rng.permutation(config.num_kv_heads)[:num_groups]
            for layer in range(len(leaf)):
                if not alike:
                    groups = rng.permutation(config.num_kv_heads)[:num_groups]
                heads = [g * group + i for g in groups for i in range(group)]
                new[layer][heads] = np.asarray(leaf)[layer][heads]
            return jnp.asarray(new)
        if part == "mlp" and name.endswith("mlp.down.kernel"):
            new = np.zeros_like(leaf)
            for layer in range(len(leaf)):
                units = rng.permutation(leaf.shape[1])[: config.mlp_dim // 4]
                new[layer][units] = np.asarray(leaf)[layer][units]
            return jnp.asarray(new)
        is_last = name.endswith(("out.kernel", "down.kernel"))
        stack = "decoder." if config.kind != "encoder" else "encoder."
        if part == "layers" and is_last and name.startswith(stack):
            kept = jnp.arange(len(leaf)) == len(leaf) - 1
            return leaf * kept.reshape(-1, *[1] * (leaf.ndim - 1))
        return leaf

    leaves = [change(name, leaf) for name, leaf in named_leaves(lm.params).items()]
    params = jax.tree.unflatten(jax.tree.structure(lm.params), leaves)
    return dataclasses.replace(lm, params=params)


def test_layers_without_a_text_lie_at_equal_distances(make):
    lm = make("gemma", num_layers=5)
    small = compress(lm, "layers:3")
    for name, leaf in named_leaves(small.params).items():
        if ".blocks." in name:
            old = named_leaves(lm.params)[name]
            np.testing.assert_array_equal(leaf, np.asarray(old)[[0, 2, 4]])
    config = small.model.config
    flags = lm.model.config.global_flags(5)
    assert config.global_flags(3) == (flags[0], flags[2], flags[4])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("magnitude:1", ["--prune=magnitude:1:", "below 1"]),
        ("magnitude:0", ["--prune=magnitude:0:", "above 0"]),
        ("magnitude", ["--prune=magnitude:", "fraction"]),
        ("magnitude:nan", ["fraction"]),
        ("magnitude:4:2", ["--prune=magnitude:4:2:", "2:4"]),
        ("magnitude:0:4", ["2:4"]),
        ("magnitud:0.5", ["'magnitud'", "did you mean 'magnitude'"]),
        ("global_magnitude:2:4", ["use magnitude:2:4"]),
        ("wanda:0.5", ["--prune=wanda:0.5: needs --calibrate"]),
        ("sparsegpt:2:4", ["needs --calibrate"]),
        ("layers:0", ["--prune=layers:0", "layers:4"]),
        ("layers:-2", ["layers:4"]),
        ("layers:1.5", ["layers:4"]),
    ],
)
def test_flags_that_cannot_be(spec, words):
    with pytest.raises(UserError) as error:
        prune.make_prune_step(spec, calibration=None)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "spec", "words"),
    [
        ("llama", "layers:2", ["leaves 2 of config.model.num_layers = 2"]),
        ("llama", "layers:9", ["leaves 9 of config.model.num_layers = 2"]),
        ("llama", "layers:0.1", ["leaves 2 of config.model.num_layers = 2"]),
        ("llama", "heads:3", ["multiple of 2", "num_kv_heads"]),
        ("llama", "heads:4", ["leaves 4 of config.model.num_heads = 4"]),
        ("llama", "mlp:48", ["leaves 48 of config.model.mlp_dim = 48"]),
        ("llama", "encoder_layers:1", ["'decoder' has no num_encoder_layers"]),
        ("lstm", "heads:0.5", ["kind = 'recurrent' has no num_heads"]),
        ("lstm", "layers:1", ["kind = 'recurrent' has no num_layers"]),
        ("olmo", "heads:0.5", ["qk_norm_over = 'all'"]),
        ("llama", "magnitude:3:5", ["has 32 inputs", "groups of 5"]),
    ],
)
def test_models_that_cannot_be_pruned_so(make, architecture, spec, words):
    options = {}
    if architecture == "olmo":
        architecture, options = "llama", {"qk_norm": True, "qk_norm_over": "all"}
    with pytest.raises(UserError) as error:
        compress(make(architecture, **options), spec)
    for word in words:
        assert word in str(error.value)


@pytest.fixture(scope="module")
def model_workdir(make_lm, tmp_path_factory):
    """Return the workdir of a model of bytes."""
    lm, directory = make_lm("llama"), tmp_path_factory.mktemp("model")
    Bytes(bos=True).save(directory / "tokenizer")
    checkpoint.save_params(directory, lm.params)
    workdir.write_config(directory, lm.config)
    return directory


@pytest.mark.slow
def test_zeros_survive_training_export_and_import(model_workdir, tmp_path, capsys):
    sparse, trained = tmp_path / "sparse", tmp_path / "trained"
    flags = [f"--workdir={model_workdir}", f"--to={sparse}"]
    assert main(["compress", *flags, "--prune=magnitude:2:4"]) == 0
    assert json.loads((sparse / "compress.json").read_text())["steps"] == [
        {"prune": "magnitude:2:4"}
    ]
    lines = tmp_path / "text.txt"
    lines.write_text("to be or not to be\n" * 200)
    script = tmp_path / "x.py"
    data = {"source": "text", "path": str(lines), "document": "line"}
    data["length"] = 16
    config = {"init_from": str(sparse), "num_steps": 2, "batch_size": 8, "data": data}
    script.write_text(f"def get_config():\n    return {config!r}\n")
    argv = [f"--config={script}", f"--workdir={trained}"]
    assert main(["train", *argv, "--config.tokenizer.kind=bytes"]) == 0
    assert main(["export", f"--workdir={trained}", f"--to={tmp_path / 'hf'}"]) == 0
    back = tmp_path / "back"
    assert main(["import", f"--from={tmp_path / 'hf'}", f"--workdir={back}"]) == 0
    zeros = [zeros_of(directory) for directory in (sparse, trained, back)]
    for name, first in zeros[0].items():
        assert first.mean() == 0.5, name
        for others in zeros[1:]:
            np.testing.assert_array_equal(others[name], first)
    capsys.readouterr()


def zeros_of(directory):
    from lmjax.inference.language_model import load

    return {name: matrix == 0 for name, matrix in matrices(load(directory)).items()}


def test_a_wrong_flag_leaves_nothing(model_workdir, tmp_path, capsys):
    for flags, named in (
        (["--prune=layers:2"], "--prune"),
        (["--prune=wanda:0.5"], "--prune"),
        (["--prune=magnitude:0.5", "--calibrate=x.txt"], "--calibrate=x.txt"),
        ([], "--prune"),
    ):
        to = tmp_path / "to"
        argv = [f"--workdir={model_workdir}", f"--to={to}", *flags]
        assert main(["compress", *argv]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {named}") and error.count("\n") == 1
        assert not any(tmp_path.iterdir())
