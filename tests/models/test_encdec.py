"""The encoder-decoder: what the target reads of its source, and of itself."""

import jax
import numpy as np
import pytest

READERS = {
    "t5": {"scan_layers": True},
    "bart": {"scan_layers": True},
    "bahdanau": {},
    "luong": {},
    "luong_unfed": {"input_feeding": False},
}


@pytest.fixture(params=READERS)
def model(request, tiny):
    return tiny(request.param.removesuffix("_unfed"), **READERS[request.param])


def change(batch, name, column):
    changed = batch[name].copy()
    changed[:, column] = (changed[:, column] + 1) % 64
    return {**batch, name: changed}


def moved(model, apply, params, batch, changed):
    before, after = (np.asarray(apply(model)(params, b)) for b in (batch, changed))
    return np.abs(before - after).max(-1) > 1e-6


def texts(model, batch):
    """Return where there are tokens of text: recurrent networks read one pair a row."""
    one = model.config.kind == "recurrent_encoder_decoder"
    return batch["segments"] == 1 if one else batch["segments"] > 0


def test_a_target_sees_what_came_before_it(model, random_params, apply, make_batch):
    params, batch = random_params(model), make_batch(rows=4, source=True)
    seen = moved(model, apply, params, batch, change(batch, "tokens", 1))
    own = batch["segments"] == batch["segments"][:, 1:2]
    after = batch["positions"] >= batch["positions"][:, 1:2]
    here = texts(model, batch)
    np.testing.assert_array_equal(seen[here], (own & after)[here])


def test_a_target_reads_all_of_its_source(model, random_params, apply, make_batch):
    """Packed pairs read the source of their own number, and no other."""
    params, batch = random_params(model), make_batch(rows=4, source=True)
    seen = moved(model, apply, params, batch, change(batch, "source", 0))
    here = texts(model, batch)
    np.testing.assert_array_equal(seen[here], (batch["segments"] == 1)[here])


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_scanned_is_unrolled(tiny, random_params, apply, make_batch, name):
    model = tiny(name, scan_layers=True)
    params, batch = random_params(model), make_batch(rows=4, source=True)
    expected = apply(tiny(name, scan_layers=False))(params, batch)
    np.testing.assert_allclose(apply(model)(params, batch), expected, atol=2e-5)


def test_cached_is_whole(model, random_params, apply, make_batch, one_text):
    params = random_params(model)
    tokens = np.random.default_rng(0).integers(0, 64, (3, 12))
    sources, lengths = make_batch(rows=3, source=True), np.array([4, 1, 3])
    source = {name: sources[name] for name in sources if name.startswith("source")}
    source["source_segments"] = (source["source_segments"] == 1).astype(np.int32)
    batch = {**one_text(tokens), **source}
    whole = np.asarray(apply(model)(params, batch))
    prefill = jax.jit(model.prefill, static_argnames="cache_length")
    prompts = np.where(np.arange(4) < lengths[:, None], tokens[:, :4], 0)
    logits, cache = prefill(params, prompts, lengths, cache_length=16, source=source)
    step = jax.jit(model.decode_step)
    for i in range(6):
        at = lengths + i
        expected = whole[np.arange(3), at - 1]
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=2e-5)
        logits, cache = step(params, tokens[np.arange(3), at], at, cache)
