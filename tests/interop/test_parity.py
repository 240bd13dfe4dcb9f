"""Every family against its reference implementation in transformers."""

import numpy as np
import pytest
from references import CASES, save_reference

from lmjax.config.experiment import MeshConfig
from lmjax.interop import hf
from lmjax.parallel import sharding

torch = pytest.importorskip("torch", reason="the reference runs on torch")
transformers = pytest.importorskip("transformers", reason="is the reference")

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def one_device():
    import jax

    return sharding.make_mesh(MeshConfig(), devices=jax.devices()[:1])


def make_batch(model, rng):
    """Return a batch, and the same as the inputs of transformers."""
    import jax

    tokens = rng.integers(3, 66, (2, 14), dtype=np.int32)
    positions = np.broadcast_to(np.arange(14, dtype=np.int32), tokens.shape)
    batch = {"tokens": tokens, "segments": np.ones_like(tokens), "positions": positions}
    inputs = {"input_ids": torch.tensor(tokens, dtype=torch.long)}
    if model.config.kind == "encoder":
        lengths = np.array([14, 9])
        batch["segments"] = (positions < lengths[:, None]).astype(np.int32)
        if num_types := model.config.num_token_types:
            types = (positions > 4).astype(np.int32) * (num_types - 1)
            batch["token_types"] = types
            inputs["token_type_ids"] = torch.tensor(types, dtype=torch.long)
        inputs["attention_mask"] = torch.tensor(batch["segments"])
    if model.config.kind == "encoder_decoder":
        source = rng.integers(3, 66, (2, 17), dtype=np.int32)
        source_positions = np.broadcast_to(np.arange(17, dtype=np.int32), source.shape)
        segments = (source_positions < np.array([[17], [11]])).astype(np.int32)
        batch |= {"source": source, "source_segments": segments}
        batch |= {"source_positions": source_positions}
        inputs = {
            "input_ids": torch.tensor(source, dtype=torch.long),
            "attention_mask": torch.tensor(segments),
            "decoder_input_ids": torch.tensor(tokens, dtype=torch.long),
        }
    return jax.tree.map(np.asarray, batch), inputs


def compute_outputs(name, model, params, batch):
    """Return the outputs to compare, by transformers' names for them."""
    import jax

    hidden = jax.jit(model.hidden)(params, batch)
    architecture = CASES[name][0]
    if architecture.endswith("Model") and not architecture.endswith(
        ("LMHeadModel", "MTModel")
    ):
        found = {"last_hidden_state": hidden}
        if getattr(model.config, "pooler", False):
            found["pooler_output"] = jax.jit(model.pooled)(params, hidden)
        return found
    if architecture.endswith("ForQuestionAnswering"):
        logits = jax.jit(model.label_logits)(params, hidden)
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
    if architecture.endswith("Classification"):
        if architecture.endswith("ForSequenceClassification"):
            hidden = jax.jit(model.summary)(params, hidden, batch["segments"])
        return {"logits": jax.jit(model.label_logits)(params, hidden)}
    if architecture.endswith("ForNextSentencePrediction"):
        return {"logits": jax.jit(model.pair_logits)(params, hidden)}
    if name == "bert_pretraining":
        return {
            "prediction_logits": jax.jit(model.token_logits)(params, hidden),
            "seq_relationship_logits": jax.jit(model.pair_logits)(params, hidden),
        }
    return {"logits": jax.jit(model.token_logits)(params, hidden)}


def max_difference(found, expected, segments):
    """Return the largest difference, padding left out."""
    differences = []
    for key, value in found.items():
        difference = np.abs(np.asarray(value) - expected[key].detach().numpy())
        if difference.shape[:2] == np.shape(segments):
            difference = difference[np.asarray(segments) > 0]
        differences.append(float(difference.max()))
    return max(differences)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_parity(name, tmp_path, one_device):
    reference = save_reference(name, tmp_path / "hf")
    hf.import_hf(tmp_path / "hf", tmp_path / "workdir", one_device)
    model, params = hf.restore_model(tmp_path / "workdir", None)
    batch, inputs = make_batch(model, np.random.default_rng(0))
    with torch.no_grad():
        expected = reference(**inputs)
    found = compute_outputs(name, model, params, batch)
    difference = max_difference(found, expected, batch["segments"])
    print(f"{name}: {difference:.1e}")
    assert difference < TOLERANCE

    hf.export_hf(tmp_path / "workdir", tmp_path / "exported")
    model_class = type(reference)
    if name in ("gpt2_base", "bart_base", "mbart_base"):
        model_class = transformers.AutoModel
    exported, info = model_class.from_pretrained(
        tmp_path / "exported", attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["mismatched_keys"]
    if exported.config.pad_token_id is None:  # decoders look for the last token by it
        exported.config.pad_token_id = reference.config.pad_token_id
    with torch.no_grad():
        returned = exported.eval()(**inputs)
    for key in found:
        torch.testing.assert_close(returned[key], expected[key], rtol=0, atol=1e-6)

    hf.import_hf(tmp_path / "exported", tmp_path / "again", one_device)
    model_again, params_again = hf.restore_model(tmp_path / "again", None)
    assert model_again.config == model.config
    import jax

    for a, b in zip(
        jax.tree.leaves(params), jax.tree.leaves(params_again), strict=True
    ):
        np.testing.assert_array_equal(a, b)
