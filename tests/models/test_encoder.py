"""The encoder: every token sees its own text, and nothing else."""

import jax
import numpy as np
import pytest

from lmjax.errors import UserError


@pytest.fixture
def bert(tiny, random_params):
    model = tiny("bert", scan_layers=True)
    return model, random_params(model)


def test_each_token_sees_all_of_its_text_and_no_other(bert, apply, make_batch):
    model, params = bert
    batch = make_batch(rows=4)
    changed = {**batch, "tokens": batch["tokens"].copy()}
    changed["tokens"][:, 0] = (changed["tokens"][:, 0] + 1) % 64
    before, after = (np.asarray(apply(model)(params, b)) for b in (batch, changed))
    moved = np.abs(before - after).max(-1) > 1e-6
    np.testing.assert_array_equal(moved, batch["segments"] == 1)


def test_token_types_move_all_and_are_0_by_default(bert, apply, one_text):
    model, params = bert
    batch = one_text([[3, 1, 4, 1, 5]])
    types = np.array([[0, 0, 1, 1, 1]], np.int32)
    plain = apply(model)(params, batch)
    zeros = apply(model)(params, {**batch, "token_types": 0 * types})
    np.testing.assert_array_equal(plain, zeros)
    typed = apply(model)(params, {**batch, "token_types": types})
    assert (np.abs(typed - plain).max(-1) > 1e-3).all()


def test_the_pooler_reads_the_first_token(bert, one_text):
    model, params = bert
    hidden = model.hidden(params, one_text([[3, 1, 4], [1, 5, 9]]))
    pooled = model.pooled(params, hidden)
    dense = params["pooler"]
    expected = np.tanh(hidden[:, 0] @ dense["kernel"] + dense["bias"])
    np.testing.assert_allclose(pooled, expected, atol=1e-5)
    assert model.pair_logits(params, hidden).shape == (2, 2)


def test_scanned_is_unrolled(bert, tiny, apply, make_batch):
    model, params = bert
    unrolled = apply(tiny("bert", scan_layers=False))
    batch = make_batch(rows=4)
    expected = unrolled(params, batch)
    np.testing.assert_allclose(apply(model)(params, batch), expected, atol=1e-5)


def test_layers_that_differ_are_scanned_as_unrolled(
    tiny, random_params, apply, make_batch
):
    leaves = {"norm_place": "pre", "first_norm": False, "position": "rope"}
    leaves |= {
        "position_offset": 0,
        "window": 3,
        "global_layers": (0,),
        "rope_local_theta": 100.0,
    }
    scanned, unrolled = (tiny("bert", scan_layers=s, **leaves) for s in (True, False))
    params, batch = random_params(scanned), make_batch(rows=4)
    logits = apply(scanned)(params, batch)
    np.testing.assert_allclose(apply(unrolled)(params, batch), logits, atol=1e-5)
    # The norm before the first layer's attention has no effect, the next one has.
    scale = np.array(params["encoder"]["blocks"]["attention_norm"]["scale"])
    for layer, moves in ((0, False), (1, True)):
        changed = scale.copy()
        changed[layer] += 1.0
        norm = {**params["encoder"]["blocks"]["attention_norm"], "scale": changed}
        blocks = {**params["encoder"]["blocks"], "attention_norm": norm}
        moved = {**params, "encoder": {**params["encoder"], "blocks": blocks}}
        difference = np.abs(apply(scanned)(moved, batch) - logits).max()
        assert (difference > 1e-4) == moves


@pytest.mark.slow
def test_an_encoder_without_heads_names_the_missing_leaf(tiny, one_text):
    bare = tiny("bert", mlm_head=False, pooler=False, pair_head=False)
    params = bare.init(jax.random.key(0))
    assert not {"head", "pooler", "pair"} & set(params)
    with pytest.raises(UserError, match="mlm_head = False"):
        bare.apply(params, one_text([[1]]))
    with pytest.raises(UserError, match="pooler = False"):
        bare.pooled(params, bare.hidden(params, one_text([[1]])))
    with pytest.raises(UserError, match="generates no text"):
        bare.prefill(params, np.ones((1, 1), int), np.ones(1, int), cache_length=4)
