"""What linear layers read, beside what a watched run of the model reads itself."""

import jax
import numpy as np
import pytest

from lmjax.compress.calibrate import Calibration
from lmjax.errors import ConfigError, UserError
from lmjax.nn.linear import watch_inputs


def read_by_hand(lm, calibration):
    """Return what each product of each block reads, in the order of the products."""
    reads = []
    params = jax.tree.map(np.asarray, lm.params)
    for batch in calibration.batches(lm):
        inputs = []
        watch = lambda _, x, inputs=inputs: inputs.append(np.asarray(x))
        with jax.disable_jit(), watch_inputs(watch):
            lm.model.hidden(params, batch)
        reads.append((batch, inputs))
    return reads


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "num_products"), [("llama", 7), ("bert", 6), ("t5", 7)]
)
def test_sums_are_those_of_all_real_tokens(make_lm, text, architecture, num_products):
    """Queries are the first of the products of a layer."""
    lm = make_lm(architecture, scan_layers=architecture != "t5")
    calibration = Calibration(file=text, num_windows=6)
    part = "decoder" if architecture == "llama" else "encoder"
    of_mask = "source_segments" if architecture == "t5" else "segments"
    found = calibration.measure(lm, gram=True)[f"{part}.blocks.attention.query"]
    assert found.squares_LI.shape == (3 if architecture == "t5" else 2, 32)
    reads = read_by_hand(lm, calibration)
    for layer in range(2):
        rows = [
            inputs[layer * num_products].reshape(batch[of_mask].size, -1)[
                np.ravel(batch[of_mask]) > 0
            ]
            for batch, inputs in reads
        ]
        x_NI = np.concatenate(rows).astype(np.float64)
        expected = [np.abs(x_NI).sum(0), (x_NI**2).sum(0), x_NI.T @ x_NI]
        expected += [np.abs(x_NI).max(0)]
        sums = found.absolute_LI, found.squares_LI, found.gram_LII, found.largest_LI
        assert found.num_tokens == len(x_NI)
        for one, other in zip(sums, expected, strict=True):
            np.testing.assert_allclose(one[layer], other, rtol=1e-4, atol=1e-2)


@pytest.mark.slow
def test_each_layer_of_each_block_is_there(make_lm, text):
    lm = make_lm("t5", remat="dots")
    found = Calibration(file=text, num_windows=5).measure(lm)
    sides = [
        ("encoder", "attention", ("query", "key", "value", "out")),
        ("decoder", "attention", ("query", "key", "value", "out")),
        ("decoder", "cross_attention", ("query", "key", "value", "out")),
        ("encoder", "mlp", ("up", "gate", "down")),
        ("decoder", "mlp", ("up", "gate", "down")),
    ]
    names = {f"{a}.blocks.{b}.{c}" for a, b, each in sides for c in each}
    assert found.keys() == names
    for name, inputs in found.items():
        of_source = "cross_attention.key", "cross_attention.value", "encoder."
        sources = any(part in name for part in of_source)
        pairs = [line.split("\t") for line in text.read_text().splitlines()[:5]]
        count = sum(len(pair[not sources]) + (not sources) for pair in pairs)
        assert inputs.num_tokens == count + (10 if sources else 0), name  # BOS, EOS
        assert inputs.gram_LII is None
    alike = [f"decoder.blocks.attention.{name}" for name in ("query", "key", "value")]
    assert len({id(found[name].squares_LI) for name in alike}) == 1


def test_only_the_layers_of_interest(make_lm, text):
    lm = make_lm("llama")
    only = lambda name: name.endswith("down")
    found = Calibration(file=text, num_windows=2).measure(lm, gram=True, only=only)
    (down,) = found.values()
    assert down.gram_LII.shape == (2, 48, 48)


def test_wrong_texts_and_models_are_named(make_lm, text, tmp_path):
    lm, short = make_lm("llama"), tmp_path / "short.txt"
    short.write_text("a few words\n")
    for file, message in [
        (short, "too short: 12 tokens; --windows=64 of 63 take 4,032"),
        (tmp_path / "none.txt", "none.txt"),
    ]:
        with pytest.raises(UserError, match=message):
            Calibration(file=file).measure(lm)
    for file, message in [(short, "short.txt:1: no tab"), (text, "too short: 40 line")]:
        with pytest.raises(UserError, match=message):
            Calibration(file=file).measure(make_lm("t5"))
    with pytest.raises(ConfigError, match=r"config.model.kind = 'recurrent'"):
        Calibration(file=text, num_windows=2).measure(make_lm("lstm"))
