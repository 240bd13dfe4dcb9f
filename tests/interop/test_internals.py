"""Attention weights and hidden states against those of transformers."""

import numpy as np
import pytest
from references import save_reference

import lmjax
from lmjax.interop import hf

torch = pytest.importorskip("torch", reason="the reference runs on torch")
pytest.importorskip("transformers", reason="is the reference")

NAMES = ("bert", "gemma3", "bart")  # after, and around a sublayer; with a source


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_weights_and_states_of_every_layer_are_those_of_the_reference(name, tmp_path):
    reference = save_reference(name, tmp_path / "hf")
    hf.import_hf(tmp_path / "hf", tmp_path / "workdir")
    lm = lmjax.load(tmp_path / "workdir")
    rng = np.random.default_rng(0)
    tokens, source = (rng.integers(3, 60, (2, n)) for n in (11, 9))
    inputs = {"input_ids": torch.tensor(tokens)}
    arrays = {}
    if lm.model.config.is_encoder_decoder:
        arrays["source"] = source
        inputs = {
            "input_ids": torch.tensor(source),
            "decoder_input_ids": torch.tensor(tokens),
        }
    with torch.no_grad():
        expected = reference(
            **inputs, output_attentions=True, output_hidden_states=True
        )
    weights = lm.attention(tokens, **arrays)
    side = "decoder_" if arrays else ""
    pairs = [
        (weights.own, expected[f"{side}attentions"]),
        (lm.hidden_states(tokens, **arrays), expected[f"{side}hidden_states"]),
    ]
    if arrays:
        pairs += [
            (weights.cross, expected["cross_attentions"]),
            (weights.source, expected["encoder_attentions"]),
        ]
    for found, layers in pairs:
        assert len(found) == len(layers)
        stacked = torch.stack(layers).numpy()
        np.testing.assert_allclose(found, stacked, atol=2e-5, rtol=1e-4)
