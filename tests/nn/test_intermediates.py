"""What is recorded within a network, and what that costs those who do not ask."""

import jax
import numpy as np
import pytest

from lmjax.nn import intermediates


@pytest.mark.parametrize(
    "architecture",
    ["gemma", pytest.param("t5", marks=pytest.mark.slow), "bahdanau", "luong"],
)
def test_the_same_is_recorded_however_layers_are_run(
    architecture, tiny, random_params, make_batch
):
    is_transformer = architecture in ("gemma", "t5")
    batch = make_batch(rows=2, source=architecture != "gemma")
    if not is_transformer:  # a row is one text
        for name in ("segments", "source_segments"):
            batch[name] = np.ones_like(batch[name])
    ways = [{"scan_layers": True, "remat": "full"}, {"scan_layers": False}]
    found = []
    for way in ways if is_transformer else [{}]:
        model = tiny(architecture, **way)
        params = random_params(model)
        hidden, captured = jax.jit(model.hidden_with_intermediates)(params, batch)
        plain = jax.jit(model.hidden)(params, batch)
        np.testing.assert_array_equal(hidden, plain)
        found.append(captured)
    assert found[0].keys() == found[-1].keys()
    for name, x in found[0].items():
        np.testing.assert_allclose(x, found[-1][name], rtol=1e-4, atol=1e-5)
        if name.endswith("attention"):
            np.testing.assert_allclose(x.sum(axis=-1), 1.0, rtol=1e-5)


def test_recording_changes_nothing_that_is_compiled(
    tiny, random_params, make_batch, monkeypatch
):
    model, batch = tiny("gemma", scan_layers=True), make_batch(rows=2)
    params = random_params(model)
    program = str(jax.make_jaxpr(model.hidden)(params, batch))
    monkeypatch.setattr(intermediates, "record", lambda name, x: x)
    assert str(jax.make_jaxpr(model.hidden)(params, batch)) == program


def test_a_replaced_array_is_used_and_the_own_one_recorded(
    tiny, random_params, make_batch
):
    model, batch = tiny("gemma", scan_layers=True), make_batch(rows=2)
    params = random_params(model)

    @jax.jit
    def run(params, batch, x):
        with model.capture({"embeddings": x}) as captured:
            hidden = model.hidden(params, batch)
        return hidden, captured["embeddings"]

    embedded = params["embed"]["embedding"][batch["tokens"]]
    hidden, own = run(params, batch, embedded[::-1])
    np.testing.assert_array_equal(own, embedded)
    swapped = {**batch, "tokens": batch["tokens"][::-1]}
    np.testing.assert_allclose(
        hidden, jax.jit(model.hidden)(params, swapped), rtol=1e-5
    )
